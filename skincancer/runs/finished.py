"""A finished run, as an evaluation needs it: its recipe, its weights, its classes, what it has seen, and its validation predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.entities import Run as MlflowRun
from PIL import Image

from skincancer.data.catalog import DATASETS, Dataset, malignant_classes
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.overlap import DIGESTS_FILE, FINGERPRINTS_FILE, Fingerprints, read_fingerprints
from skincancer.errors import DataError, RunError
from skincancer.metrics.names import MASK_PREFIXES
from skincancer.metrics.prediction_files import read_predictions, read_table
from skincancer.runs.artifacts import (
    CLASSES_FILE,
    CROPS_FILE,
    MASKS_FILE,
    MODEL_FILES,
    SEGMENTER,
    SEGMENTER_FILES,
    SPLIT_FILE,
    check_finished,
    fetch_model,
    fetch_run,
    list_files,
)
from skincancer.runs.store import connect
from skincancer.schema import Experiment, flatten
from skincancer.system.yaml_files import load_yaml
from skincancer.visualization.html import Cell, Part, Picture

VAL_FILE = "predictions/val.csv"


@dataclass(frozen=True)
class Validation:
    """A run's predictions of its labelled validation images.

    `rows` (N rows): image_id, lesion_id; `label` int64 (N,); `logits` and `probability` float64 (N, C), in the run's classes.
    """

    rows: pd.DataFrame
    label: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's files, in `folder`.

    `stored` is its config.yaml in dotted keys. `split`: image_id, lesion_id, role, and pixels where the run holds digests. `segmenter`
    is the folder of its copy of the segmenter behind its crops or features, `masks_by` whose masks these were.
    `validation` is None of a segmenter, `fingerprints` is None if the folder has none.
    """

    run: str
    folder: Path
    stored: dict[str, Any]
    classes: tuple[str, ...]
    malignant: tuple[str, ...]
    split: pd.DataFrame
    segmenter: Path | None
    masks_by: frozenset[str]
    validation: Validation | None
    fingerprints: Fingerprints | None = None

    @property
    def task(self) -> str:
        """Return classification, segmentation or joint."""
        return str(self.stored["task"])

    @property
    def checkpoint(self) -> Path:
        """Return the file of its best weights."""
        return self.folder / MODEL_FILES[1]

    @property
    def is_network(self) -> bool:
        """Whether it is a network's."""
        return bool(self.stored["model.classifier"] == "network")

    @property
    def has_digests(self) -> bool:
        """Whether pixels can be compared with those that it has seen."""
        return "pixels" in self.split


def load_finished(run: str, folder: Path, uri: str | None) -> FinishedRun:
    """Fetch the files of a finished fit and read them.

    Args:
        run: its id, or a folder of its artifacts.
        folder: where the files go.
        uri: the tracking store.

    Raises:
        RunError: no such run, one that did not finish, that is no fit's, or lacks a file, or whose files contradict each other.
    """
    if not Path(run).expanduser().is_dir():
        _check_kind(run, uri)
    there = list_files(run, uri)
    masks = [name for name in (CROPS_FILE, MASKS_FILE) if name in there]
    optional = [*(name for name in (DIGESTS_FILE, FINGERPRINTS_FILE) if name in there), *masks]
    segmenter = [f"{SEGMENTER}/{name}" for name in SEGMENTER_FILES] if SEGMENTER in there else []
    settings, *_ = fetch_model(run, folder, uri)
    fetch_run(run, folder, uri, (CLASSES_FILE, SPLIT_FILE, *optional, *segmenter))
    # a run of an older version lacks keys that were added since, and that it therefore had the defaults of
    stored = {**flatten(Experiment().to_dict()), **flatten(load_yaml(settings))}
    try:
        content = json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8"))
        split = pd.read_csv(folder / SPLIT_FILE, dtype=str, keep_default_na=False)
        task, classes = stored["task"], tuple(content["classes"]) if stored["task"] != "segmentation" else ()
        entry = catalog_entry(stored["data.dataset"])
        known = malignant_classes(entry, classes, stored["data.target"], tuple(stored["data.malignant"]))
        if DIGESTS_FILE in optional:
            digests = pd.read_csv(folder / DIGESTS_FILE, dtype=str)
            split = split.merge(digests, on="image_id", how="left", validate="1:1").fillna({"pixels": ""})
        fingerprints = read_fingerprints(folder / FINGERPRINTS_FILE) if FINGERPRINTS_FILE in optional else None
        masks_by = {str(name) for file in masks for name in pd.read_csv(folder / file)["masks"].dropna()}
    except (KeyError, ValueError) as error:
        raise RunError(f"run {run}: its files cannot be read: {type(error).__name__}: {error}") from error
    validation = None
    if task != "segmentation":
        fetch_run(run, folder, uri, (VAL_FILE,))
        validation = _read_validation(run, folder / VAL_FILE, classes)
    return FinishedRun(
        run=run, folder=folder, stored=stored, classes=classes, malignant=known, split=split,
        segmenter=folder / SEGMENTER if segmenter else None, masks_by=frozenset(masks_by), validation=validation,
        fingerprints=fingerprints,
    )  # fmt: skip


