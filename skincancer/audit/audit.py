"""Audit of a data set: copies, leakage, label conflicts, gaps, bad masks."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.audit.confounding import Confounding, Source, measure_confounding, measure_sources
from skincancer.audit.dataset import Examined, check_enough, check_other, examine_files, load
from skincancer.audit.findings import (
    COLUMNS,
    Match,
    Row,
    find_copies,
    find_in_other,
    list_copies,
    list_gaps,
    list_in_other,
    list_lesions,
    list_lesions_by_other,
    list_masks,
)
from skincancer.audit.verdict import Verdict, keep_verdict
from skincancer.data.cache import ProgressBar
from skincancer.data.duplicates import link
from skincancer.data.file_facts import find_flagged
from skincancer.data.groups import Names, group_rows, known_lesions, unite
from skincancer.data.index import image_root
from skincancer.schema.data import DataConfig


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of an audit.

    Attributes:
        own: audited data set.
        other: data set for comparison, or None.
        findings: one row per image and finding: finding (a key of `FINDINGS`), group (number of the group of images within the finding,
            from 1; 0 for a single image), image_id, other_id (the copied image, if any), value (correlation, share of a mask …), detail.
        flagged: image_id, flags (names of the violated quality rules), reason.
        copies: image ids of each group of copies of any kind, sorted.
        lesion_by_other: (N,) lesion id of each image in the other data set, "" if unknown.
        lesion: (N,) lesion name of each image, from the publisher's ids, copies and the ids of the other data set.
        confounding: result of the confounding check, or None if unmeasured.
        unmeasured: reason why the confounding check was not possible, or "".
        sources: confounding checks with a fixed class or a fixed confirmation method.
        unkept: error text if the verdict could not be saved for later fits, or "".
        day: ISO date of the audit.
    """

    own: Examined
    other: Examined | None
    findings: pd.DataFrame
    flagged: pd.DataFrame
    copies: list[list[str]]
    lesion_by_other: pd.Series
    lesion: Names
    confounding: Confounding | None
    unmeasured: str = ""
    sources: Sequence[Source] = ()
    unkept: str = ""
    day: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def of(self, finding: str) -> pd.DataFrame:
        """Return the rows of one finding."""
        return self.findings[self.findings["finding"] == finding]

    def counts(self, finding: str) -> tuple[int, int]:
        """Return the numbers of images and of groups of a finding.

        The number of groups is 0 for findings about single images.
        """
        rows = self.of(finding)
        return rows["image_id"].nunique(), int(rows.loc[rows["group"] > 0, "group"].nunique())

    @property
    def lesions_by_other(self) -> list[list[str]]:
        """Image ids of lesions with several images, by the other data set."""
        return _ids(self.own, group_rows(self.lesion_by_other))

    @property
    def groups(self) -> list[list[str]]:
        """Image ids of each group for `data.groups`, sorted.

        A group links copies and images of one lesion by the ids of the other data set.
        """
        position = {image_id: row for row, image_id in enumerate(self.own.index["image_id"])}
        pairs = [
            (position[members[0]], position[other])
            for members in (*self.copies, *self.lesions_by_other)
            for other in members[1:]
        ]
        return _ids(self.own, link(len(position), pairs))

    @property
    def shared(self) -> list[GroupLeakage]:
        """Leakage of lesions between the publisher's subsets."""
        known = (known_lesions(self.own.index) | (self.lesion_by_other != "")).to_numpy()
        return count_shared(self.own.index["part"], self.lesion, known)


def audit(
    config: DataConfig, against: DataConfig | None = None, progress: ProgressBar | None = None, jobs: int = -1
) -> Audit:
    """Audit a data set and save the verdict for later fits.

    Args:
        config: name, root and quality rules of the data set.
        against: another data set to search for copies of the images, or None.
        progress: factory of progress callbacks, called with a title.
        jobs: number of worker processes, -1 for one per core.

    Raises:
        ConfigError: `against` is the data set itself.
        DataError: data are missing or have another layout, or fewer than two images are readable.
    """
    located = load(config, progress)
    located_other = load(against, progress) if against is not None else None
    if located_other is not None:
        check_other(located, located_other)
    own = examine_files(located, progress, jobs)
    other = examine_files(located_other, progress, jobs) if located_other is not None else None
    if other is None:
        check_enough(own)
    count = len(own.index)
    pairs = find_copies(own, progress)
    linked = link(count, [(first, second) for _, first, second, _ in pairs])
    rows = [*list_copies(own, pairs, linked), *list_lesions(own), *list_gaps(own), *list_masks(own)]
    flagged = find_flagged(own.facts, config.quality_rules)
    rows += [("flagged", 0, image_id, "", np.nan, reason) for image_id, _, reason in flagged.itertuples(index=False)]
    by_other = pd.Series("", index=range(count), dtype=object)
    if other is not None:
        other_rows, by_other = _compare(own, other, progress)
        rows += other_rows
    lesion = unite(own.index["lesion_id"], [*linked, *group_rows(by_other)])
    # Images of one patient share skin and camera. Patient ids that contradict lesion ids are a finding, not an error.
    people = unite(lesion, group_rows(own.index["patient_id"]))
    confounding, unmeasured = measure_confounding(own.index["diagnosis"], own.facts.table, people, own.classes)
    findings = pd.DataFrame(rows, columns=COLUMNS)
    in_other = own.index["image_id"].isin(findings.loc[findings["finding"] == "in_other", "image_id"])
    sources = measure_sources(
        own.index, own.facts.table, people, own.classes, in_other if other else None, other.entry.name if other else ""
    )
    result = Audit(own, other, findings, flagged, _ids(own, linked), by_other, lesion, confounding, unmeasured, sources)
    return _save_verdict(result)


