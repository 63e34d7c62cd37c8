"""What is wrong with a data set before anything is trained on it: copies, leaks between parts, contradicting labels, gaps, bad masks."""

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
    tell_copies,
    tell_gaps,
    tell_in_other,
    tell_lesions,
    tell_lesions_by_other,
    tell_masks,
)
from skincancer.audit.verdict import Verdict, keep_verdict
from skincancer.data.cache import ProgressBar
from skincancer.data.duplicates import link
from skincancer.data.file_facts import find_flagged
from skincancer.data.groups import Names, group_rows, known_lesions, unite
from skincancer.data.index import image_root
from skincancer.schema import DataConfig


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of an audit.

    Attributes:
        own: the data set.
        other: the one that it was compared with, or None.
        findings: a row an image and finding: finding (a key of `FINDINGS`), group (a number that images found together share, from 1, in
            each finding; 0 where an image stands alone), image_id, other_id (the image that it is a copy of, where there is one), value
            (correlation, share of a mask …), detail.
        flagged: image_id, flags (names of the quality rules that it breaks), reason.
        copies: image ids of each group of copies, of whatever kind; sorted.
        lesion_by_other: (N,) the lesion of each image by the other data set; "" where that knows none.
        lesion: (N,) a name that images of one lesion share, by all that is known: the publisher's ids, copies, the other data set's ids.
        confounding: how well the classes are told by what is no lesion; None where it cannot be measured, for the reason `unmeasured`.
        unmeasured: see there.
        sources: the same where class or source is held fixed.
        unkept: why the verdict could not be kept for the fits; "" where it was.
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
        """Return how many images a finding is of, and how many groups or pairs they make (0 where each stands alone)."""
        found = self.of(finding)
        return found["image_id"].nunique(), int(found.loc[found["group"] > 0, "group"].nunique())

    @property
    def lesions_by_other(self) -> list[list[str]]:
        """Image ids of each lesion of which the other data set knows that several images here show it."""
        return _ids(self.own, group_rows(self.lesion_by_other))

    @property
    def groups(self) -> list[list[str]]:
        """Image ids of the groups that `data.groups` should merge: copies, and lesions by the other data set, linked; sorted."""
        position = {image_id: row for row, image_id in enumerate(self.own.index["image_id"])}
        pairs = [
            (position[members[0]], position[other])
            for members in (*self.copies, *self.lesions_by_other)
            for other in members[1:]
        ]
        return _ids(self.own, link(len(position), pairs))

    @property
    def shared(self) -> list[Shared]:
        """How many images of a part of the publisher's show a lesion that another part shows too, by all that is known."""
        known = (known_lesions(self.own.index) | (self.lesion_by_other != "")).to_numpy()
        return count_shared(self.own.index["part"], self.lesion, known)


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
    located = load(config, progress)
    theirs = load(against, progress) if against is not None else None
    if theirs is not None:
        check_other(located, theirs)
    own = examine_files(located, progress, jobs)
    other = examine_files(theirs, progress, jobs) if theirs is not None else None
    if other is None:
        check_enough(own)
    count = len(own.index)
    pairs = find_copies(own, progress)
    linked = link(count, [(one, second) for _, one, second, _ in pairs])
    rows = [*tell_copies(own, pairs, linked), *tell_lesions(own), *tell_gaps(own), *tell_masks(own)]
    flagged = find_flagged(own.facts, config.quality_rules)
    rows += [("flagged", 0, image_id, "", np.nan, why) for image_id, _, why in flagged.itertuples(index=False)]
    by_other = pd.Series("", index=range(count), dtype=object)
    if other is not None:
        told, by_other = _compare(own, other, progress)
        rows += told
    lesion = unite(own.index["lesion_id"], [*linked, *group_rows(by_other)])
    # skin and camera are the patient's, too; patients that contradict lesions are a finding, and no reason to stop
    people = unite(lesion, group_rows(own.index["patient_id"]))
    confounding, unmeasured = measure_confounding(own.index["diagnosis"], own.facts.table, people, own.classes)
    findings = pd.DataFrame(rows, columns=COLUMNS)
    there = own.index["image_id"].isin(findings.loc[findings["finding"] == "in_other", "image_id"])
    sources = measure_sources(
        own.index, own.facts.table, people, own.classes, there if other else None, other.entry.name if other else ""
    )
    found = Audit(own, other, findings, flagged, _ids(own, linked), by_other, lesion, confounding, unmeasured, sources)
    return _kept(found)


