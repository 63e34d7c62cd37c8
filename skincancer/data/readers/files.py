"""Tables, image lists and mask lists of a data set."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from skincancer.data.image_files import ImageSearch, check_links, check_names
from skincancer.data.index import name_first
from skincancer.errors import DataError

# A number with a decimal comma, as German spreadsheets write it in tables with semicolons.
_DECIMAL_COMMA = re.compile(r"(-?\d+),(\d+)")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_csv(path: Path, required: Iterable[str] = (), columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table with commas, semicolons or tabs as strings.

    The encoding is UTF-8, or UTF-16 with a byte order mark. Empty cells become "". Rows of empty cells are skipped. In a
    table with semicolons, a column of numbers with decimal commas gets decimal points.

    Args:
        path: file of the table.
        required: columns that the header must contain.
        columns: names of the columns of a table without a header.

    Raises:
        DataError: The file cannot be read as such a table, is empty, repeats a column, lacks a required column, has a row
            of another length than the header, an unbalanced quote, or a NUL character.
    """
    text = _read_text(path)
    first = text.lstrip("\r\n").partition("\n")[0]
    separator = "\t" if "\t" in first else ";" if first.count(";") > first.count(",") else ","
    lines, end = [], 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for line in reader:
            row, end = [cell.strip() for cell in line], reader.line_num
            if any(row):
                lines.append(row)
    except csv.Error as error:
        raise DataError(
            f'{path} has an unbalanced quote (") in the row that begins in line {end + 1}: {error}. Close the quote, and write a '
            'quote inside a cell as "".'
        ) from error
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
    cells = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    if separator == ";":
        cells = {name: _with_points(column) for name, column in cells.items()}
    return pd.DataFrame(cells, dtype=object)


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"the encoding of {path} is not UTF-8 (line {line}); it may be that of Windows (cp1252). Save the table as UTF-8: in Excel "
            f"as 'CSV UTF-8', or with iconv -f cp1252 -t utf-8 {path.name} > utf8.csv"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{path} has a NUL character in line {line}: the file is damaged or no table. Save it again as CSV."
        )
    return text


def _with_points(cells: list[str]) -> list[str]:
    """Replace the decimal commas of a column of numbers."""
    numbers = all(not cell or cell.lstrip("-").isdecimal() or _DECIMAL_COMMA.fullmatch(cell) for cell in cells)
    return [_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in cells] if numbers else cells


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
