"""Groups of images of one lesion or patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.duplicates import link
from skincancer.data.index import is_unknown, name_first
from skincancer.data.readers.files import read_csv
from skincancer.data.splits import hash_rows
from skincancer.errors import DataError

Names = npt.NDArray[np.object_]

# Name of a group of all lesions of one patient, before the id of the patient.
_PATIENT = "patient "
# In the public data sets, the largest lesion has 31 images (of 25,331 in ISIC 2019) and the largest patient 115 (of 33,126 in ISIC 2020):
# at most 0.5 % of the images. A group of more than ten images that is ten times larger is rather a placeholder for unknown ids.
LARGEST_SHARE = 0.05
ALWAYS_SMALL = 10


def known_lesions(index: pd.DataFrame) -> pd.Series:
    """Return which images have a known lesion, bool (N,).

    A lesion is known if its id differs from the image id, or several images share it.
    """
    return (index["lesion_id"] != index["image_id"]) | index["lesion_id"].duplicated(keep=False)


def describe_unknown_lesions(table: pd.DataFrame) -> str:
    """Describe the images without a lesion id, "" if all images have one.

    Args:
        table: One row per image, with the columns image_id and lesion_id.
    """
    unknown = int((~known_lesions(table)).sum())
    if unknown == len(table):
        return (
            "the data have no lesion ids: each image counts as one lesion, and whether images of one lesion are in two subsets cannot be "
            "known"
        )
    if unknown:
        return (
            f"{unknown:,} of {len(table):,} images have no lesion id: each of them counts as one lesion, and whether its lesion is in "
            "another subset too cannot be known"
        )
    return ""


def group_noun(table: pd.DataFrame, plural: bool = True) -> str:
    """Return lesions, patients, or lesions or patients: the units that `lesion_id` contains after `merge_patients`."""
    is_patient = table["lesion_id"].str.startswith(_PATIENT)
    nouns = [noun for noun, present in (("lesion", not is_patient.all()), ("patient", is_patient.any())) if present]
    return " or ".join(f"{noun}s" if plural else noun for noun in nouns)


def count_images(table: pd.DataFrame, link: str = ", ") -> str:
    """Return the numbers of images and of lesions (or patients) as text.

    Args:
        table: One row per image, with the columns image_id and lesion_id.
        link: Text between the two numbers.
    """
    unknown = int((~known_lesions(table)).sum())
    if unknown == len(table):
        return f"{len(table):,} images, lesions unknown (each image counts as one)"
    text = f"{len(table):,} images{link}{table['lesion_id'].nunique():,} {group_noun(table)}"
    return text + (f" ({unknown:,} images without a lesion id count as one each)" if unknown else "")


def unite(names: Sequence[str] | Names | pd.Series, groups: Iterable[Sequence[int]]) -> Names:
    """Merge names that are linked by groups, directly or through other groups.

    Args:
        names: (N,) names, such as the lesion of each image.
        groups: Positions that belong together.

    Returns:
        (N,) names; linked positions have the smallest of their names.
    """
    merged = np.asarray(names, dtype=object).copy()
    first: dict[str, int] = {}
    pairs = [(first.setdefault(name, position), position) for position, name in enumerate(merged)]
    pairs += [(members[0], other) for members in groups for other in members[1:]]
    for members in link(len(merged), pairs):
        merged[members] = min(merged[members])
    return merged


def group_rows(names: pd.Series) -> list[list[int]]:
    """Return the positions of each name with at least two rows, except ""."""
    rows = pd.Series(range(len(names)), index=names.to_numpy(dtype=object))
    rows = rows[rows.index != ""]
    return sorted(members.tolist() for _, members in rows.groupby(level=0) if len(members) > 1)


def read_groups(path: Path) -> pd.DataFrame:
    """Read the table of `data.groups`, with the columns image_id and group.

    Raises:
        DataError: The file is missing or cannot be read, or lacks a column.
    """
    if not path.is_file():
        raise DataError(
            f"data.groups is {path}, which is not a file; expected a CSV file with the columns image_id and group. prepare --audit "
            "--write-groups FILE writes such a file."
        )
    return read_csv(path, required=("image_id", "group"))


def check_lesions(index: pd.DataFrame) -> list[tuple[str, str]]:
    """Check the lesions of an index for wrong ids, as `check_groups` does.

    A publisher may number the lesions of each patient, so that images of one lesion have the same lesion and patient.
    """
    names = index["lesion_id"].where(
        index["patient_id"] == "", index["lesion_id"] + " of patient " + index["patient_id"]
    )
    return check_groups(names.where(known_lesions(index), ""), "lesion", index["diagnosis"])


def check_merged(index: pd.DataFrame, before: pd.Series) -> list[tuple[str, str]]:
    """Check the lesions that `merge_groups` changed, as `check_groups` does.

    Args:
        index: Index with merged lesions.
        before: (N,) lesions before the merge.
    """
    lesions = index["lesion_id"]
    merged = lesions.where(lesions.isin(lesions[lesions != before]), "")
    # The lesions of a patient may have several diagnoses.
    has_patients = (index["patient_id"] != "").any()
    return check_groups(merged, "merged group", None if has_patients else index["diagnosis"])


def check_groups(names: pd.Series, kind: str, diagnoses: pd.Series | None = None) -> list[tuple[str, str]]:
    """Check for groups that span diagnoses, and for groups that are too large.

    Args:
        names: (N,) group of each image, "" for none.
        kind: Singular noun for a group.
        diagnoses: (N,) diagnosis of each image, None to skip the check of diagnoses.

    Returns:
        Title and text of each warning.
    """
    warnings = []
    known = names != ""
    if diagnoses is not None:
        kinds = diagnoses[known].groupby(names[known]).agg(lambda values: sorted(set(values.dropna())))
        mixed = [f"{name} ({', '.join(several)})" for name, several in kinds.items() if len(several) > 1]
        if mixed:
            text = f"the images of {len(mixed)} {kind}s have several diagnoses: {name_first(mixed, 3)}. Check the ids and the diagnoses."
            warnings.append((f"a {kind} with several diagnoses", text))
    sizes = names[known].value_counts()
    large = sizes[(sizes > ALWAYS_SMALL) & (sizes > LARGEST_SHARE * len(names))]
    if len(large):
        listed = name_first((f"{name} ({size:,} images)" for name, size in large.items()), 3)
        text = (
            f"{len(large)} {kind}{'s have' if len(large) > 1 else ' has'} more than {LARGEST_SHARE:.0%} of the {len(names):,} images each: "
            f"{listed}. All images of a {kind} get the same role. If the id means that the {kind} is unknown, leave the cell empty."
        )
        warnings.append((f"a {kind} of many images", text))
    return warnings


def merge_groups(index: pd.DataFrame, path: Path, is_part: bool = False) -> tuple[pd.DataFrame, str]:
    """Merge the lesions of images in the same group of a table.

    Args:
        index: Finished index.
        path: CSV file with the columns `image_id` and `group`, as written by an audit. An image may be in several
            groups. All linked lesions become one lesion, with the smallest of their ids. An unknown group, such as NA or
            an empty cell, merges nothing.
        is_part: The index is a part of the data set (`data.where`), so that the table may contain further images.

    Returns:
        Index with merged `lesion_id`, and the sha256 (hex) of the rows of the table, independent of their order.

    Raises:
        DataError: The table cannot be read, or contains an image that is not in the index.
    """
    table = read_groups(path)
    position = {image_id: number for number, image_id in enumerate(index["image_id"])}
    if is_part:
        table = table[table["image_id"].isin(position)]
    unknown = sorted(set(table["image_id"]) - set(position))
    if unknown:
        raise DataError(f"{path} contains {len(unknown)} images that are not in the data set: {name_first(unknown)}")
    table = table[~table["group"].map(is_unknown).astype(bool)]
    groups = [[position[image_id] for image_id in images] for _, images in table.groupby("group")["image_id"]]
    merged = unite(index["lesion_id"], groups)
    digest = hash_rows(sorted(set(zip(table["image_id"], table["group"], strict=True))))
    return index.assign(lesion_id=pd.Series(merged, index=index.index, dtype=object)), digest


def count_shared_ids(index: pd.DataFrame) -> int:
    """Count the lesion ids that belong to several patients."""
    known = index[index["patient_id"] != ""]
    return int((known.groupby("lesion_id")["patient_id"].nunique() > 1).sum())


def merge_patients(index: pd.DataFrame) -> pd.DataFrame:
    """Merge all lesions of a known patient into one, named `patient ID`.

    Lesions of one patient share skin, camera and physician. Therefore no patient may be in two subsets of a split, and
    confidence intervals resample patients. The same lesion id of two patients is two lesions (PAD-UFES-20: 250 ids).

    Raises:
        DataError: Some images of a lesion have a patient and others have none.
    """
    known = index["patient_id"] != ""
    if not known.any():
        return index
    has_patient = known.groupby(index["lesion_id"]).nunique()
    for lesion in has_patient.index[has_patient > 1]:
        names = sorted(set(index.loc[index["lesion_id"] == lesion, "patient_id"]))
        raise DataError(
            f"the images of lesion {lesion} have the patients {name_first(map(repr, names))}; expected a patient for all of them or "
            "for none. Fix patient_id or lesion_id in the table."
        )
    return index.assign(lesion_id=index["lesion_id"].mask(known, _PATIENT + index["patient_id"]))
