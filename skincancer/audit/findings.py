"""Findings of an audit, as one row per image and finding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from skincancer.audit.dataset import Examined
from skincancer.data.cache import ProgressBar
from skincancer.data.duplicates import exact_pairs, find_near
from skincancer.data.groups import group_rows
from skincancer.data.index import UNKNOWN

# Share of the image above which a mask contains no information.
FULL = 0.99
FINDINGS = {
    "unreadable": "files that cannot be used",
    "bad_mask": "masks that cannot be used",
    "same_file": "the same file, byte for byte, as another image",
    "same_pixels": "the same pixels as another image, in another file",
    "near_duplicate": "near-duplicates: flipped, rotated, scaled, cropped, recompressed or brighter copies",
    "label_conflict": "copies of one image with different diagnoses",
    "copies_across_parts": "copies of one image in several of the publisher's subsets",
    "several_of_lesion": "images of lesions with several images: a split by image would leak",
    "lesion_across_parts": "lesions in several of the publisher's subsets",
    "patient_across_parts": "patients in several of the publisher's subsets",
    "patient_conflict": "lesions with different patients, or with a patient in only some of their images",
    "no_diagnosis": "images without a diagnosis",
    "no_age": "images without an age",
    "no_sex": "images without a sex",
    "no_site": "images without a body site",
    "no_mask": "images without a mask",
    "empty_mask": "masks that are empty",
    "full_mask": f"masks that cover more than {FULL:.0%} of the image",
    "same_mask": "masks that are identical to the mask of another image",
    "flagged": "images flagged by the quality rules",
    "in_other": "images that the other data set contains too",
    "lesion_by_other": "images of one lesion by the ids of the other data set",
    "across_parts_by_other": "images of such lesions in several of the publisher's subsets",
}
COPIES = ("same_file", "same_pixels", "near_duplicate")
_SAME = {"same_file": "file_digest", "same_pixels": "pixel_digest"}

# Finding, rows of two copies, their correlation.
Pair = tuple[str, int, int, float]
# Row of the copy in the other data set, correlation, kind of copy.
Match = tuple[int, float, str]
Row = tuple[str, int, str, str, float, str]
COLUMNS = ["finding", "group", "image_id", "other_id", "value", "detail"]


def find_copies(own: Examined, progress: ProgressBar | None) -> list[Pair]:
    """Find pairs of copies: finding, first row, second row, correlation.

    Only one image of each group of exact copies is compared with the other images.
    """
    table = own.facts.table
    pairs: list[Pair] = []
    known: set[tuple[int, int]] = set()
    for finding, column in _SAME.items():
        same = [pair for pair in exact_pairs(table[column].tolist()) if pair not in known]
        known.update(same)
        pairs += [(finding, *pair, 1.0) for pair in same]
    copies = {second for _, _, second, _ in pairs}
    rows = np.array([row for row in own.readable.index if row not in copies], dtype=np.int64)
    bar = progress(f"comparing the images of {own.entry.name}") if progress else None
    near = find_near(own.facts.thumbnails[rows], progress=bar)
    return pairs + [
        ("near_duplicate", int(rows[first]), int(rows[second]), value)
        for first, second, value in near.itertuples(index=False, name=None)
    ]


def list_copies(own: Examined, pairs: Sequence[Pair], linked: Sequence[Sequence[int]]) -> Iterator[Row]:
    """List copies by kind, label conflicts, and copies across the publisher's subsets.

    `pairs` is the result of `find_copies`, and `linked` contains the rows of each group of copies.
    """
    name = own.index["image_id"].to_numpy(dtype=object)
    group_of = {row: number for number, members in enumerate(linked, 1) for row in members}
    for finding, first, second, value in pairs:
        lesion = _compare_lesions(own, first, second)
        yield finding, group_of[first], name[first], name[second], value, lesion
        yield finding, group_of[first], name[second], name[first], value, lesion
    for number, members in enumerate(linked, 1):
        group = own.index.iloc[list(members)]
        for finding, column in (("label_conflict", "diagnosis"), ("copies_across_parts", "part")):
            values = group[column].dropna()
            values = values[values != ""]
            if values.nunique() > 1:
                for image_id, value in zip(group["image_id"], group[column], strict=True):
                    yield finding, number, image_id, "", np.nan, str(value)


def _compare_lesions(own: Examined, first_row: int, second_row: int) -> str:
    """Return whether two images show one lesion, "" without lesion ids."""
    first, second = own.index.iloc[first_row], own.index.iloc[second_row]
    if first["lesion_id"] == first["image_id"] and second["lesion_id"] == second["image_id"]:
        return ""
    return "one lesion" if first["lesion_id"] == second["lesion_id"] else "different lesions"


def list_lesions(own: Examined) -> Iterator[Row]:
    """List findings about lesions and patients.

    The findings are lesions with several images, lesions and patients in several subsets, and lesions of several patients.
    """
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


def list_gaps(own: Examined) -> Iterator[Row]:
    """List unusable files and missing metadata."""
    index, table = own.index, own.facts.table
    for finding, column in (("unreadable", "error"), ("bad_mask", "mask_error")):
        for image_id, error in table.loc[table[column] != "", ["image_id", column]].itertuples(index=False):
            yield finding, 0, image_id, "", np.nan, error
    missing = {"no_diagnosis": index["diagnosis"].isna(), "no_age": index["age"].isna()}
    missing |= {f"no_{name}": index[name].str.casefold().isin(UNKNOWN) for name in ("sex", "site")}
    missing["no_mask"] = index["mask"].isna()
    for finding, gap in missing.items():
        # A column without any value is no gap: the publisher does not provide the column.
        if not gap.all():
            for image_id in index.loc[gap, "image_id"]:
                yield finding, 0, image_id, "", np.nan, ""


def list_masks(own: Examined) -> Iterator[Row]:
    """List masks that are empty, full or identical to another mask."""
    masked = own.readable[own.readable["mask_digest"] != ""]
    for finding, faulty in (("empty_mask", masked["mask_share"] == 0), ("full_mask", masked["mask_share"] > FULL)):
        for row in masked[faulty].to_dict("records"):
            yield finding, 0, row["image_id"], "", row["mask_share"], ""
    # Empty masks are all identical and listed above.
    filled = masked[masked["mask_share"] > 0]
    copied = filled[filled["mask_digest"].duplicated(keep=False)]
    for number, (_, members) in enumerate(copied.groupby("mask_digest", sort=False), 1):
        for row in members.to_dict("records"):
            yield "same_mask", number, row["image_id"], "", row["mask_share"], f"{len(members)} images"


def find_in_other(own: Examined, other: Examined, progress: ProgressBar | None) -> dict[int, Match]:
    """Find the best copy of each image in the other data set.

    The keys are sorted rows of the index; images without a copy are left out.
    """
    images, other_images = own.readable, other.readable
    matches: dict[int, Match] = {}
    bar = progress(f"comparing {own.entry.name} with {other.entry.name}") if progress else None
    near = find_near(
        own.facts.thumbnails[images.index.to_numpy()],
        other.facts.thumbnails[other_images.index.to_numpy()],
        progress=bar,
    )
    for row, other_row, value in near.sort_values("correlation").itertuples(index=False, name=None):
        matches[int(images.index[row])] = int(other_images.index[other_row]), value, "near_duplicate"
    for kind, column in reversed(_SAME.items()):
        where = {digest: row for row, digest in zip(other_images.index[::-1], other_images[column][::-1], strict=True)}
        matches |= {
            int(row): (int(where[digest]), 1.0, kind)
            for row, digest in zip(images.index, images[column], strict=True)
            if digest in where
        }
    return dict(sorted(matches.items()))


def list_in_other(own: Examined, other: Examined, matches: Mapping[int, Match]) -> Iterator[Row]:
    """List the images that the other data set contains, from `find_in_other`."""
    for number, (row, (copy, value, kind)) in enumerate(matches.items(), 1):
        label, other_label = own.index["diagnosis"].iloc[row], other.index["diagnosis"].iloc[copy]
        detail = f"{kind.replace('_', ' ')}; here {label or 'no diagnosis'}, there {other_label or 'no diagnosis'}"
        yield "in_other", number, own.index["image_id"].iloc[row], other.index["image_id"].iloc[copy], value, detail


def list_lesions_by_other(
    own: Examined, other: Examined, matches: Mapping[int, Match], lesions: pd.Series
) -> Iterator[Row]:
    """List images of one lesion by ids of the other data set.

    Lesions in several of the publisher's subsets are a second finding. `lesions` (N,) is the result of `groups_from_other`.
    """
    groups = group_rows(lesions)
    subsets = own.index["part"]
    across = [rows for rows in groups if subsets.iloc[rows][subsets.iloc[rows] != ""].nunique() > 1]
    for finding, listed in (("lesion_by_other", groups), ("across_parts_by_other", across)):
        for number, rows in enumerate(listed, 1):
            for row in rows:
                subset = subsets.iloc[row]
                copy = other.index["image_id"].iloc[matches[row][0]]
                detail = f"{lesions.iloc[row]}: {subset}" if subset else str(lesions.iloc[row])
                yield finding, number, own.index["image_id"].iloc[row], copy, np.nan, detail