def _compare(own: Examined, other: Examined, progress: ProgressBar | None) -> tuple[list[Row], pd.Series]:
    """Return findings and lesion ids (N,) from the other data set."""
    matches: dict[int, Match] = find_in_other(own, other, progress)
    lesions = groups_from_other(other.index, {row: copy for row, (copy, *_) in matches.items()}, len(own.index))
    return [*list_in_other(own, other, matches), *list_lesions_by_other(own, other, matches, lesions)], lesions


def _ids(own: Examined, groups: list[list[int]]) -> list[list[str]]:
    return sorted(sorted(own.index["image_id"].iloc[members]) for members in groups)


def _save_verdict(result: Audit) -> Audit:
    """Save the verdict, and set `unkept` if the cache cannot be written."""
    confounding = result.confounding
    # Copies are counted separately.
    lesion = unite(result.own.index["lesion_id"], group_rows(result.lesion_by_other))
    verdict = Verdict(
        day=result.day,
        groups=result.copies,
        other=result.other.entry.name if result.other else "",
        lesions=result.lesions_by_other,
        label_conflicts=result.counts("label_conflict")[1],
        copies_across_parts=result.counts("copies_across_parts")[1],
        lesions_across_parts=count_across(result.own.index["part"], lesion),
        nuisance=(confounding.auroc, confounding.low, confounding.high) if confounding else None,
    )
    try:
        keep_verdict(result.own.facts.key, verdict, image_root(result.own.root))
    except OSError as error:
        return replace(result, unkept=str(error))
    return result


def write_groups(result: Audit, path: Path) -> int:
    """Write the groups as a table for `data.groups` and return their number.

    The columns are image_id and group.
    """
    groups = result.groups
    rows = [(image_id, members[0]) for members in groups for image_id in members]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["image_id", "group"]).to_csv(path, index=False)
    return len(groups)


def groups_from_other(other: pd.DataFrame, copies: Mapping[int, int], count: int) -> pd.Series:
    """Return the lesion of each image by copies in another data set.

    Args:
        other: index of the other data set.
        copies: from the row of an image to the row of its copy in `other`.
        count: number of images, N.

    Returns:
        (N,) lesion ids of the other data set, "" without a copy or a known lesion.
    """
    known = known_lesions(other).to_numpy()
    lesions = pd.Series("", index=range(count), dtype=object)
    for row, copy in copies.items():
        if known[copy]:
            lesions.iloc[row] = other["lesion_id"].iloc[copy]
    return lesions


def count_across(part: pd.Series, lesion: Names) -> int:
    """Count lesions in several of the publisher's subsets ("" is no subset)."""
    known = pd.DataFrame({"part": part.to_numpy(dtype=object), "lesion": lesion})
    return int((known[known["part"] != ""].groupby("lesion")["part"].nunique() > 1).sum())


class GroupLeakage(NamedTuple):
    """Number of images of subset `part` that leak into subset `other`.

    `shared` of the `images` images, and `known_shared` of the `known` images with a known lesion, show a lesion of `other`.
    """

    part: str
    other: str
    shared: int
    images: int
    known_shared: int
    known: int


def count_shared(part: pd.Series, lesion: Names, known: npt.NDArray[np.bool_]) -> list[GroupLeakage]:
    """Count images with lesions that leak between the publisher's subsets.

    Args:
        part: (N,) the publisher's subset of each image, "" for none.
        lesion: (N,) lesion of each image.
        known: bool (N,), lesion id comes from metadata and not from image similarity.
    """
    subsets, names = part.to_numpy(dtype=object), lesion.astype(str)
    leaks = []
    for subset, other in (("test", "train"), ("test", "val"), ("val", "train")):
        own = subsets == subset
        shared = own & np.isin(names, names[subsets == other])
        if shared.any():
            counts = (shared, own, shared & known, own & known)
            leaks.append(GroupLeakage(subset, other, *(int(rows.sum()) for rows in counts)))
    return leaks
