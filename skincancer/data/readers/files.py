"""Tables, image lists and mask lists of a data set."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd

from skincancer.data.index import name_first
from skincancer.errors import DataError


def read_csv(path: Path, required: Iterable[str] = ()) -> pd.DataFrame:
    """Read a comma- or tab-separated table as strings.

    Empty cells become "".

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
    header, *rows = lines
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


def list_jpegs(folder: Path) -> dict[str, Path]:
    """List the JPEG files directly in a folder by image id.

    The image id is the file name without extension. Other files and hidden files are ignored.

    Raises:
        DataError: Two files have the same id.
    """
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg") and not path.name.startswith("."):
            if path.stem in images:
                raise DataError(f"{images[path.stem]} and {path} have the same image id; keep one file")
            images[path.stem] = path
    return images


def list_masks(folder: Path) -> dict[str, Path]:
    """List the masks `<image id>_segmentation.png` directly in a folder by image id.

    The case of the ending does not matter. Other files and hidden files are ignored.

    Raises:
        DataError: Two files belong to one image.
    """
    ending = "_segmentation.png"
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.lower().endswith(ending) and not path.name.startswith("."):
            image_id = path.name[: -len(ending)]
            if image_id in masks:
                raise DataError(f"{masks[image_id]} and {path} are masks of the same image; keep one file")
            masks[image_id] = path
    return masks


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
