"""Reader for the user's own CSV table of images."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from skincancer.data.index import COLUMNS, PARTS, UNKNOWN, is_unknown, name_first
from skincancer.data.readers.files import read_csv
from skincancer.data.readers.table_paths import ImageFiles
from skincancer.data.reading import Reading
from skincancer.data.where import parse_where, select_rows
from skincancer.errors import DataError

# Names of publishers for the columns of the index, in lower case. ISIC: isic_id, image_name, diagnosis_1, age_approx, … HAM10000: dx,
# localization. PAD-UFES-20: img_id, diagnostic, gender, region.
ALIASES = {
    "image": ("image_name", "img_id", "filename", "file_name", "filepath", "image_path", "path"),
    "image_id": ("isic_id",),
    "diagnosis": ("label", "dx", "diagnostic", "diagnosis_1", "target", "class"),
    "age": ("age_approx",),
    "sex": ("gender",),
    "site": (
        "localization", "localisation", "anatom_site_general", "anatom_site_general_challenge", "anatom_site_1", "region",
    ),
    "dx_type": ("diagnosis_confirm_type",),
    "part": ("split", "fold"),
}  # fmt: skip
# A class may be called "none" or "unknown", as in ISIC 2020.
_EMPTY = frozenset(UNKNOWN) - {"", "none", "unknown"}


def read(root: Path, reading: Reading | None = None) -> pd.DataFrame:
    """Read index.csv or the single CSV file in the root.

    `root` may also be the file itself. `image` and the optional `mask` are paths relative to the folder of the table, or to
    `data.images` (`ImageFiles`). `image_id` defaults to the path of the image without extension, and is the image if the
    table has no `image`. Other columns of the index may have one of `ALIASES`; the diagnosis may be one column of 0 and 1
    per class. A table needs a diagnosis or a mask. Other columns are not used, unless the name looks like a misspelt
    column. Images that are not listed in the table are ignored. Lesions of one `patient_id` get the same role in a ratio
    split. `mm_per_px` is the pixel size in the original image file, for the diameter among the hand-crafted features.

    Args:
        root: Folder of the table, or the table.
        reading: Condition on the rows, folder of the images, and receiver of notes.

    Returns:
        The columns of the index that the table contains, image and image_id.

    Raises:
        ConfigError: The condition is wrong, or no row fulfils it.
        DataError: There is no table or more than one, a column is missing, misspelt or ambiguous, a path is empty,
            ambiguous or outside the folder, or a file is missing.
    """
    reading = reading or Reading()
    path = _find_table(root)
    rows = read_csv(path)
    if reading.where:
        total, rows = len(rows), select_rows(rows, reading.where, str(path))
        reading.notes.append(f"data.where: {len(rows):,} of {total:,} rows of {path.name}")
    names = _match_columns(path, rows)
    table = pd.DataFrame({column: rows[name] for column, name in names.items()})
    one_hot = [] if "diagnosis" in names else _find_one_hot(rows.drop(columns=list(names.values())))
    if one_hot:
        table["diagnosis"] = rows[one_hot].apply(pd.to_numeric).idxmax(axis=1)
    if not {"diagnosis", "mask"} & set(table.columns):
        raise DataError(f"{path} has neither 'diagnosis' nor 'mask'; its columns are {', '.join(rows.columns)}")
    for name in table.columns.difference(["image", "image_id"]):
        table[name] = ["" if cell.casefold() in _EMPTY else cell for cell in table[name]]
    files = ImageFiles(path, reading.images)
    images, image_ids = files.find("image", table["image"])
    if "mask" in table.columns:
        table["mask"], _ = files.find("mask", table["mask"])
    own_ids = table["image_id"] if "image_id" in table.columns else [""] * len(table)
    columns_of: dict[str, list[str]] = {}
    for column, name in names.items():
        columns_of.setdefault(name, []).append(column)
    read_as = [
        name if columns == [name] else f"{name} as {' and '.join(columns)}" for name, columns in columns_of.items()
    ]
    used = {*names.values(), *one_hot, *(parse_where(reading.where)[1] if reading.where else ())}
    unused = [name or "a column without a name" for name in rows.columns if name not in used]
    reading.notes.append(
        f"{path.name}: read {', '.join(read_as)}" + (f", and {name_first(one_hot, 3)} as diagnosis" if one_hot else "")
    )
    if unused:
        reading.notes.append(f"{path.name}: not used: {name_first(unused, 12)}")
    return table.assign(
        image=images, image_id=[own or image_id for own, image_id in zip(own_ids, image_ids, strict=True)]
    )


def _find_table(root: Path) -> Path:
    if root.is_file():
        return root
    if (root / "index.csv").is_file():
        return root / "index.csv"
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() == ".csv" and not path.name.startswith("."))
    if len(tables) != 1:
        content = f"{len(tables)} CSV files ({name_first(path.name for path in tables)})" if tables else "no CSV file"
        raise DataError(f"{root} contains {content}; set --data.root to the table, or rename the table to index.csv")
    return tables[0]


def _match_columns(path: Path, table: pd.DataFrame) -> dict[str, str]:
    """Return the column of the table for each column of the index.

    A column with the name of the index is used even if there are aliases too.
    """
    columns = [str(name) for name in table.columns]
    if "diagnosis" in columns and "label" in columns:
        raise DataError(f"{path} has both 'diagnosis' and 'label'; keep the column with the class")
    names: dict[str, str] = {}
    for column in COLUMNS:
        aliases = [name for name in columns if _plain(name) in ALIASES.get(column, ())]
        if column == "part":
            # Numbered folds are no subsets.
            aliases = [name for name in aliases if _are_parts(table[name])]
        if column in columns:
            names[column] = column
        elif len(aliases) > 1:
            raise DataError(
                f"{path}: the columns {aliases[0]!r} and {aliases[1]!r} can both be the {column}; rename the column to use to {column!r}"
            )
        elif aliases and not (column == "image_id" and "image" in columns):
            names[column] = aliases[0]
    absent = [name for name in COLUMNS if name not in names]
    for name in columns:
        close = difflib.get_close_matches(_plain(name), absent, n=1, cutoff=0.8) if name not in names.values() else []
        if close:
            raise DataError(f"{path} has the column {name!r}; rename it to {close[0]!r}, or to another name")
    if "image_id" in names and "image" not in names:
        names = {"image": names["image_id"], **names}
    if "image" not in names:
        raise DataError(f"{path} has no column 'image'; its columns are {', '.join(columns)}")
    return names


def _plain(name: str) -> str:
    return name.casefold().replace(" ", "_").replace("-", "_")


def _are_parts(cells: Iterable[str]) -> bool:
    return all(is_unknown(cell) or cell.casefold() in PARTS for cell in cells)


def _find_one_hot(table: pd.DataFrame) -> list[str]:
    """Return the columns of one-hot labels.

    These are neighbouring columns of 0 and 1 with exactly one 1 per row, as in the tables of the ISIC challenges.

    Returns:
        Names of two or more columns, empty if there are none or several such blocks.
    """
    numbers = table.apply(pd.to_numeric, errors="coerce")
    is_binary = numbers.isin([0, 1]).all()
    blocks = [
        [str(name) for name in block.index]
        for _, block in is_binary.groupby((is_binary != is_binary.shift()).cumsum())
        if block.all() and len(block) > 1 and (numbers[block.index].sum(axis=1) == 1).all()
    ]
    return blocks[0] if len(blocks) == 1 and len(table) else []
