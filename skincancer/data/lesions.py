"""Which images show one lesion, by whatever is known of it: the publisher's ids, its patients, copies, another data set's ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.duplicates import link

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
