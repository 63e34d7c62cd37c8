"""Objects that the functions of the Python interface return."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from skincancer.comparison.figures import draw_all
from skincancer.comparison.report import warnings
from skincancer.comparison.tables import Comparison
from skincancer.data.datamodule import LesionDataModule
from skincancer.data.image_files import ImageSearch
from skincancer.data.prepare import PreparedData
from skincancer.errors import ConfigError
from skincancer.imaging.decode import ImageFile
from skincancer.inference.image_files import find_images
from skincancer.inference.predictor import Predictor
from skincancer.runs.finished import FinishedRun
from skincancer.schema.experiment import Experiment
from skincancer.system.console import make_console
from skincancer.system.interrupts import keyboard_interrupts
from skincancer.training.trainer import build_datamodule

ImageInput = str | Path | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PreparedDataset:
    """Images of an experiment, decoded and split: index, subsets and image store."""

    experiment: Experiment
    prepared: PreparedData

    @property
    def index(self) -> pd.DataFrame:
        """One row per image: metadata, `label` and `role`.

        `label` is the number of the class, -1 without a class. `role` is train, val, test or "" for an image in no subset.
        """
        return self.prepared.index

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.prepared.classes

    @property
    def split_table(self) -> pd.DataFrame:
        """Content of split.csv of a run: the subset of each image."""
        return self.prepared.split_table

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """Input images in index order, memory-mapped uint8 (N, S, S, 3), RGB."""
        return self.prepared.store.images

    def datamodule(self) -> LesionDataModule:
        """Return a Lightning data module with the balance and the augmentation of the experiment."""
        return build_datamodule(self.experiment, self.prepared)


@dataclass(frozen=True)
class Model:
    """Model of a finished run: predictions, and the predictor for large numbers of images."""

    predictor: Predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities, none for a segmenter."""
        return self.predictor.model.classes

    def predict(self, images: ImageInput | Sequence[ImageInput], *, masks: bool = False) -> pd.DataFrame:
        """Predict images.

        Args:
            images: paths of image files or folders, and arrays uint8 (H, W, 3), RGB. One array (N, H, W, 3) is N images.
            masks: add the column `mask` with arrays bool (H, W) of the original size.

        Returns:
            One row per image: `image` (path, or number of the array), `prediction` and `p_<class>` for classes, `lesion_share` for
            masks, and `error` ("" for an image that could be read).

        Raises:
            ConfigError: `masks` for a classifier, or an array of another type or shape.
            DataError: a path does not exist, or a folder contains no image.
        """
        segments = self.predictor.model.segments
        if masks and not segments:
            raise ConfigError("predict: masks is True, but the model is a classifier. Use the run of a segmenter.")
        if isinstance(images, np.ndarray):
            images = list(images) if images.ndim == 4 else [images]
        names, files = _image_files([images] if isinstance(images, str | Path) else images)
        columns = ["image", *(["prediction", *(f"p_{label}" for label in self.classes)] if self.classes else [])]
        columns += [*(["lesion_share"] if segments else []), *(["mask"] if masks else []), "error"]
        rows = []
        with keyboard_interrupts():
            for name, prediction in zip(names, self.predictor.predict(files), strict=True):
                row: dict[str, Any] = {"image": name}
                if prediction.probability is not None:
                    row["prediction"] = self.classes[int(prediction.probability.argmax())]
                    row |= {f"p_{label}": p for label, p in zip(self.classes, prediction.probability, strict=True)}
                if segments and not prediction.error:
                    mask = self.predictor.mask(prediction)
                    row |= {"lesion_share": mask.mean(), **({"mask": mask} if masks else {})}
                rows.append({**row, "error": prediction.error})
        return pd.DataFrame(rows, columns=columns)


def _image_files(images: Sequence[ImageInput]) -> tuple[list[str | int], list[ImageFile]]:
    names: list[str | int] = []
    files: list[ImageFile] = []
    search = ImageSearch()
    for number, image in enumerate(images):
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ConfigError(
                    f"predict: image {number} is {image.dtype} {image.shape}; expected uint8 (H, W, 3), RGB. Convert the array."
                )
            content = io.BytesIO()
            Image.fromarray(image).save(content, "png", compress_level=1)
            names.append(number)
            files.append(content.getvalue())
        else:
            paths = [entry.file for entry in find_images([image], search)]
            names += paths
            files += map(Path, paths)
    for note in search.describe():
        make_console().print(note, markup=False)
    return names, files


@dataclass(frozen=True)
class ComparedRuns:
    """Comparison of finished runs, logged in MLflow as the run `run_id`."""

    run_id: str
    comparison: Comparison

    @property
    def table(self) -> pd.DataFrame:
        """One row per experiment, split and metric: value with 95 % interval."""
        return self.comparison.table

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per pair of experiments and split, with paired tests.

        Columns: difference of the metric with 95 % interval, p values.
        """
        return self.comparison.pairs

    @property
    def warnings(self) -> list[str]:
        """Warnings about the comparison, such as settings that differ between runs."""
        return warnings(self.comparison)

    def __repr__(self) -> str:
        return f"ComparedRuns(run_id={self.run_id!r}, entries={len(self.table)}, pairs={len(self.pairs)})"

    def figures(self) -> dict[str, Figure]:
        """Return the figures of the comparison by name."""
        metric = self.comparison.metrics[0]
        rows = self.table[self.table["metric"] == metric]
        drawings = draw_all(self.comparison.entries, rows, metric, title=f"{metric} · {self.comparison.dataset}")
        return {name: draw() for name, draw in drawings.items()}


@dataclass(frozen=True)
class FinishedSweep:
    """Sweep: its run, one row per trial, and the experiment of the best trial."""

    run: FinishedRun
    trials: pd.DataFrame
    best_experiment: Experiment
