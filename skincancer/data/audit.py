"""What is wrong with a data set before anything is trained on it: copies, leaks between parts, contradicting labels, gaps, bad masks."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from skincancer.data.catalog import Dataset
from skincancer.data.confounding import Confounding, measure_confounding
from skincancer.data.duplicates import exact_pairs, find_near, link
from skincancer.data.examination import Examination, examine, find_flagged
from skincancer.data.index import image_root, load_index
from skincancer.data.prepared import ProgressBar, locate
from skincancer.data.splits import merge_patients
from skincancer.data.verdict import keep_verdict
from skincancer.errors import ConfigError, DataError
from skincancer.paths import cache_folder
from skincancer.schema import DataConfig

FULL = 0.99  # share of the frame from which a mask says nothing
FINDINGS = {
    "unreadable": "files that cannot be used",
    "same_file": "the same file, byte for byte, as another image",
    "same_pixels": "the same pixels as another image, in another file",
    "near_duplicate": "near-duplicates: flipped, turned, scaled, cut, recompressed or brighter copies",
    "label_conflict": "copies of one picture with different diagnoses",
    "copies_across_parts": "copies of one picture in several of the publisher's parts",
    "lesion_across_parts": "lesions in several of the publisher's parts",
    "patient_across_parts": "patients in several of the publisher's parts",
    "no_diagnosis": "images without a diagnosis",
    "no_age": "images without an age",
    "no_sex": "images without a sex",
    "no_site": "images without a body site",
    "no_mask": "images without a mask",
    "empty_mask": "masks that are empty",
    "full_mask": f"masks that cover more than {FULL:.0%} of the frame",
    "same_mask": "masks that are identical to another image's",
    "flagged": "images flagged by the quality rules",
    "in_other": "images that the other data set holds too",
}
COPIES = ("same_file", "same_pixels", "near_duplicate")
_UNKNOWN = ("", "unknown", "nan", "na", "none")
_COLUMNS = ["finding", "group", "image_id", "other_id", "value", "detail"]
_SAME = {"same_file": "file_digest", "same_pixels": "pixel_digest"}


@dataclass(frozen=True)
class Examined:
    """A data set's index and the facts about its files."""

    entry: Dataset
    root: Path
    index: pd.DataFrame
    classes: tuple[str, ...]
    facts: Examination

    @property
    def readable(self) -> pd.DataFrame:
        """Return the facts about the images that can be read, by their row of the index."""
        return self.facts.table[self.facts.table["error"] == ""]


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        own: the data set.
        other: the one that it was compared with, or None.
        findings: a row an image and finding: finding (a key of `FINDINGS`), group (a number that images found together share, from 1, in
            each finding; 0 where an image stands alone), image_id, other_id (the image that it is a copy of, where there is one), value
            (correlation, share of a mask, age …), detail.
        groups: image ids of each group of copies, of whatever kind; sorted.
        confounding: how well the classes are told by what is no lesion; None where it cannot be measured, for the reason `unmeasured`.
        unmeasured: see there.
    """

    own: Examined
    other: Examined | None
    findings: pd.DataFrame
    groups: list[list[str]]
    confounding: Confounding | None
    unmeasured: str = ""
    day: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def of(self, finding: str) -> pd.DataFrame:
        """Return the rows of one finding."""
        return self.findings[self.findings["finding"] == finding]

    def counts(self, finding: str) -> tuple[int, int]:
        """Return how many images a finding is of, and how many groups or pairs they make (0 where each stands alone)."""
        found = self.of(finding)
        return found["image_id"].nunique(), int(found.loc[found["group"] > 0, "group"].nunique())


def load_examined(config: DataConfig, progress: ProgressBar | None = None, jobs: int = -1) -> Examined:
    """Read a data set's index and examine its files.

    Raises:
        DataError: the data are missing or laid out differently.
    """
    entry, root = locate(config, progress)
    index, classes = load_index(entry, root)
    told = progress(f"examining {entry.name}") if progress else None
    facts = examine(index, image_root(root), cache_folder(), told, jobs)
    return Examined(entry, root, index, classes, facts)


def audit(
    config: DataConfig, against: DataConfig | None = None, progress: ProgressBar | None = None, jobs: int = -1
) -> Audit:
    """Audit a data set, and keep the verdict in the cache for the fits on it.

    Args:
        config: of the data set: its name, root, and quality rules.
        against: of another one, to look for its images in.
        progress: makes progress callbacks by title.
        jobs: worker processes; -1 for one a core.

    Raises:
        ConfigError: `against` is the data set itself.
        DataError: the data are missing or laid out differently, or fewer than two images can be read.
    """
    if against is not None and locate(config, progress) == locate(against, progress):
        raise ConfigError(
            f"--against is {against.dataset}, the data set itself. Copies inside it are looked for without --against; give another "
            "data set, or another folder with --against.root."
        )
    own = load_examined(config, progress, jobs)
    if len(own.readable) < 2 and against is None:
        raise DataError(
            f"{own.entry.name} in {own.root} has {len(own.readable)} readable image, and an audit compares images. "
            "Add images, or compare it with another data set (--against NAME)."
        )
    pairs = _copies(own, progress)
    linked = link(len(own.index), [(one, other) for _, one, other, _ in pairs])
    lesion_of = merge_patients(own.index)["lesion_id"].to_numpy(dtype=object).copy()
    for members in linked:
        lesion_of[np.isin(lesion_of, lesion_of[members])] = min(lesion_of[members])
    rows = [*_told_copies(own, pairs, linked), *_told_parts(own), *_told_gaps(own), *_told_masks(own)]
    flagged = find_flagged(own.facts, config.quality_rules)
    rows += [("flagged", 0, one, "", np.nan, why) for one, why in flagged.itertuples(index=False)]
    other = load_examined(against, progress, jobs) if against is not None else None
    if other is not None:
        rows += _told_against(own, other, progress)
    confounding, unmeasured = measure_confounding(own.index["diagnosis"], own.facts.table, lesion_of, own.classes)
    groups = sorted(sorted(own.index["image_id"].iloc[members]) for members in linked)
    found = Audit(own, other, pd.DataFrame(rows, columns=_COLUMNS), groups, confounding, unmeasured)
    keep_verdict(own.facts.key, found.day, groups)
    return found


def _copies(own: Examined, progress: ProgressBar | None) -> list[tuple[str, int, int, float]]:
    """Return pairs of rows that show one picture: finding, first, second, correlation. Of exact copies one is compared with others."""
    table = own.facts.table
    pairs: list[tuple[str, int, int, float]] = []
    known: set[tuple[int, int]] = set()
    for finding, column in _SAME.items():
        same = [pair for pair in exact_pairs(table[column].tolist()) if pair not in known]
        known.update(same)
        pairs += [(finding, *pair, 1.0) for pair in same]
    copies = {second for _, _, second, _ in pairs}
    rows = np.array([row for row in own.readable.index if row not in copies], dtype=np.int64)
    told = progress(f"comparing the images of {own.entry.name}") if progress else None
    near = find_near(own.facts.thumbnails[rows], progress=told)
    return pairs + [
        ("near_duplicate", int(rows[one]), int(rows[other]), value)
        for one, other, value in near.itertuples(index=False, name=None)
    ]


Row = tuple[str, int, str, str, float, str]


def _told_copies(own: Examined, pairs: list[tuple[str, int, int, float]], linked: list[list[int]]) -> Iterator[Row]:
    name = own.index["image_id"].to_numpy(dtype=object)
    group_of = {row: number for number, members in enumerate(linked, 1) for row in members}
    for finding, one, other, value in pairs:
        lesion = _lesions(own, one, other)
        yield finding, group_of[one], name[one], name[other], value, lesion
        yield finding, group_of[one], name[other], name[one], value, lesion
    for number, members in enumerate(linked, 1):
        shown = own.index.iloc[members]
        for finding, column in (("label_conflict", "diagnosis"), ("copies_across_parts", "part")):
            values = shown[column].dropna()
            values = values[values != ""]
            if values.nunique() > 1:
                for image_id, value in zip(shown["image_id"], shown[column], strict=True):
                    yield finding, number, image_id, "", np.nan, str(value)


def _lesions(own: Examined, one: int, other: int) -> str:
    """Say whether two images are of one lesion by their publisher; "" where nobody knows."""
    first, second = own.index.iloc[one], own.index.iloc[other]
    if first["lesion_id"] == first["image_id"] and second["lesion_id"] == second["image_id"]:
        return ""
    return "one lesion" if first["lesion_id"] == second["lesion_id"] else "different lesions"


def _told_parts(own: Examined) -> Iterator[Row]:
    for finding, column in (("lesion_across_parts", "lesion_id"), ("patient_across_parts", "patient_id")):
        known = own.index[(own.index["part"] != "") & (own.index[column] != "")]
        parts = known.groupby(column)["part"].nunique()
        for number, name in enumerate(parts.index[parts > 1], 1):
            for row in known[known[column] == name].to_dict("records"):
                yield finding, number, row["image_id"], "", np.nan, f"{name}: {row['part']}"


def _told_gaps(own: Examined) -> Iterator[Row]:
    index, table = own.index, own.facts.table
    for image_id, error in table.loc[table["error"] != "", ["image_id", "error"]].itertuples(index=False):
        yield "unreadable", 0, image_id, "", np.nan, error
    missing = {"no_diagnosis": index["diagnosis"].isna(), "no_age": index["age"].isna()}
    missing |= {f"no_{name}": index[name].str.casefold().isin(_UNKNOWN) for name in ("sex", "site")}
    missing["no_mask"] = index["mask"].isna()
    for finding, gap in missing.items():
        if not gap.all():  # a column that the publisher does not have is no gap in it
            for image_id in index.loc[gap, "image_id"]:
                yield finding, 0, image_id, "", np.nan, ""


def _told_masks(own: Examined) -> Iterator[Row]:
    masked = own.readable[own.readable["mask_digest"] != ""]
    for finding, found in (("empty_mask", masked["mask_share"] == 0), ("full_mask", masked["mask_share"] > FULL)):
        for row in masked[found].to_dict("records"):
            yield finding, 0, row["image_id"], "", row["mask_share"], ""
    drawn = masked[masked["mask_share"] > 0]  # empty masks are all alike, and told already
    copied = drawn[drawn["mask_digest"].duplicated(keep=False)]
    for number, (_, members) in enumerate(copied.groupby("mask_digest", sort=False), 1):
        for row in members.to_dict("records"):
            yield "same_mask", number, row["image_id"], "", row["mask_share"], f"{len(members)} images"


def _told_against(own: Examined, other: Examined, progress: ProgressBar | None) -> Iterator[Row]:
    """Tell each image of the data set that the other one holds, with the nearest of its copies there."""
    mine, theirs = own.readable, other.readable
    found: dict[int, tuple[int, float, str]] = {}
    told = progress(f"comparing {own.entry.name} with {other.entry.name}") if progress else None
    near = find_near(
        own.facts.thumbnails[mine.index.to_numpy()], other.facts.thumbnails[theirs.index.to_numpy()], progress=told
    )
    for one, row, value in near.sort_values("correlation").itertuples(index=False, name=None):
        found[int(mine.index[one])] = int(theirs.index[row]), value, "near_duplicate"
    for how, column in reversed(_SAME.items()):
        where = {digest: row for row, digest in zip(theirs.index[::-1], theirs[column][::-1], strict=True)}
        found |= {
            int(row): (int(where[digest]), 1.0, how)
            for row, digest in zip(mine.index, mine[column], strict=True)
            if digest in where
        }
    for number, (row, (copy, value, how)) in enumerate(sorted(found.items()), 1):
        label, its = own.index["diagnosis"].iloc[row], other.index["diagnosis"].iloc[copy]
        detail = f"{how.replace('_', ' ')}; here {label or 'no diagnosis'}, there {its or 'no diagnosis'}"
        yield "in_other", number, own.index["image_id"].iloc[row], other.index["image_id"].iloc[copy], value, detail


def write_groups(found: Audit, path: Path) -> int:
    """Write the groups of copies as the table that `data.groups` takes: image_id, group. Return how many groups there are.

    Raises:
        DataError: the file cannot be written.
    """
    rows = [(image_id, members[0]) for members in found.groups for image_id in members]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=["image_id", "group"]).to_csv(path, index=False)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror}. Give another place with --write-groups."
        ) from error
    return len(found.groups)