def _compare(own: Examined, other: Examined, progress: ProgressBar | None) -> tuple[list[Row], pd.Series]:
    """Return what the other data set tells: findings, and the lesion of each image."""
    matches: dict[int, Match] = find_in_other(own, other, progress)
    told = told_by(other.index, {row: copy for row, (copy, *_) in matches.items()}, len(own.index))
    return [*tell_in_other(own, other, matches), *tell_lesions_by_other(own, other, matches, told)], told


def _ids(own: Examined, groups: list[list[int]]) -> list[list[str]]:
    return sorted(sorted(own.index["image_id"].iloc[members]) for members in groups)


def _kept(found: Audit) -> Audit:
    """Keep the verdict; where that fails the audit is told all the same."""
    one = found.confounding
    lesion = unite(found.own.index["lesion_id"], group_rows(found.lesion_by_other))  # copies are counted by themselves
    verdict = Verdict(
        day=found.day,
        groups=found.copies,
        other=found.other.entry.name if found.other else "",
        lesions=found.lesions_by_other,
        label_conflicts=found.counts("label_conflict")[1],
        copies_across_parts=found.counts("copies_across_parts")[1],
        lesions_across_parts=count_across(found.own.index["part"], lesion),
        nuisance=(one.auroc, one.low, one.high) if one else None,
    )
    try:
        keep_verdict(found.own.facts.key, verdict, image_root(found.own.root))
    except OSError as error:
        return replace(found, unkept=str(error))
    return found


def write_groups(found: Audit, path: Path) -> int:
    """Write the groups that belong together as the table that `data.groups` takes: image_id, group. Return how many groups there are."""
    groups = found.groups
    rows = [(image_id, members[0]) for members in groups for image_id in members]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=["image_id", "group"]).to_csv(path, index=False)
    return len(groups)


def told_by(other: pd.DataFrame, copies: Mapping[int, int], count: int) -> pd.Series:
    """Return the lesion of each image by the index of another data set that holds a copy of it.

    Args:
        other: index of the other data set.
        copies: row of an image to the row of its copy there.
        count: N, images.

    Returns:
        (N,) lesion ids of the other data set; "" where there is no copy, or its lesion is not known.
    """
    known = known_lesions(other).to_numpy()
    told = pd.Series("", index=range(count), dtype=object)
    for row, copy in copies.items():
        if known[copy]:
            told.iloc[row] = other["lesion_id"].iloc[copy]
    return told


def count_across(part: pd.Series, lesion: Names) -> int:
    """Count the lesions that several of the publisher's parts show; a part of "" is none."""
    known = pd.DataFrame({"part": part.to_numpy(dtype=object), "lesion": lesion})
    return int((known[known["part"] != ""].groupby("lesion")["part"].nunique() > 1).sum())


class Shared(NamedTuple):
    """Of the images of one part, how many show a lesion that images of another part show too; and of those whose lesion is known."""

    part: str
    other: str
    shared: int
    images: int
    known_shared: int
    known: int


def count_shared(part: pd.Series, lesion: Names, known: npt.NDArray[np.bool_]) -> list[Shared]:
    """Count lesions that several parts show, in the images of the part that should know nothing of the other.

    Args:
        part: (N,) the publisher's part of each image; "" is none.
        lesion: (N,) its lesion.
        known: (N,) whether that is more than a guess by its looks.
    """
    parts, names = part.to_numpy(dtype=object), lesion.astype(str)
    found = []
    for one, other in (("test", "train"), ("test", "val"), ("val", "train")):
        own = parts == one
        shared = own & np.isin(names, names[parts == other])
        if shared.any():
            counts = (shared, own, shared & known, own & known)
            found.append(Shared(one, other, *(int(rows.sum()) for rows in counts)))
    return found
