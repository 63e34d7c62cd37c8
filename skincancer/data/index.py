"""Index of a data set: one checked row per image."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from skincancer.data.catalog import Dataset
from skincancer.data.positive_class import find_positive, order_classes
from skincancer.data.reading import Reading
from skincancer.data.where import select_rows
from skincancer.errors import ConfigError, DataError, nearest
from skincancer.system.paths import data_places, holds_files

COLUMNS = (
    "image_id", "image", "mask", "diagnosis", "lesion_id", "patient_id", "part", "age", "sex", "site", "dx_type",
    "mm_per_px",
)  # fmt: skip
# Names that publishers give their subsets, as folders and in tables.
PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"
}  # fmt: skip
MM_PER_PX = "the size of a pixel in mm, above 0"
# Spellings of an unknown value in tables, in lower case.
UNKNOWN = ("", "-", "--", "?", "#n/a", "<na>", "n/a", "na", "nan", "none", "null", "unknown")


def is_unknown(text: str) -> bool:
    """Return whether a cell of a table means an unknown value, such as NA."""
    return text.strip().casefold() in UNKNOWN


def name_first(values: Iterable[object], count: int = 5) -> str:
    """Join the first values for a message, and count further ones."""
    texts = [str(value) for value in values]
    more = f" and {len(texts) - count} more" if len(texts) > count else ""
    return ", ".join(texts[:count]) + more


def finish_index(table: pd.DataFrame, *, dataset: str, classes: tuple[str, ...]) -> pd.DataFrame:
    """Check and normalise the table that a reader returns.

    Args:
        table: `image_id`, `image` and any further `COLUMNS`. Missing values are None, NaN or "".
        classes: allowed diagnoses, empty to allow any.

    Returns:
        All `COLUMNS` with a RangeIndex, sorted by `image_id`. Text columns contain str. Unknown values are None in `mask` and `diagnosis`,
        the image_id in `lesion_id`, and "" in `patient_id`, `sex`, `site` and `dx_type`. In `lesion_id` and `patient_id`, `UNKNOWN`
        spellings such as NA are unknown values too: as an id, NA would be one large lesion. `part` is train, val, test or "". `age`
        (years) and `mm_per_px` (size of an image pixel) are float64, unknown values NaN.

    Raises:
        DataError: the table is empty, an id is empty or not unique, a diagnosis is not one of the classes, or `part`, `age` or
            `mm_per_px` has a wrong value, or the reader returned an unknown column, or no `image_id` or `image`.
    """
    unknown = set(table.columns) - set(COLUMNS)
    if unknown or not {"image_id", "image"} <= set(table.columns):
        raise DataError(
            f"the reader of {dataset} returned the columns {', '.join(map(str, table.columns))}; expected image_id, image and some of "
            f"{', '.join(COLUMNS[2:])}. Fix the reader."
        )
    if table.empty:
        raise DataError(f"{dataset}: no image was found")
    text = {name: ["" if pd.isna(value) else str(value) for value in table[name]] for name in COLUMNS if name in table}
    blank = [""] * len(table)
    ids = text["image_id"]
    if "" in ids or "" in text["image"]:
        raise DataError(f"{dataset}: a row has no image_id or no image path")
    repeated = pd.Series(ids, dtype=object)
    repeated = repeated[repeated.duplicated()]
    if len(repeated):
        raise DataError(
            f"{dataset}: {repeated.nunique()} image ids occur more than once: {name_first(repeated.unique())}. "
            "Every image needs a unique id. Remove the copies."
        )
    diagnoses = text.get("diagnosis", blank)
    for label in sorted(set(diagnoses) - {""} - set(classes)) if classes else ():
        images = [image_id for image_id, diagnosis in zip(ids, diagnoses, strict=True) if diagnosis == label]
        raise DataError(
            f"{dataset}: the diagnosis of {len(images)} images ({name_first(images)}) is {label!r}; "
            f"expected one of the classes {', '.join(classes)}.{nearest(label, classes)}"
        )
    columns: dict[str, list[str] | list[str | None] | list[float]] = {
        "image_id": ids,
        "image": text["image"],
        "mask": [value or None for value in text.get("mask", blank)],
        "diagnosis": [value or None for value in diagnoses],
        "lesion_id": [
            own if is_unknown(lesion) else lesion for lesion, own in zip(text.get("lesion_id", blank), ids, strict=True)
        ],
        "patient_id": ["" if is_unknown(patient) else patient for patient in text.get("patient_id", blank)],
        "part": _parts(text.get("part", blank), ids, dataset),
        "age": _numbers(
            text.get("age", blank), ids, "the age", dataset, lambda age: 0 <= age <= 150, "the age in years"
        ),
        "mm_per_px": _numbers(
            text.get("mm_per_px", blank), ids, "mm_per_px", dataset, lambda mm: 0 < mm < math.inf, MM_PER_PX
        ),
    }
    columns |= {name: text.get(name, blank) for name in ("sex", "site", "dx_type")}
    # Text columns have dtype object, because the text type of pandas 3 would turn None into NaN.
    finished = pd.DataFrame({name: pd.Series(columns[name], dtype=object) for name in COLUMNS})
    finished = finished.astype({"age": "float64", "mm_per_px": "float64"})
    return finished.sort_values("image_id", kind="stable", ignore_index=True)


def _parts(texts: list[str], ids: list[str], dataset: str) -> list[str]:
    for image_id, text in zip(ids, texts, strict=True):
        if text and text.casefold() not in PARTS:
            raise DataError(f"{dataset}: the part of image {image_id} is {text!r}; expected train, val, test or empty")
    return [PARTS[text.casefold()] if text else "" for text in texts]


def _numbers(
    texts: list[str], ids: list[str], name: str, dataset: str, allowed: Callable[[float], bool], expected: str
) -> list[float]:
    numbers = []
    for image_id, text in zip(ids, texts, strict=True):
        try:
            number = math.nan if is_unknown(text) else float(text)
            fits = math.isnan(number) or allowed(number)
        except ValueError:
            fits = False
        if not fits:
            raise DataError(f"{dataset}: {name} of image {image_id} is {text!r}; expected {expected}, or empty")
        numbers.append(number)
    return numbers


def classes_of(table: pd.DataFrame) -> tuple[str, ...]:
    """Return the diagnoses of an index table, sorted.

    Raises:
        DataError: a diagnosis contains a control character, such as a line break.
    """
    names = sorted({str(value) for value in table.get("diagnosis", ()) if not pd.isna(value) and value != ""})
    for name in names:
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise DataError(
                f"the class {name!r} contains a control character; expected printable characters. Rename it."
            )
    return tuple(names)


def merge_spellings(diagnoses: pd.Series, classes: tuple[str, ...], reading: Reading) -> pd.Series:
    """Merge diagnoses that differ only in case, Unicode form or blanks.

    macOS writes the accents of file names in another Unicode form (NFD) than other systems (NFC), which looks the same.

    Args:
        diagnoses: diagnosis of each image.
        classes: class names of the catalog. If empty, the most frequent spelling of a class is its name.
        reading: receiver of a warning about the merged spellings.
    """
    counts = Counter[str](value for value in diagnoses if isinstance(value, str))
    spellings: dict[str, list[str]] = {}
    # A name of the catalog is first, then the most frequent spelling.
    for name in sorted(counts.keys() | set(classes), key=lambda name: (name not in classes, -counts[name], name)):
        spellings.setdefault(_plain(name), []).append(name)
    merged = {name: names[0] for names in spellings.values() for name in names[1:]}
    if merged:
        text = name_first(f"{name!r} ({counts[name]:,} images) as {into!r}" for name, into in merged.items())
        reading.warnings.append(("classes that differ only in case, accents or blanks are merged", f"read {text}"))
    return diagnoses.replace(merged)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", "".join(unicodedata.normalize("NFD", name).casefold().split()))


def index_hash(index: pd.DataFrame) -> str:
    """Return the sha256 of image ids, diagnoses and lesion ids.

    The order of the rows does not matter.
    """
    columns = (index["image_id"], index["diagnosis"], index["lesion_id"])
    rows = sorted([i, "" if pd.isna(d) else d, g] for i, d, g in zip(*columns, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def load_index(dataset: Dataset, root: Path, reading: Reading | None = None) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read the index of a data set, and its class names.

    A reader with the parameter `reading` selects the rows itself, by the columns of its file. For other readers,
    `reading.where` is a condition on the columns of the index. The attribute `notes` of a reader's table lists sentences
    about skipped files.

    Args:
        root: folder of the files, or the table of `csv`. Paths of the index are relative to `image_root(root)`.
        reading: options of the reader, and receiver of notes and warnings.

    Raises:
        ConfigError: `reading.where` is wrong, or no row fulfils it.
        DataError: the files have another layout than the reader expects, or `finish_index` rejects the table.
    """
    reading = reading or Reading()
    module, function = dataset.reader.split(":")
    reader = getattr(importlib.import_module(module), function)
    selects = "reading" in inspect.signature(reader).parameters
    table: pd.DataFrame = reader(root, reading=reading) if selects else reader(root)
    # A plugin may register any function as a reader.
    if not isinstance(table, pd.DataFrame):
        raise DataError(
            f"the reader of {dataset.name} returned {type(table).__name__}; expected a pandas table. Fix it."
        )
    reading.notes.extend(table.attrs.get("notes", ()))
    if reading.where and not selects:
        total, table = len(table), select_rows(table, reading.where, dataset.title)
        reading.notes.append(f"data.where: {len(table):,} of {total:,} images of {dataset.title}")
    if "diagnosis" in table:
        table = table.assign(diagnosis=merge_spellings(table["diagnosis"], dataset.classes, reading))
    classes = dataset.classes or classes_of(table)
    index = finish_index(table, dataset=dataset.name, classes=classes)
    return index, classes


