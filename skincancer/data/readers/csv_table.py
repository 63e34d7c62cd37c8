"""Reader for a user's own table: a CSV file with the columns of the index, beside or above its images."""

from __future__ import annotations

import difflib
from pathlib import Path, PurePosixPath

import pandas as pd

from skincancer.data.index import COLUMNS, name_first
from skincancer.data.readers.files import read_csv
from skincancer.errors import DataError


def read(root: Path) -> pd.DataFrame:
    """Read index.csv, or else the single CSV file, in the root; the root may also be the file itself.

    `image`, and `mask` where there is one, are paths relative to the file's folder. `image_id` defaults to the image's
    path without extension. `diagnosis` may be called `label`. A table needs a diagnosis or a mask. Columns that are
    not of the index are left out, unless the name looks like a misspelt one. Images in the folder that the table does
    not name are no error: the table chooses. Lesions of one `patient_id` stay on one side of a ratio split. `mm_per_px`
    is the size of a px of the image as its file has it, for the diameter among the hand-made features.

    Returns:
        The columns of the index that the table has, and image_id.

    Raises:
        DataError: If there is no table or more than one, a column is missing or misspelt, a path is empty or absolute,
            or a file is missing.
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
    given = table["image_id"] if "image_id" in table.columns else [""] * len(table)
    return table.assign(image_id=[image_id or own for image_id, own in zip(given, own_ids, strict=True)])


def _find_table(root: Path) -> Path:
    if root.is_file():
        return root
    if (root / "index.csv").is_file():
        return root / "index.csv"
    found = sorted(path for path in root.iterdir() if path.suffix.lower() == ".csv" and not path.name.startswith("."))
    if len(found) != 1:
        what = f"{len(found)} CSV files ({name_first(path.name for path in found)})" if found else "no CSV file"
        raise DataError(f"{root} holds {what}; name the table with --data.root FILE, or call it index.csv")
    return found[0]


def _check_columns(path: Path, given: list[str]) -> None:
    known = (*COLUMNS, "label")
    absent = [name for name in known if name not in given]
    for name in given:
        plain = name.casefold().replace(" ", "_").replace("-", "_")
        close = difflib.get_close_matches(plain, absent, n=1, cutoff=0.8) if name not in known else []
        if close:
            raise DataError(f"{path} has the column {name!r}; if that is {close[0]!r}, call it so, else rename it")
    if "image" not in given:
        raise DataError(f"{path} has no column 'image'; its columns are {', '.join(given)}")
    if "diagnosis" in given and "label" in given:
        raise DataError(f"{path} has both 'diagnosis' and 'label'; keep the one that names the class")
    if not {"diagnosis", "label", "mask"} & set(given):
        raise DataError(f"{path} has neither 'diagnosis' nor 'mask'; its columns are {', '.join(given)}")


def _check_files(path: Path, column: str, values: list[str]) -> None:
    absolute = [value for value in values if PurePosixPath(value).is_absolute()]
    if absolute:
        raise DataError(
            f"{path}: {column} must be relative to the table's folder, but is absolute: {name_first(absolute)}"
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
            f"are relative to {path.parent}: put the files there, mend the paths, or take the rows out."
        )
