"""Groups of images of one lesion or patient."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skincancer.data.duplicates import link
from skincancer.data.index import name_first
from skincancer.data.readers.files import read_csv
from skincancer.data.splits import hash_rows
from skincancer.errors import DataError

Names = npt.NDArray[np.object_]


def known_lesions(index: pd.DataFrame) -> pd.Series:
    """Say of which images the lesion is known (N,): its id is not the image's own, or other images have it too."""
    return (index["lesion_id"] != index["image_id"]) | index["lesion_id"].duplicated(keep=False)


def unite(names: Sequence[str] | Names | pd.Series, groups: Iterable[Sequence[int]]) -> Names:
    """Return names (N,) in which those of the positions of a group are one, the smallest: directly, or by other groups.

    Args:
        names: (N,), such as the lesion of each image.
        groups: positions that belong together, whatever their names.
    """
    found = np.asarray(names, dtype=object).copy()
    first: dict[str, int] = {}
    pairs = [(first.setdefault(name, position), position) for position, name in enumerate(found)]
    pairs += [(members[0], other) for members in groups for other in members[1:]]
    for members in link(len(found), pairs):
        found[members] = min(found[members])
    return found


def group_rows(names: pd.Series) -> list[list[int]]:
    """Return the positions of each name that at least two rows have; "" is no name."""
    rows = pd.Series(range(len(names)), index=names.to_numpy(dtype=object))
    rows = rows[rows.index != ""]
    return sorted(members.tolist() for _, members in rows.groupby(level=0) if len(members) > 1)


def read_groups(path: Path) -> pd.DataFrame:
    """Return the table that `data.groups` names: image_id, group.

    Raises:
        DataError: it is not there, cannot be read, lacks a column, or has an empty group.
    """
    if not path.is_file():
        raise DataError(
            f"data.groups is {path}, which is no file. It is a CSV with the columns image_id and group, such as prepare --audit "
            "--write-groups FILE writes."
        )
    table = read_csv(path, required=("image_id", "group"))
    if (table["group"] == "").any():
        raise DataError(f"{path}: images without a group: {name_first(table.loc[table['group'] == '', 'image_id'])}")
    return table


def merge_groups(index: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, str]:
    """Merge the lesions of images that a table puts into one group.

    Args:
        index: A finished index.
        path: CSV with the columns `image_id` and `group`, such as an audit writes. An image may be in several groups;
            all lesions that are linked become one, and it takes the smallest of their ids.

    Returns:
        The index with merged `lesion_id`, and the sha256 (hex) of the table's rows, in whatever order they stand.

    Raises:
        DataError: If the table cannot be read, has an empty group, or names an image that is not in the index.
    """
    table = read_groups(path)
    lesion_of = dict(zip(index["image_id"], index["lesion_id"], strict=True))
    unknown = sorted(set(table["image_id"]) - set(lesion_of))
    if unknown:
        raise DataError(f"{path} names {len(unknown)} images that are not in the data set: {name_first(unknown)}")

    lesions, groups = sorted(set(lesion_of.values())), sorted(set(table["group"]))
    node = {lesion: number for number, lesion in enumerate(lesions)}
    group_node = {group: len(lesions) + number for number, group in enumerate(groups)}
    rows = [node[lesion_of[image_id]] for image_id in table["image_id"]]
    columns = [group_node[group] for group in table["group"]]
    size = len(lesions) + len(groups)
    _, component = connected_components(
        coo_array(([1] * len(rows), (rows, columns)), shape=(size, size)), directed=False
    )
    smallest: dict[int, str] = {}
    for lesion in lesions:
        smallest.setdefault(component[node[lesion]], lesion)
    merged = [smallest[component[node[lesion]]] for lesion in index["lesion_id"]]
    digest = hash_rows(sorted(set(zip(table["image_id"], table["group"], strict=True))))
    return index.assign(lesion_id=pd.Series(merged, index=index.index, dtype=object)), digest


def merge_patients(index: pd.DataFrame) -> pd.DataFrame:
    """Return a finished index in which all lesions of a known patient are one, `patient ID`.

    Skin, camera and physician are the patient's: where one lesion is known, the others are half known. So no patient may be on two
    sides of a split, and intervals draw patients.

    Raises:
        DataError: a lesion is of several patients, or of one in some of its images and of none in others.
    """
    known = index["patient_id"] != ""
    if not known.any():
        return index
    patients = index.groupby("lesion_id")["patient_id"].nunique()
    for lesion in patients.index[patients > 1]:
        names = sorted(set(index.loc[index["lesion_id"] == lesion, "patient_id"]))
        raise DataError(
            f"the images of lesion {lesion} name the patients {name_first(map(repr, names))}; a lesion is of one patient. "
            "Mend patient_id or lesion_id in the table."
        )
    return index.assign(lesion_id=index["lesion_id"].mask(known, "patient " + index["patient_id"]))
