"""The index: one pandas table, a row an image, that everything after the readers works from."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from skincancer.data.catalog import Dataset
from skincancer.errors import ConfigError, DataError, nearest
from skincancer.system.paths import data_places, holds_files

COLUMNS = (
    "image_id", "image", "mask", "diagnosis", "lesion_id", "patient_id", "part", "age", "sex", "site", "dx_type",
    "mm_per_px",
)  # fmt: skip

# How publishers spell the three parts, as folder names and in tables.
PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

UNKNOWN = ("", "unknown", "nan", "na", "none")


def name_first(values: Iterable[object], count: int = 5) -> str:
    """Return the first values as text for an error message, with the number of those left out."""
    texts = [str(value) for value in values]
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return ", ".join(texts[:count]) + more


def finish_index(table: pd.DataFrame, *, dataset: str, classes: tuple[str, ...]) -> pd.DataFrame:
    """Check and normalise the table that a reader returns.

    Args:
        table: Any subset of `COLUMNS` with at least `image_id` and `image`; missing values as None, NaN or "".
        dataset: Name of the data set, for messages.
        classes: Diagnoses that may occur; empty allows any.

    Returns:
        A table with exactly `COLUMNS` and a RangeIndex, sorted by `image_id`. Text columns hold str objects; `mask`
        and `diagnosis` hold None where absent, `lesion_id` the image_id where unknown, `part` is train, val, test or
        "", `patient_id`, `sex`, `site` and `dx_type` are "" where unknown, `age` (years) and `mm_per_px` (the size of a
        px of the image) are float64 with NaN.

    Raises:
        DataError: If the table is empty, an id occurs twice or is empty, a diagnosis is outside the classes, or a
            part, an age or a size cannot be understood.
        ValueError: If a reader returns a column that is not in `COLUMNS`, or lacks `image_id` or `image`.
    """
    unknown = set(table.columns) - set(COLUMNS)
    if unknown or not {"image_id", "image"} <= set(table.columns):
        raise ValueError(f"the reader of {dataset} returned the columns {list(table.columns)}; allowed are {COLUMNS}")
    if table.empty:
        raise DataError(f"{dataset}: no image was found")

    text = {
        name: ["" if pd.isna(value) else str(value) for value in table[name]]
        for name in COLUMNS
        if name in table.columns
    }
    blank = [""] * len(table)
    ids = text["image_id"]
    if "" in ids or "" in text["image"]:
        raise DataError(f"{dataset}: a row has no image_id or no image path")
    repeated = pd.Series(ids, dtype=object)
    repeated = repeated[repeated.duplicated()]
    if len(repeated):
        raise DataError(
            f"{dataset}: {repeated.nunique()} image ids occur more than once: {name_first(repeated.unique())}. "
            "Every image needs an id of its own; remove the copies."
        )

    diagnoses = text.get("diagnosis", blank)
    for label in sorted(set(diagnoses) - {""} - set(classes)) if classes else ():
        where = [image_id for image_id, given in zip(ids, diagnoses, strict=True) if given == label]
        raise DataError(
            f"{dataset}: the diagnosis {label!r} of {len(where)} images ({name_first(where)}) is not one of its "
            f"classes {', '.join(classes)}.{nearest(label, classes)}"
        )

    columns: dict[str, list[str] | list[str | None] | list[float]] = {
        "image_id": ids,
        "image": text["image"],
        "mask": [value or None for value in text.get("mask", blank)],
        "diagnosis": [value or None for value in diagnoses],
        "lesion_id": [lesion or own for lesion, own in zip(text.get("lesion_id", blank), ids, strict=True)],
        "part": _parts(text.get("part", blank), ids, dataset),
        "age": _numbers(text.get("age", blank), ids, "the age", dataset, lambda years: 0 <= years <= 150, "in years"),
        "mm_per_px": _numbers(
            text.get("mm_per_px", blank),
            ids,
            "mm_per_px",
            dataset,
            lambda mm: 0 < mm < math.inf,
            "the size of a px in mm, above 0",
        ),
    }
    columns |= {name: text.get(name, blank) for name in ("patient_id", "sex", "site", "dx_type")}
    # dtype object everywhere but in numbers: pandas 3 would turn None into NaN in its own text type
    finished = pd.DataFrame({name: pd.Series(columns[name], dtype=object) for name in COLUMNS})
    finished = finished.astype({"age": "float64", "mm_per_px": "float64"})
    return finished.sort_values("image_id", kind="stable", ignore_index=True)


def _parts(given: list[str], ids: list[str], dataset: str) -> list[str]:
    parts = []
    for image_id, part in zip(ids, given, strict=True):
        if part and part.casefold() not in PARTS:
            raise DataError(
                f"{dataset}: the part of image {image_id} is {part!r}; it must be train, val, test or empty"
            )
        parts.append(PARTS[part.casefold()] if part else "")
    return parts


def _numbers(
    given: list[str], ids: list[str], what: str, dataset: str, allowed: Callable[[float], bool], must: str
) -> list[float]:
    numbers = []
    for image_id, text in zip(ids, given, strict=True):
        try:
            number = math.nan if text.casefold() in UNKNOWN else float(text)
            fits = math.isnan(number) or allowed(number)
        except ValueError:
            fits = False
        if not fits:
            raise DataError(f"{dataset}: {what} of image {image_id} is {text!r}; it must be {must}, or empty")
        numbers.append(number)
    return numbers


def classes_of(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the diagnoses that occur in an index table, sorted: the classes of a data set that has no fixed ones."""
    return tuple(sorted({str(value) for value in table.get("diagnosis", ()) if not pd.isna(value) and value != ""}))


