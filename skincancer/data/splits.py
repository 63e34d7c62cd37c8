"""Splits: which images train, validate and test, by a ranking of the lesions that no other choice can move.

Within each diagnosis lesions are ranked by sha256 of "split_seed:lesion". Test is cut from the low end and validation
from the high end, so that no lesion is on two sides, the test sets of different ratios are nested, the training sets
too, validation is common to all, and new images move only lesions at a cut. 80:20 therefore trains on 70 % and
validates on 10 %. Imports nothing heavy, because the configuration checks splits by this module.
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
    """A way to split: a ratio (test in percent), one fold of several (from 0), or the publisher's own parts."""

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
        ConfigError: If the text is none of these.
    """
    allowed = (
        "allowed are train:test in percent with test from 1 to 89 (80:20), fold:i/k (fold:0/5 to fold:4/5), official"
    )
    if text == "official":
        return Split("official")
    if match := re.fullmatch(r"fold:(\d{1,4})/(\d{1,4})", text):
        fold, folds = int(match[1]), int(match[2])
        if folds < 2:
            raise ConfigError(f"data.split is {text!r}: at least 2 folds are needed; {allowed}")
        if fold >= folds:
            raise ConfigError(f"data.split is {text!r}: folds count from 0 to {folds - 1}; {allowed}")
        return Split("fold", fold=fold, folds=folds)
    if match := re.fullmatch(r"(\d{1,3}):(\d{1,3})", text):
        train, test = int(match[1]), int(match[2])
        if train + test != 100:
            raise ConfigError(f"data.split is {text!r}: {train} and {test} do not add up to 100; {allowed}")
        if not 1 <= test <= 89:
            raise ConfigError(f"data.split is {text!r}: {test} % test leaves nothing to train or to test; {allowed}")
        return Split("ratio", test=test)
    hint = nearest(text, ("official",))
    if text.isdecimal():
        train, test = divmod(int(text), 60)
        if train + test == 100:
            hint = f' YAML 1.1 reads {train}:{test} as the base-60 number {text}: write "{train}:{test}" in quotes.'
    raise ConfigError(f"data.split is {text!r}; {allowed}.{hint}")


@dataclass(frozen=True, eq=False)
class Roles:
    """The role of each image.

    Attributes:
        role: (N,) str objects, a row of the index each: train, val, test, or "" for an image that takes no part.
        leaking_groups: Lesions that stand in more than one official part.
        leaking_images: All images of those lesions.
        dropped: Ids of the images that `drop_from_train` took out (role "").
    """

    role: npt.NDArray[np.object_]
    leaking_groups: int = 0
    leaking_images: int = 0
    dropped: list[str] = field(default_factory=list)


def assign_roles(index: pd.DataFrame, split: Split, split_seed: int, leaks: str = "stop") -> Roles:
    """Give every image of the full index its role; to be called before anything is dropped from it.

    A lesion belongs to the diagnosis that most of its images have, ties to the rarer one (by images in the index, then
    by name). Of n lesions of a diagnosis, test takes max(1, round(n·t)) and validation max(1, round(n/10)).
    `fold:i/k` tests on the ranks ≡ i modulo k and validates on the top tenth of the others. `official` takes the
    publisher's parts; where there is no labelled val part, it validates on the top tenth of the official train part
    (an unlabelled one takes no part: role "").

    Args:
        index: A finished index; its `lesion_id` is the group (after `merge_patients`, and `merge_groups` where groups are given).
        split: The split.
        split_seed: The only seed of the split.
        leaks: What to do with a lesion in more than one official part: "stop", "drop_from_train" (test stays whole,
            then val), or "allow". The other splits cannot leak.

    Raises:
        ConfigError: If `leaks` is unknown.
        DataError: If a diagnosis has too few lesions, official parts are missing, or lesions leak and `leaks` is stop.
    """
    import numpy as np

    if leaks not in LEAKS:
        raise ConfigError(f"data.leaks is {leaks!r}; choose one of {', '.join(LEAKS)}.{nearest(leaks, LEAKS)}")
    if split.kind == "official":
        return _resolve_leaks(index, _official_roles(index, split_seed), leaks)
    role_of: dict[str, str] = {}
    for diagnosis, ranked in rank_groups(index, split_seed).items():
        test = _test_groups(ranked, split)
        rest = [group for group in ranked if group not in test]
        # In a ratio the tenth is of all lesions, so that validation is the same whatever the ratio.
        n_val = _share(len(ranked if split.kind == "ratio" else rest), VALIDATION_PERCENT)
        enough = len(rest) > n_val and (split.kind == "ratio" or len(ranked) >= split.folds)
        if not enough:
            raise _too_few(diagnosis, len(ranked), split)
        role_of |= dict.fromkeys(test, "test") | dict.fromkeys(rest[:-n_val], "train")
        role_of |= dict.fromkeys(rest[-n_val:], "val")
    return Roles(np.array([role_of[group] for group in index["lesion_id"]], dtype=object))


def rank_groups(index: pd.DataFrame, split_seed: int) -> dict[str, list[str]]:
    """Return the lesions of each diagnosis in ranked order; those without any diagnosis under ""."""
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
        "validation and test to get one each; use a smaller test part, fewer folds, or more images"
    )


def _official_roles(index: pd.DataFrame, split_seed: int) -> npt.NDArray[np.object_]:
    part = index["part"].to_numpy(dtype=object)
    without = index.loc[part == "", "image_id"]
    if len(without):
        raise DataError(
            f"data.split is official, but {len(without)} images belong to no part of the publisher's "
            f"({', '.join(without[:5])}); use a ratio such as 80:20, or folds"
        )
    # What counts as a label: the diagnosis, or the mask in a data set without diagnoses.
    labelled = index["diagnosis" if index["diagnosis"].notna().any() else "mask"].notna().to_numpy()
    for needed in ("train", "test"):
        if not (labelled & (part == needed)).any():
            raise DataError(
                f"data.split is official, but there is no labelled {needed} part; use a ratio such as 80:20"
            )
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
    taking_part = pd.DataFrame({"lesion": lesion, "order": order})[order >= 0]
    spread = taking_part.groupby("lesion")["order"].agg(["min", "max"])
    spread = spread[spread["min"] < spread["max"]]
    highest: dict[str, int] = dict(zip(spread.index, spread["max"], strict=True))
    leaking = np.array([group in highest for group in lesion]) & (order >= 0)
    found = Roles(role, leaking_groups=len(highest), leaking_images=int(leaking.sum()))
    if highest and leaks == "stop":
        raise DataError(
            f"{len(highest)} lesions or patients with {found.leaking_images} images stand in more than one part: "
            f"{_examples(index, role, sorted(highest))}. Set data.leaks to drop_from_train (their training images are "
            "left out and test stays whole) or to allow (they stay; the scores will be too good)."
        )
    if highest and leaks == "drop_from_train":
        lower = leaking & (order < np.array([highest.get(group, -1) for group in lesion]))
        role = np.where(lower, "", role).astype(object)
        found = Roles(role, found.leaking_groups, found.leaking_images, sorted(index["image_id"][lower]))
    untrained = set(index["diagnosis"].dropna()) - set(index["diagnosis"][role == "train"])
    if untrained or not (role == "train").any() or not (role == "val").any():
        what = (
            f"the class {min(untrained)!r} has no image to train on" if untrained else "train or val has no image left"
        )
        raise DataError(f"data.split official with data.leaks {leaks}: {what}; use a ratio such as 80:20")
    return found


def _examples(index: pd.DataFrame, role: npt.NDArray[np.object_], lesions: list[str]) -> str:
    texts = []
    for lesion in lesions[:3]:
        rows = (index["lesion_id"] == lesion).to_numpy()
        members = [f"{i} in {r}" for i, r in zip(index["image_id"][rows], role[rows], strict=True) if r]
        texts.append(f"{lesion} ({', '.join(members[:4])})")
    return "; ".join(texts)


def split_hash(index: pd.DataFrame, roles: Roles) -> str:
    """Return the sha256 (hex) of ids and roles: the same wherever the same images have the same roles."""
    return hash_rows(sorted(zip(index["image_id"], roles.role, strict=True)))


def hash_rows(rows: Iterable[tuple[str, str]]) -> str:
    """Return the sha256 (hex) of rows of text."""
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()
