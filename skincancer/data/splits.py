"""Train, validation and test splits by a stable ranking of the lesions.

Within each diagnosis, lesions are ranked by sha256 of "split_seed:lesion". The test set is taken from the low end of
the ranking and the validation set from the high end. Therefore images with one lesion id never get into two subsets, the
test sets of different ratios are nested, the training sets too, all ratios share one validation set, and new images
move only lesions near a cut. 80:20 trains on 70 % and validates on 10 %.

Imports of numpy and pandas are inside functions, because the configuration check imports this module.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from skincancer.errors import ConfigError, DataError, SplitError, nearest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd


LEAKS = ("stop", "drop_from_train", "allow")
VALIDATION_PERCENT = 10


@dataclass(frozen=True)
class Split:
    """Kind of split: ratio (test in percent), fold (from 0), or the official split."""

    kind: Literal["ratio", "fold", "official"]
    test: int = 0
    fold: int = 0
    folds: int = 0

    def __str__(self) -> str:
        if self.kind == "ratio":
            return f"{100 - self.test}:{self.test}"
        return f"fold:{self.fold}/{self.folds}" if self.kind == "fold" else "official"


def parse_split(text: str) -> Split:
    """Parse `data.split`: "80:20" (train:test in percent, test 1 to 89), "fold:0/5", or "official".

    Raises:
        ConfigError: The text is none of these.
    """
    allowed = (
        "expected train:test in percent with test from 1 to 89 (80:20), fold:i/k (fold:0/5 to fold:4/5), or official"
    )
    if text == "official":
        return Split("official")
    if match := re.fullmatch(r"fold:([0-9]{1,4})/([0-9]{1,4})", text):
        fold, folds = int(match[1]), int(match[2])
        if folds < 2:
            raise ConfigError(f"data.split is {text!r}: a split needs at least 2 folds; {allowed}")
        if fold >= folds:
            raise ConfigError(f"data.split is {text!r}: folds are numbered from 0 to {folds - 1}; {allowed}")
        return Split("fold", fold=fold, folds=folds)
    if match := re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", text):
        train, test = int(match[1]), int(match[2])
        if train + test != 100:
            raise ConfigError(f"data.split is {text!r}: {train} and {test} do not add up to 100; {allowed}")
        if not 1 <= test <= 89:
            raise ConfigError(f"data.split is {text!r}: {test} % test leaves the training or test set empty; {allowed}")
        return Split("ratio", test=test)
    hint = nearest(text, ("official",))
    if text.isdecimal() and len(text) < 10:
        train, test = divmod(int(text), 60)
        if train + test == 100:
            hint = f' YAML 1.1 reads {train}:{test} as the base-60 number {text}: write "{train}:{test}" in quotes.'
    raise ConfigError(f"data.split is {text!r}; {allowed}.{hint}")


@dataclass(frozen=True, eq=False)
class Roles:
    """Roles of the images of an index.

    Attributes:
        role: (N,) str, one per row of the index: train, val, test, or "" for an image that is not used.
        leaking_groups: Number of lesions in more than one official subset.
        leaking_images: Number of images of these lesions.
        dropped: Ids of the images that `drop_from_train` removed (role "").
    """

    role: npt.NDArray[np.object_]
    leaking_groups: int = 0
    leaking_images: int = 0
    dropped: list[str] = field(default_factory=list)


def assign_roles(index: pd.DataFrame, split: Split, split_seed: int, leaks: str = "stop") -> Roles:
    """Assign a role to every image of the complete index.

    Call before images are dropped from the index. A lesion counts for the diagnosis of most of its images; ties go to
    the rarer diagnosis (by images in the index, then by name). Of n lesions of a diagnosis, max(1, round(n·t)) are
    tested and max(1, round(n/10)) validated. `fold:i/k` tests on the ranks ≡ i modulo k and validates on the top tenth
    of the others. `official` uses the published subsets. Without a labelled validation set, it validates on the top
    tenth of the official training set, and an unlabelled validation set is not used (role "").

    Args:
        index: Finished index; `lesion_id` is the group (after `merge_patients` and `merge_groups`).
        split: Parsed `data.split`.
        split_seed: Seed of the ranking.
        leaks: Treatment of lesions in more than one official subset: "stop", "drop_from_train" (keeps the test set
            complete, then the validation set), or "allow". Other splits cannot leak.

    Raises:
        ConfigError: `leaks` is unknown.
        DataError: A diagnosis has too few lesions, official subsets are missing, or lesions leak and `leaks` is stop.
    """
    import numpy as np

    if leaks not in LEAKS:
        raise ConfigError(f"data.leaks is {leaks!r}; expected one of {', '.join(LEAKS)}.{nearest(leaks, LEAKS)}")
    if split.kind == "official":
        return _resolve_leaks(index, _official_roles(index, split_seed), leaks)
    role_of: dict[str, str] = {}
    for diagnosis, ranked in rank_groups(index, split_seed).items():
        test = _test_groups(ranked, split)
        rest = [group for group in ranked if group not in test]
        # For a ratio, the tenth refers to all lesions, so that all ratios share one validation set.
        n_val = _share(len(ranked if split.kind == "ratio" else rest), VALIDATION_PERCENT)
        enough = len(rest) > n_val and (split.kind == "ratio" or len(ranked) >= split.folds)
        if not enough:
            raise _too_few(diagnosis, len(ranked), split)
        role_of |= dict.fromkeys(test, "test") | dict.fromkeys(rest[:-n_val], "train")
        role_of |= dict.fromkeys(rest[-n_val:], "val")
    return Roles(np.array([role_of[group] for group in index["lesion_id"]], dtype=object))


def rank_groups(index: pd.DataFrame, split_seed: int) -> dict[str, list[str]]:
    """Rank the lesions of each diagnosis ("" without a diagnosis)."""
    labelled = index[index["diagnosis"].notna()]
    frequency = Counter[str](labelled["diagnosis"])
    counts = Counter[tuple[str, str]](zip(labelled["lesion_id"], labelled["diagnosis"], strict=True))
    best: dict[str, tuple[int, int, str]] = {}
    for (group, diagnosis), count in counts.items():
        candidate = (-count, frequency[diagnosis], diagnosis)
        best[group] = min(candidate, best.get(group, candidate))
    strata: dict[str, list[str]] = {}
    for group in sorted(set(index["lesion_id"]), key=lambda group: _rank(split_seed, group)):
        strata.setdefault(best[group][2] if group in best else "", []).append(group)
    return dict(sorted(strata.items()))


def _rank(split_seed: int, group: str) -> str:
    return hashlib.sha256(f"{split_seed}:{group}".encode()).hexdigest()


def _share(n: int, percent: int) -> int:
    return max(1, round(n * percent / 100))


def _test_groups(ranked: list[str], split: Split) -> set[str]:
    if split.kind == "fold":
        return set(ranked[split.fold :: split.folds])
    return set(ranked[: _share(len(ranked), split.test)])


def _too_few(diagnosis: str, count: int, split: Split) -> SplitError:
    what = f"the class {diagnosis!r}" if diagnosis else "the images without a diagnosis"
    return SplitError(
        f"data.split {split}: {what} has only {count} lesion{'s' if count != 1 else ''}, too few for training, "
        "validation and test to get one each; use a smaller test set, fewer folds, or more images"
    )


def _official_roles(index: pd.DataFrame, split_seed: int) -> npt.NDArray[np.object_]:
    part = index["part"].to_numpy(dtype=object)
    unassigned = index.loc[part == "", "image_id"]
    if len(unassigned):
        raise DataError(
            f"data.split is official, but {len(unassigned)} images are in no official subset "
            f"({', '.join(unassigned[:5])}); use a ratio such as 80:20, or folds"
        )
    # The label is the diagnosis, or the mask in a data set without diagnoses.
    labelled = index["diagnosis" if index["diagnosis"].notna().any() else "mask"].notna().to_numpy()
    for needed in ("train", "test"):
        if not (labelled & (part == needed)).any():
            raise DataError(f"data.split is official, but there is no labelled {needed} set; use a ratio such as 80:20")
    role = part.copy()
    if not (labelled & (part == "val")).any():
        role[part == "val"] = ""
        validation: set[str] = set()
        for diagnosis, ranked in rank_groups(index[part == "train"], split_seed).items():
            n_val = _share(len(ranked), VALIDATION_PERCENT)
            if len(ranked) <= n_val:
                raise _too_few(diagnosis, len(ranked), Split("official"))
            validation.update(ranked[-n_val:])
        role[(part == "train") & index["lesion_id"].isin(validation).to_numpy()] = "val"
    return role


def _resolve_leaks(index: pd.DataFrame, role: npt.NDArray[np.object_], leaks: str) -> Roles:
    import numpy as np
    import pandas as pd

    lesion = index["lesion_id"].to_numpy(dtype=object)
    order = pd.Series(role).map({"train": 0, "val": 1, "test": 2, "": -1}).to_numpy()
    used = pd.DataFrame({"lesion": lesion, "order": order})[order >= 0]
    spread = used.groupby("lesion")["order"].agg(["min", "max"])
    spread = spread[spread["min"] < spread["max"]]
    highest: dict[str, int] = dict(zip(spread.index, spread["max"], strict=True))
    leaking = np.array([group in highest for group in lesion]) & (order >= 0)
    roles = Roles(role, leaking_groups=len(highest), leaking_images=int(leaking.sum()))
    if highest and leaks == "stop":
        raise DataError(
            f"{len(highest)} lesions or patients with {roles.leaking_images} images are in more than one subset: "
            f"{_examples(index, role, sorted(highest))}. Set data.leaks to drop_from_train (leaves out their training "
            "images and keeps the test set complete) or to allow (keeps them; test metrics will be too optimistic)."
        )
    if highest and leaks == "drop_from_train":
        lower = leaking & (order < np.array([highest.get(group, -1) for group in lesion]))
        role = np.where(lower, "", role).astype(object)
        roles = Roles(role, roles.leaking_groups, roles.leaking_images, sorted(index["image_id"][lower]))
    untrained = set(index["diagnosis"].dropna()) - set(index["diagnosis"][role == "train"])
    if untrained or not (role == "train").any() or not (role == "val").any():
        what = f"the class {min(untrained)!r} has no training image" if untrained else "train or val has no image left"
        raise DataError(f"data.split official with data.leaks {leaks}: {what}; use a ratio such as 80:20")
    return roles


def _examples(index: pd.DataFrame, role: npt.NDArray[np.object_], lesions: list[str]) -> str:
    texts = []
    for lesion in lesions[:3]:
        rows = (index["lesion_id"] == lesion).to_numpy()
        members = [f"{i} in {r}" for i, r in zip(index["image_id"][rows], role[rows], strict=True) if r]
        texts.append(f"{lesion} ({', '.join(members[:4])})")
    return "; ".join(texts)


def split_hash(index: pd.DataFrame, roles: Roles) -> str:
    """Return the sha256 (hex) of image ids and roles, independent of their order."""
    return hash_rows(sorted(zip(index["image_id"], roles.role, strict=True)))


def hash_rows(rows: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 (hex) of rows of text."""
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
