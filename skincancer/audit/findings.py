"""What an audit looks for, and how each finding is told: a row an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from skincancer.audit.dataset import Examined
from skincancer.data.cache import ProgressBar
from skincancer.data.duplicates import exact_pairs, find_near
from skincancer.data.groups import group_rows
from skincancer.data.index import UNKNOWN

FULL = 0.99  # share of the frame from which a mask says nothing
FINDINGS = {
    "unreadable": "files that cannot be used",
    "bad_mask": "masks that cannot be used",
    "same_file": "the same file, byte for byte, as another image",
    "same_pixels": "the same pixels as another image, in another file",
    "near_duplicate": "near-duplicates: flipped, turned, scaled, cut, recompressed or brighter copies",
    "label_conflict": "copies of one picture with different diagnoses",
    "copies_across_parts": "copies of one picture in several of the publisher's parts",
    "several_of_lesion": "images of lesions that have several: a split by image would leak",
    "lesion_across_parts": "lesions in several of the publisher's parts",
    "patient_across_parts": "patients in several of the publisher's parts",
    "patient_conflict": "lesions whose images name different patients, or one in some images and none in others",
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
    "lesion_by_other": "images of one lesion by the ids of the other data set",
    "across_parts_by_other": "images of such lesions that stand in several of the publisher's parts",
}
COPIES = ("same_file", "same_pixels", "near_duplicate")
_SAME = {"same_file": "file_digest", "same_pixels": "pixel_digest"}

Pair = tuple[str, int, int, float]  # finding, rows of two images that show one picture, their correlation
# of an image: row of its copy in the other data set, their correlation, the finding that tells of it
Match = tuple[int, float, str]
Row = tuple[str, int, str, str, float, str]
COLUMNS = ["finding", "group", "image_id", "other_id", "value", "detail"]


def find_copies(own: Examined, progress: ProgressBar | None) -> list[Pair]:
    """Return pairs of rows that show one picture: finding, first, second, correlation. Of exact copies one is compared with others."""
    table = own.facts.table
    pairs: list[Pair] = []
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


def tell_copies(own: Examined, pairs: Sequence[Pair], linked: Sequence[Sequence[int]]) -> Iterator[Row]:
    """Tell copies by kind, and what contradicts among them.

    Args:
        own: the data set.
        pairs: as `find_copies`.
        linked: rows of each group that pairs link.
    """
    name = own.index["image_id"].to_numpy(dtype=object)
    group_of = {row: number for number, members in enumerate(linked, 1) for row in members}
    for finding, one, other, value in pairs:
        lesion = _lesions(own, one, other)
        yield finding, group_of[one], name[one], name[other], value, lesion
        yield finding, group_of[one], name[other], name[one], value, lesion
    for number, members in enumerate(linked, 1):
        shown = own.index.iloc[list(members)]
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


def tell_lesions(own: Examined) -> Iterator[Row]:
    """Tell lesions with several images, lesions and patients in several parts, and lesions of several patients."""
    for number, rows in enumerate(group_rows(own.index["lesion_id"]), 1):
        for row in own.index.iloc[rows].to_dict("records"):
            yield "several_of_lesion", number, row["image_id"], "", np.nan, row["lesion_id"]
    for finding, column in (("lesion_across_parts", "lesion_id"), ("patient_across_parts", "patient_id")):
        known = own.index[(own.index["part"] != "") & (own.index[column] != "")]
        parts = known.groupby(column)["part"].nunique()
        for number, name in enumerate(parts.index[parts > 1], 1):
            for row in known[known[column] == name].to_dict("records"):
                yield finding, number, row["image_id"], "", np.nan, f"{name}: {row['part']}"
    patients = own.index.groupby("lesion_id")["patient_id"].nunique()
    for number, name in enumerate(patients.index[patients > 1], 1):
        for row in own.index[own.index["lesion_id"] == name].to_dict("records"):
            detail = f"{name}: {row['patient_id'] or 'no patient'}"
            yield "patient_conflict", number, row["image_id"], "", np.nan, detail


def tell_gaps(own: Examined) -> Iterator[Row]:
    """Tell files that cannot be used, and metadata that are missing."""
    index, table = own.index, own.facts.table
    for finding, column in (("unreadable", "error"), ("bad_mask", "mask_error")):
        for image_id, error in table.loc[table[column] != "", ["image_id", column]].itertuples(index=False):
            yield finding, 0, image_id, "", np.nan, error
    missing = {"no_diagnosis": index["diagnosis"].isna(), "no_age": index["age"].isna()}
    missing |= {f"no_{name}": index[name].str.casefold().isin(UNKNOWN) for name in ("sex", "site")}
    missing["no_mask"] = index["mask"].isna()
    for finding, gap in missing.items():
        if not gap.all():  # a column that the publisher does not have is no gap in it
            for image_id in index.loc[gap, "image_id"]:
                yield finding, 0, image_id, "", np.nan, ""


def tell_masks(own: Examined) -> Iterator[Row]:
    """Tell masks that are empty, full, or another image's."""
    masked = own.readable[own.readable["mask_digest"] != ""]
    for finding, found in (("empty_mask", masked["mask_share"] == 0), ("full_mask", masked["mask_share"] > FULL)):
        for row in masked[found].to_dict("records"):
            yield finding, 0, row["image_id"], "", row["mask_share"], ""
    drawn = masked[masked["mask_share"] > 0]  # empty masks are all alike, and told already
    copied = drawn[drawn["mask_digest"].duplicated(keep=False)]
    for number, (_, members) in enumerate(copied.groupby("mask_digest", sort=False), 1):
        for row in members.to_dict("records"):
            yield "same_mask", number, row["image_id"], "", row["mask_share"], f"{len(members)} images"


