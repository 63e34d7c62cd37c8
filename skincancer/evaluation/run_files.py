"""The files of a fit, as a report reads them."""

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

from skincancer import config
from skincancer.data.catalog import DATASETS, Dataset
from skincancer.data.prepared import PreparedData
from skincancer.evaluation.pages import Cell, Part, Picture
from skincancer.evaluation.predictions import read_table

THUMBNAIL = 72  # px on a page
_LARGE = 250_000  # bytes; a PNG beyond it is a sheet of photographs, and embedded as JPEG

# from image ids to RGB images uint8 (H, W, 3); what is not known is left out
Thumbnails = Callable[[Sequence[str]], Mapping[str, npt.NDArray[np.uint8]]]


def store_thumbnails(data: PreparedData) -> Thumbnails:
    """Return thumbnails from the prepared store: the squares that the network sees."""
    row_of = {image_id: row for row, image_id in enumerate(data.index["image_id"])}

    def find(image_ids: Sequence[str]) -> dict[str, npt.NDArray[np.uint8]]:
        squares = {name: Image.fromarray(data.store.images[row_of[name]]) for name in image_ids if name in row_of}
        # twice the pixels that are shown, for the screens of phones
        return {name: np.asarray(square.resize((2 * THUMBNAIL, 2 * THUMBNAIL))) for name, square in squares.items()}

    return find


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
        return config.load_yaml(self.folder / "config.yaml")

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
        return "mask_" if self.task == "joint" else ""

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
