"""Groups of images of one lesion or patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.duplicates import link
from skincancer.data.index import name_first
from skincancer.data.readers.files import read_csv
from skincancer.data.splits import hash_rows
from skincancer.errors import DataError

Names = npt.NDArray[np.object_]


def known_lesions(index: pd.DataFrame) -> pd.Series:
    """Return which images have a known lesion, bool (N,).

    A lesion is known if its id differs from the image id, or several images share it.
    """
    return (index["lesion_id"] != index["image_id"]) | index["lesion_id"].duplicated(keep=False)


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
        DataError: The file is missing or cannot be read, lacks a column, or has an empty group.
    """
    if not path.is_file():
        raise DataError(
            f"data.groups is {path}, which is not a file; expected a CSV file with the columns image_id and group. prepare --audit "
            "--write-groups FILE writes such a file."
        )
    table = read_csv(path, required=("image_id", "group"))
    if (table["group"] == "").any():
        raise DataError(f"{path}: images without a group: {name_first(table.loc[table['group'] == '', 'image_id'])}")
    return table


def merge_groups(index: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, str]:
    """Merge the lesions of images in the same group of a table.

    Args:
        index: Finished index.
        path: CSV file with the columns `image_id` and `group`, as written by an audit. An image may be in several
            groups. All linked lesions become one lesion, with the smallest of their ids.

    Returns:
        Index with merged `lesion_id`, and the sha256 (hex) of the rows of the table, independent of their order.

    Raises:
        DataError: The table cannot be read, has an empty group, or contains an image that is not in the index.
    """
    table = read_groups(path)
    position = {image_id: number for number, image_id in enumerate(index["image_id"])}
    unknown = sorted(set(table["image_id"]) - set(position))
    if unknown:
        raise DataError(f"{path} contains {len(unknown)} images that are not in the data set: {name_first(unknown)}")

    groups = [[position[image_id] for image_id in images] for _, images in table.groupby("group")["image_id"]]
    merged = unite(index["lesion_id"], groups)
    digest = hash_rows(sorted(set(zip(table["image_id"], table["group"], strict=True))))
    return index.assign(lesion_id=pd.Series(merged, index=index.index, dtype=object)), digest


def merge_patients(index: pd.DataFrame) -> pd.DataFrame:
    """Merge all lesions of a known patient into one, named `patient ID`.

    Lesions of one patient share skin, camera and physician. Therefore no patient may be in two subsets of a split, and
    confidence intervals resample patients.

    Raises:
        DataError: A lesion has several patients, or some of its images have a patient and others have none.
    """
    known = index["patient_id"] != ""
    if not known.any():
        return index
    patients = index.groupby("lesion_id")["patient_id"].nunique()
    for lesion in patients.index[patients > 1]:
        names = sorted(set(index.loc[index["lesion_id"] == lesion, "patient_id"]))
        raise DataError(
            f"the images of lesion {lesion} have the patients {name_first(map(repr, names))}; expected one patient per "
            "lesion. Fix patient_id or lesion_id in the table."
        )
    return index.assign(lesion_id=index["lesion_id"].mask(known, "patient " + index["patient_id"]))
