"""Index of a data set: a pandas table with one row per image."""

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

# Names of the three subsets in published folders and tables.
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
    """Join the first values for a message, with the number of further values."""
    texts = [str(value) for value in values]
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return ", ".join(texts[:count]) + more


def finish_index(table: pd.DataFrame, *, dataset: str, classes: tuple[str, ...]) -> pd.DataFrame:
    """Check and normalise the table of a reader.

    Args:
        table: Any columns of `COLUMNS`, at least `image_id` and `image`. Missing values are None, NaN or "".
        dataset: Name of the data set, for messages.
        classes: Allowed diagnoses; empty allows any.

    Returns:
        Table with exactly `COLUMNS` and a RangeIndex, sorted by `image_id`. Text columns contain str objects. If
        unknown, `mask` and `diagnosis` are None, `lesion_id` is the image_id, and `part` (train, val or test),
        `patient_id`, `sex`, `site` and `dx_type` are "". `age` (years) and `mm_per_px` (pixel size in the original
        image) are float64 with NaN.

    Raises:
        DataError: The table is empty, an id is empty or repeated, a diagnosis is not in the classes, or a subset, an age
            or a size cannot be parsed.
        ValueError: The reader returns a column that is not in `COLUMNS`, or lacks `image_id` or `image`.
    """
    unknown = set(table.columns) - set(COLUMNS)
    if unknown or not {"image_id", "image"} <= set(table.columns):
        raise ValueError(f"the reader of {dataset} returned the columns {list(table.columns)}; expected {COLUMNS}")
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
            "Every image needs a unique id; delete the copies."
        )

    diagnoses = text.get("diagnosis", blank)
    for label in sorted(set(diagnoses) - {""} - set(classes)) if classes else ():
        images = [image_id for image_id, diagnosis in zip(ids, diagnoses, strict=True) if diagnosis == label]
        raise DataError(
            f"{dataset}: the diagnosis {label!r} of {len(images)} images ({name_first(images)}) is not one of its "
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
            "the pixel size in mm, above 0",
        ),
    }
    columns |= {name: text.get(name, blank) for name in ("patient_id", "sex", "site", "dx_type")}
    # Text columns have dtype object, because pandas 3 converts None to NaN in its string dtype.
    finished = pd.DataFrame({name: pd.Series(columns[name], dtype=object) for name in COLUMNS})
    finished = finished.astype({"age": "float64", "mm_per_px": "float64"})
    return finished.sort_values("image_id", kind="stable", ignore_index=True)


def _parts(texts: list[str], ids: list[str], dataset: str) -> list[str]:
    parts = []
    for image_id, part in zip(ids, texts, strict=True):
        if part and part.casefold() not in PARTS:
            raise DataError(f"{dataset}: the part of image {image_id} is {part!r}; expected train, val, test or empty")
        parts.append(PARTS[part.casefold()] if part else "")
    return parts


def _numbers(
    texts: list[str], ids: list[str], name: str, dataset: str, allowed: Callable[[float], bool], expected: str
) -> list[float]:
    numbers = []
    for image_id, text in zip(ids, texts, strict=True):
        try:
            number = math.nan if text.casefold() in UNKNOWN else float(text)
            valid = math.isnan(number) or allowed(number)
        except ValueError:
            valid = False
        if not valid:
            raise DataError(f"{dataset}: {name} of image {image_id} is {text!r}; expected {expected}, or empty")
        numbers.append(number)
    return numbers