def image_root(root: Path) -> Path:
    """Return the folder to which paths of the index are relative."""
    return root.parent if root.is_file() else root


def find_root(dataset: Dataset, root: str | None, env: str | None) -> Path:
    """Return the folder of a data set: `root`, else `env`/NAME, else data/NAME.

    Args:
        root: value of `--data.root`. If set, no other folder is checked.
        env: value of the environment variable SKINCANCER_DATA.

    Raises:
        DataError: no folder contains files. The message contains every folder, how to get the data, and the expected layout.
    """
    checked = []
    for source, place in data_places(dataset.name, root, env).items():
        if holds_files(place):
            return place
        if place.is_file() and dataset.name == "csv":
            return place
        state = "is empty" if place.is_dir() else "is a file" if place.is_file() else "does not exist"
        checked.append(f"  {place} ({source}) {state}")
    if not root and not env:
        checked.append(f"  $SKINCANCER_DATA/{dataset.name}: SKINCANCER_DATA is not set")
    command = f"python -m skincancer.prepare {dataset.name} --download" + (
        f" --data.root {shlex.quote(root)}" if root else ""
    )
    download = f"Or download it: {command}\n" if dataset.downloads else ""
    raise DataError(
        f"{dataset.title} ({dataset.name}) was not found. Checked\n"
        + "\n".join(checked)
        + f"\nTo get it: {dataset.how_to_get}\n{download}Expected layout: {dataset.layout}."
    )