def find_in_other(own: Examined, other: Examined, progress: ProgressBar | None) -> dict[int, Match]:
    """Find the images of the data set that the other one holds, each with the nearest of its copies there; by row, sorted."""
    mine, theirs = own.readable, other.readable
    found: dict[int, Match] = {}
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
    return dict(sorted(found.items()))


def tell_in_other(own: Examined, other: Examined, matches: Mapping[int, Match]) -> Iterator[Row]:
    """Tell each image of the data set that the other one holds.

    Args:
        own: the data set.
        other: the other one.
        matches: as `find_in_other`.
    """
    for number, (row, (copy, value, how)) in enumerate(matches.items(), 1):
        label, its = own.index["diagnosis"].iloc[row], other.index["diagnosis"].iloc[copy]
        detail = f"{how.replace('_', ' ')}; here {label or 'no diagnosis'}, there {its or 'no diagnosis'}"
        yield "in_other", number, own.index["image_id"].iloc[row], other.index["image_id"].iloc[copy], value, detail


def tell_lesions_by_other(
    own: Examined, other: Examined, matches: Mapping[int, Match], told: pd.Series
) -> Iterator[Row]:
    """Tell images of one lesion by the other data set's ids, and those of them that stand in several parts.

    Args:
        own: the data set.
        other: the other one.
        matches: as `find_in_other`.
        told: (N,) lesion by the other data set, "" where it knows none (`lesions.told_by`).
    """
    groups = group_rows(told)
    parts = own.index["part"]
    across = [rows for rows in groups if parts.iloc[rows][parts.iloc[rows] != ""].nunique() > 1]
    for finding, shown in (("lesion_by_other", groups), ("across_parts_by_other", across)):
        for number, rows in enumerate(shown, 1):
            for row in rows:
                part = parts.iloc[row]
                copy = other.index["image_id"].iloc[matches[row][0]]
                detail = f"{told.iloc[row]}: {part}" if part else str(told.iloc[row])
                yield finding, number, own.index["image_id"].iloc[row], copy, np.nan, detail