def index_hash(index: pd.DataFrame) -> str:
    """Return the sha256 (hex) of ids, diagnoses and lesion ids: the same on every machine, whatever the row order."""
    columns = (index["image_id"], index["diagnosis"], index["lesion_id"])
    rows = sorted([i, "" if pd.isna(d) else d, g] for i, d, g in zip(*columns, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def load_index(dataset: Dataset, root: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read a data set and return its finished index and the names of its classes.

    Args:
        dataset: The catalog entry.
        root: Folder with the files (for `csv` also the table itself); paths in the index are relative to
            `image_root(root)`.

    Raises:
        DataError: If the files are not laid out as the reader expects, or the index does not pass `finish_index`.
    """
    module, function = dataset.reader.split(":")
    table: pd.DataFrame = getattr(importlib.import_module(module), function)(root)
    classes = dataset.classes or classes_of(table)
    return finish_index(table, dataset=dataset.name, classes=classes), classes


def image_root(root: Path) -> Path:
    """Return the folder that paths of the index are relative to: the root, or its folder where the root is a file."""
    return root.parent if root.is_file() else root


def find_root(dataset: Dataset, root: str | None, env: str | None) -> Path:
    """Return the folder of a data set: `root`, else `env`/<name>, else data/<name> under the working directory.

    Args:
        dataset: The catalog entry.
        root: Value of `--data.root`; where it is given, no other place is tried.
        env: Value of the environment variable SKINCANCER_DATA.

    Raises:
        DataError: If no place holds anything; names every place, how to get the data, and the layout expected.
    """
    looked = []
    for source, place in data_places(dataset.name, root, env).items():
        if holds_files(place):
            return place
        if place.is_file() and dataset.name == "csv":
            return place
        state = "is empty" if place.is_dir() else "is a file" if place.is_file() else "does not exist"
        looked.append(f"  {place} ({source}) {state}")
    if not root and not env:
        looked.append(f"  $SKINCANCER_DATA/{dataset.name}: SKINCANCER_DATA is not set")
    command = f"python -m skincancer.prepare {dataset.name} --download" + (
        f" --data.root {shlex.quote(root)}" if root else ""
    )
    fetch = f"Or let it be fetched: {command}\n" if dataset.downloads else ""
    raise DataError(
        f"{dataset.title} ({dataset.name}) was not found. Looked at\n"
        + "\n".join(looked)
        + f"\nTo get it: {dataset.how_to_get}\n{fetch}Expected there: {dataset.layout}."
    )


def add_target(
    index: pd.DataFrame, dataset: Dataset, classes: tuple[str, ...], target: str, malignant: tuple[str, ...] = ()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Add the column `label` (int64; -1 where the diagnosis is absent) and return the class names that it counts.

    Args:
        index: A finished index.
        dataset: Its catalog entry.
        classes: The diagnoses, as returned by `load_index`.
        target: "diagnosis": the label is the position in `classes`. "malignancy": 0 benign, 1 malignant.
        malignant: `data.malignant`: the diagnoses that count as malignant; where empty, those of the catalog.

    Raises:
        ConfigError: If the target or a malignant class is unknown, or malignancy cannot be told from the diagnoses.
    """
    for name in malignant:
        if name not in classes:
            raise ConfigError(
                f"data.malignant names {name!r}, which is not a class of {dataset.name}.{nearest(name, classes)} "
                f"Its classes are {', '.join(classes) or 'none'}."
            )
    if target == "diagnosis":
        names, labels = classes, {name: position for position, name in enumerate(classes)}
    elif target == "malignancy":
        positive = set(malignant or dataset.malignant)
        if not positive:
            raise ConfigError(
                f"data.target is malignancy, but which classes of {dataset.name} are malignant is not known. "
                f"Name them with --data.malignant; its classes are {', '.join(classes) or 'none'}."
            )
        if positive >= set(classes):
            raise ConfigError(f"data.malignant names every class of {dataset.name}; at least one must be benign")
        names, labels = ("benign", "malignant"), {name: int(name in positive) for name in classes}
    else:
        raise ConfigError(
            f"data.target is {target!r}; choose diagnosis or malignancy.{nearest(target, ('diagnosis', 'malignancy'))}"
        )
    label = [labels.get(value, -1) for value in index["diagnosis"]]
    return index.assign(label=pd.Series(label, index=index.index, dtype="int64")), names