def add_target(
    index: pd.DataFrame, dataset: Dataset, classes: tuple[str, ...], target: str, malignant: tuple[str, ...] = (),
    positive: str | None = None,
) -> tuple[pd.DataFrame, tuple[str, ...]]:  # fmt: skip
    """Add the column `label`, int64 (N,), and return class names.

    Args:
        classes: class names from `load_index`.
        target: "diagnosis" (the label is the position in the returned classes, -1 if unknown) or "malignancy" (0 benign, 1 malignant).
        malignant: malignant diagnoses (`data.malignant`), empty for those of the catalog.
        positive: positive class of two (`data.positive`), None for the class that `find_positive` finds.

    Returns:
        The index, and the class names in label order. Of two classes, the positive class is the second, if known.

    Raises:
        ConfigError: the target, a malignant class or the positive class is unknown, or the malignant classes are all classes or unknown.
    """
    for name in malignant:
        if name not in classes:
            raise ConfigError(
                f"data.malignant contains {name!r}; expected classes of {dataset.name}: {', '.join(classes) or 'none'}."
                f"{nearest(name, classes)}"
            )
    if malignant and set(malignant) >= set(classes):
        raise ConfigError(
            f"data.malignant contains every class of {dataset.name}; expected at least one benign class. Remove one."
        )
    if target == "diagnosis":
        names = order_classes(classes, find_positive(classes, malignant or dataset.malignant, positive)[0])
        labels = {name: position for position, name in enumerate(names)}
    elif target == "malignancy":
        malignant_names = set(malignant or dataset.malignant)
        if not malignant_names:
            raise ConfigError(
                f"data.target is malignancy, but the malignant classes of {dataset.name} are unknown. "
                f"Set --data.malignant to some of its classes: {', '.join(classes) or 'none'}."
            )
        names, labels = ("benign", "malignant"), {name: int(name in malignant_names) for name in classes}
        find_positive(names, ("malignant",), positive)
    else:
        raise ConfigError(
            f"data.target is {target!r}; expected diagnosis or malignancy.{nearest(target, ('diagnosis', 'malignancy'))}"
        )
    label = [labels.get(value, -1) for value in index["diagnosis"]]
    return index.assign(label=pd.Series(label, index=index.index, dtype="int64")), names
