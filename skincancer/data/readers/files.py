"""Tables, image lists and mask lists of a data set."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from skincancer.data.image_files import ImageSearch, check_links, check_names
from skincancer.data.index import name_first
from skincancer.errors import DataError


def read_csv(path: Path, required: Iterable[str] = (), columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a comma- or tab-separated table as strings.

    Empty cells become "".

    Args:
        path: file of the table.
        required: columns that the header must contain.
        columns: names of the columns of a table without a header.

    Raises:
        DataError: The file cannot be read as such a table, is empty, repeats a column, lacks a required column, or has a
            row of another length than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = "\t" if "\t" in file.readline() else ","
            file.seek(0)
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, delimiter=separator) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if not lines:
        raise DataError(f"{path} is empty")
    header, *rows = [list(columns), *lines] if columns else lines
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path} has the column {repeated[0]!r} more than once")
    missing = [name for name in required if name not in header]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; its columns are {', '.join(header)}")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise DataError(f"{path}: row {number} after the header has {len(row)} columns instead of {len(header)}")
    return pd.DataFrame({name: [row[i] for row in rows] for i, name in enumerate(header)}, dtype=object)


def list_images(folder: Path, search: ImageSearch) -> dict[str, Path]:
    """List the image files directly in a folder by image id.

    The image id is the file name without extension. Masks, other files and hidden files are left out.

    Raises:
        DataError: Two files have the same id, a link is broken, or a name is not valid UTF-8.
    """
    images: dict[str, Path] = {}
    paths = search.list_images(folder)
    check_names(paths)
    for path in paths:
        if path.stem in images:
            raise DataError(f"{images[path.stem]} and {path} have the same image id; keep one file")
        images[path.stem] = path
    return images


def list_masks(folder: Path) -> dict[str, Path]:
    """List the masks `<image id>_segmentation.png` directly in a folder by image id.

    The case of the ending does not matter. Other files and hidden files are ignored.

    Raises:
        DataError: Two files belong to one image, or a link is broken.
    """
    ending = "_segmentation.png"
    masks: dict[str, Path] = {}
    for path in (Path(entry.path) for entry in ImageSearch().list_entries(folder)):
        if path.name.lower().endswith(ending):
            image_id = path.name[: -len(ending)]
            if image_id in masks:
                raise DataError(f"{masks[image_id]} and {path} are masks of the same image; keep one file")
            masks[image_id] = path
    return masks


def find_folder(root: Path, name: str) -> Path | None:
    """Find the folder of an archive, at the root or one level deeper.

    Raises:
        DataError: The folder is a broken link.
    """
    check_links([root / name])
    return next((path for path in (root / name / name, root / name) if path.is_dir()), None)


def find_table(root: Path, name: str, *folders: str) -> Path | None:
    """Find a table in the root, or in the folder of an archive."""
    places = [root, *(place for folder in folders if (place := find_folder(root, folder)))]
    return next((place / name for place in places if (place / name).is_file()), None)


def check_match(
    images: Iterable[str], others: Iterable[str], source: Path, hint: str = "", kind: Literal["row", "mask"] = "row"
) -> None:
    """Check that images and table rows, or images and masks, have the same ids.

    Args:
        images: Ids of the images.
        others: Ids of the rows or masks.
        source: Table or folder of masks, for the message.
        hint: Remedy, appended to the message; starts with a space.
        kind: Meaning of `others`.

    Raises:
        DataError: Images without a row (mask), or rows (masks) without an image; with their number and first ids.
    """
    with_image, with_other = set(images), set(others)
    for lacking, what in (
        (with_other - with_image, f"{kind}s without an image"),
        (with_image - with_other, f"images without a {kind}"),
    ):
        if lacking:
            raise DataError(f"{source}: {len(lacking)} {what}: {name_first(sorted(lacking))}.{hint}")
