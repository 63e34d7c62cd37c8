"""Reader for the user's own CSV table of images."""

from __future__ import annotations

import difflib
from pathlib import Path, PurePosixPath

import pandas as pd

from skincancer.data.index import COLUMNS, name_first
from skincancer.data.readers.files import read_csv
from skincancer.errors import DataError


def read(root: Path) -> pd.DataFrame:
    """Read index.csv or the single CSV file in the root.

    `root` may also be the file itself. `image` and the optional `mask` are paths relative to the folder of the table.
    `image_id` defaults to the path of the image without extension. `diagnosis` may be called `label`. A table needs a
    diagnosis or a mask. Unknown columns are ignored, unless the name looks like a misspelt column. Images that are not
    listed in the table are ignored. Lesions of one `patient_id` get the same role in a ratio split. `mm_per_px` is the
    pixel size in the original image file, for the diameter among the hand-crafted features.

    Returns:
        The columns of the index that the table contains, and image_id.

    Raises:
        DataError: There is no table or more than one, a column is missing or misspelt, a path is empty or absolute, or a
            file is missing.
    """
    path = _find_table(root)
    table = read_csv(path)
    _check_columns(path, list(table.columns))
    table = table.rename(columns={"label": "diagnosis"})
    table = table[[name for name in COLUMNS if name in table.columns]]
    for name in ("image", "mask"):
        if name in table.columns:
            _check_files(path, name, list(table[name]))
    own_ids = [PurePosixPath(image).with_suffix("").as_posix() for image in table["image"]]
    image_ids = table["image_id"] if "image_id" in table.columns else [""] * len(table)
    return table.assign(image_id=[image_id or own for image_id, own in zip(image_ids, own_ids, strict=True)])


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


def _check_columns(path: Path, columns: list[str]) -> None:
    known = (*COLUMNS, "label")
    absent = [name for name in known if name not in columns]
    for name in columns:
        plain = name.casefold().replace(" ", "_").replace("-", "_")
        close = difflib.get_close_matches(plain, absent, n=1, cutoff=0.8) if name not in known else []
        if close:
            raise DataError(f"{path} has the column {name!r}; rename it to {close[0]!r}, or to another name")
    if "image" not in columns:
        raise DataError(f"{path} has no column 'image'; its columns are {', '.join(columns)}")
    if "diagnosis" in columns and "label" in columns:
        raise DataError(f"{path} has both 'diagnosis' and 'label'; keep the column with the class")
    if not {"diagnosis", "label", "mask"} & set(columns):
        raise DataError(f"{path} has neither 'diagnosis' nor 'mask'; its columns are {', '.join(columns)}")


def _check_files(path: Path, column: str, values: list[str]) -> None:
    absolute = [value for value in values if PurePosixPath(value).is_absolute()]
    if absolute:
        raise DataError(
            f"{path}: {column} is an absolute path; use a path relative to the table's folder: {name_first(absolute)}"
        )
    if column == "image" and "" in values:
        raise DataError(f"{path}: {values.count('')} rows have no image")
    missing = [
        f"{value} (row {number})"
        for number, value in enumerate(values, start=1)
        if value and not (path.parent / value).is_file()
    ]
    if missing:
        raise DataError(
            f"{path}: the {column} of {len(missing)} of {len(values)} rows after the header does not exist: {name_first(missing)}. Paths "
            f"are relative to {path.parent}: copy the files there, fix the paths, or delete the rows."
        )