def classes_of(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the sorted diagnoses of an index, for data sets without fixed classes."""
    return tuple(sorted({str(value) for value in table.get("diagnosis", ()) if not pd.isna(value) and value != ""}))


def index_hash(index: pd.DataFrame) -> str:
    """Return the sha256 (hex) of ids, diagnoses and lesion ids, independent of row order."""
    columns = (index["image_id"], index["diagnosis"], index["lesion_id"])
    rows = sorted([i, "" if pd.isna(d) else d, g] for i, d, g in zip(*columns, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def load_index(dataset: Dataset, root: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read a data set, and return its finished index and classes.

    Args:
        dataset: Catalog entry.
        root: Folder of the files, for `csv` also the table. Paths in the index are relative to `image_root(root)`.

    Raises:
        DataError: The files do not have the expected layout, or `finish_index` rejects the table.
    """
    module, function = dataset.reader.split(":")
    table: pd.DataFrame = getattr(importlib.import_module(module), function)(root)
    classes = dataset.classes or classes_of(table)
    return finish_index(table, dataset=dataset.name, classes=classes), classes


def image_root(root: Path) -> Path:
    """Return the base folder of the paths in the index."""
    return root.parent if root.is_file() else root


def find_root(dataset: Dataset, root: str | None, env: str | None) -> Path:
    """Return the folder of a data set.

    Searched are `root`, else `env`/<name>, else data/<name> in the working directory.

    Args:
        dataset: Catalog entry.
        root: Value of `--data.root`; if set, no other place is searched.
        env: Value of the environment variable SKINCANCER_DATA.

    Raises:
        DataError: No place contains files; with all places, the download instructions and the expected layout.
    """
    searched = []
    for source, place in data_places(dataset.name, root, env).items():
        if holds_files(place):
            return place
        if place.is_file() and dataset.name == "csv":
            return place
        state = "is empty" if place.is_dir() else "is a file" if place.is_file() else "does not exist"
        searched.append(f"  {place} ({source}) {state}")
    if not root and not env:
        searched.append(f"  $SKINCANCER_DATA/{dataset.name}: SKINCANCER_DATA is not set")
    command = f"python -m skincancer.prepare {dataset.name} --download" + (
        f" --data.root {shlex.quote(root)}" if root else ""
    )
    download = f"Or download it with: {command}\n" if dataset.downloads else ""
    raise DataError(
        f"{dataset.title} ({dataset.name}) was not found. Searched places:\n"
        + "\n".join(searched)
        + f"\nSource: {dataset.how_to_get}\n{download}Expected files: {dataset.layout}."
    )


def add_target(
    index: pd.DataFrame, dataset: Dataset, classes: tuple[str, ...], target: str, malignant: tuple[str, ...] = ()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Add the column `label`, and return the names of its classes.

    Labels are int64, and -1 without a diagnosis.

    Args:
        index: Finished index.
        dataset: Catalog entry.
        classes: Diagnoses from `load_index`.
        target: "diagnosis": the label is the position in `classes`. "malignancy": 0 benign, 1 malignant.
        malignant: `data.malignant`, the malignant diagnoses; if empty, those of the catalog.

    Raises:
        ConfigError: The target or a malignant class is unknown, or no class, or every class, counts as malignant.
    """
    for name in malignant:
        if name not in classes:
            raise ConfigError(
                f"data.malignant contains {name!r}, which is not a class of {dataset.name}.{nearest(name, classes)} "
                f"Its classes are {', '.join(classes) or 'none'}."
            )
    if target == "diagnosis":
        names, labels = classes, {name: position for position, name in enumerate(classes)}
    elif target == "malignancy":
        positive = set(malignant or dataset.malignant)
        if not positive:
            raise ConfigError(
                f"data.target is malignancy, but the malignant classes of {dataset.name} are unknown. "
                f"Set --data.malignant; its classes are {', '.join(classes) or 'none'}."
            )
        if positive >= set(classes):
            raise ConfigError(f"data.malignant contains every class of {dataset.name}; at least one must be benign")
        names, labels = ("benign", "malignant"), {name: int(name in positive) for name in classes}
    else:
        raise ConfigError(
            f"data.target is {target!r}; expected diagnosis or malignancy.{nearest(target, ('diagnosis', 'malignancy'))}"
        )
    label = [labels.get(value, -1) for value in index["diagnosis"]]
    return index.assign(label=pd.Series(label, index=index.index, dtype="int64")), names