def _check_kind(run: str, uri: str | None) -> None:
    kind = check_finished(connect(uri), run).data.tags.get("kind")
    if kind not in ("fit", "trial"):
        raise RunError(f"run {run} is of kind {kind!r}, which holds no model; give the run of a fit.")


def _read_validation(run: str, path: Path, classes: tuple[str, ...]) -> Validation:
    try:
        table, label, probability = read_predictions(path, classes)
        logits = table[[f"logit_{name}" for name in classes]].to_numpy(dtype=np.float64)
    except (DataError, KeyError, ValueError) as error:
        raise RunError(f"run {run}: its validation predictions cannot be used: {error}") from error
    wrong = ~np.isfinite(logits).all(axis=1)
    if wrong.any():
        first = ", ".join(table["image_id"][wrong].head(3))
        raise RunError(
            f"run {run}: in predictions/val.csv the logits of {int(wrong.sum())} images ({first} …) are not finite; the file was changed."
        )
    known = label >= 0
    names = table.loc[known, ["image_id", "lesion_id"]].reset_index(drop=True)
    return Validation(names, label[known], logits[known], probability[known])


THUMBNAIL = 72  # px on a page
_LARGE = 250_000  # bytes; a PNG beyond it is a sheet of photographs, and embedded as JPEG

# from image ids to RGB images uint8 (H, W, 3); what is not known is left out
Thumbnails = Callable[[Sequence[str]], Mapping[str, npt.NDArray[np.uint8]]]


@dataclass(frozen=True)
class RunFiles:
    """A run: the folder of its artifacts, what the tracking store knows, and how its test images look.

    Reading raises FileNotFoundError where config.yaml, classes.json, split.csv or predictions/test.csv is missing.
    """

    folder: Path
    run: MlflowRun
    thumbnails: Thumbnails

    @property
    def params(self) -> dict[str, str]:
        """Of the run."""
        return self.run.data.params

    @property
    def tags(self) -> dict[str, str]:
        """Of the run."""
        return self.run.data.tags

    @property
    def metrics(self) -> dict[str, float]:
        """Of the run, each its last value."""
        return self.run.data.metrics

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.yaml."""
        return load_yaml(self.folder / "config.yaml")

    @property
    def task(self) -> str:
        """What was trained: classification, segmentation or joint."""
        return str(self.settings["task"])

    @property
    def is_classical(self) -> bool:
        """Whether a classical classifier was fitted, and no network trained."""
        return bool(self.settings["model"].get("classifier", "network") != "network")  # older runs do not say so

    @property
    def mask_prefix(self) -> str:
        """Of the metrics of masks."""
        return MASK_PREFIXES[self.task]

    @property
    def entry(self) -> Dataset:
        """The data set's catalog entry."""
        return DATASETS[self.settings["data"]["dataset"]]

    @cached_property
    def classes(self) -> list[str]:
        """Class names in the order of the labels; none of a segmenter."""
        if self.task == "segmentation":
            return []
        return list(json.loads((self.folder / "classes.json").read_text(encoding="utf-8"))["classes"])

    @cached_property
    def split(self) -> pd.DataFrame:
        """split.csv, the images with a role, every column a string."""
        table = pd.read_csv(self.folder / "split.csv", dtype=str, keep_default_na=False)
        return table[table["role"] != ""]

    @cached_property
    def test(self) -> pd.DataFrame:
        """predictions/test.csv."""
        texts = () if self.task == "segmentation" else ("label", "prediction")
        return read_table(self.folder / "predictions/test.csv", "image_id", "lesion_id", *texts)

    def table(self, name: str, *texts: str) -> pd.DataFrame | None:
        """Read a CSV that a run may have.

        Args:
            name: of the file.
            texts: columns to take as they are (`read_table`).

        Returns:
            None if there is no such file.
        """
        path = self.folder / name
        return read_table(path, *texts) if path.is_file() else None

    def picture(self, name: str, caption: str) -> list[Part]:
        """Return a figure of the run as a picture; nothing where it has none of this name."""
        path = self.folder / f"figures/{name}.png"
        if not path.is_file():
            return []
        if path.stat().st_size <= _LARGE:
            return [Picture(path, caption, caption)]
        with Image.open(path) as image:
            dpi = float(image.info.get("dpi", (96.0, 96.0))[0])
            return [Picture(np.asarray(image.convert("RGB")), caption, caption, round(image.width * 96 / dpi))]

    def thumbnail_cells(self, image_ids: Sequence[str]) -> list[Cell]:
        """Return a cell of a table for each image: its thumbnail, or nothing where it is not known."""
        found = self.thumbnails(image_ids)
        return [
            Picture(found[name], f"thumbnail of {name}", width=THUMBNAIL) if name in found else None
            for name in image_ids
        ]


def count(table: pd.DataFrame) -> tuple[int, int]:
    """Return how many images and lesions a table has."""
    return len(table), int(table["lesion_id"].nunique())
