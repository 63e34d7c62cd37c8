"""Images of a data set that are links to the same file."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path

import pandas as pd

from skincancer.data.groups import unite
from skincancer.data.image_files import check_links, file_key


def merge_same_files(index: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, str]:
    """Merge the lesions of images that are links to the same file.

    The copies then stay in one subset of a split, and `data.leaks` decides about copies in two subsets of the publisher.

    Args:
        index: Finished index.
        root: Folder to which paths of the index are relative.

    Returns:
        Index with merged `lesion_id`, and a sentence with the counts, "" without such images.

    Raises:
        DataError: An image is a broken link.
    """
    paths = [root / image for image in index["image"]]
    check_links(paths)
    rows: dict[Hashable, list[int]] = {}
    for row, path in enumerate(paths):
        # The store reports missing files.
        if os.path.exists(path):
            rows.setdefault(file_key(path), []).append(row)
    groups = [members for members in rows.values() if len(members) > 1]
    if not groups:
        return index, ""
    merged = index.assign(lesion_id=pd.Series(unite(index["lesion_id"], groups), index=index.index, dtype=object))
    files = f"{len(groups)} file{'s' * (len(groups) > 1)}"
    return (
        merged,
        f"{sum(map(len, groups))} images are links to only {files}; the images of one file count as one lesion",
    )
