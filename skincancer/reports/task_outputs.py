"""Outputs of a task: tables of predictions, test metrics with intervals, figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure

from skincancer.data.index import image_root
from skincancer.data.prepare import ROLES, PreparedData
from skincancer.imaging.decode import read_image
from skincancer.metrics.classification import classification_metrics
from skincancer.metrics.estimates import classification_intervals, mean_intervals
from skincancer.metrics.names import MASK_METRICS, MASK_PREFIX
from skincancer.metrics.prediction_files import DIGITS, predictions_table, read_predictions, read_scores
from skincancer.metrics.segmentation import mean_metrics
from skincancer.metrics.subgroups import ATTRIBUTES, SMALLEST, subgroup_table
from skincancer.models.names import OWN_LOSSES
from skincancer.models.tasks.classification import ClassificationTask, Predictions
from skincancer.models.tasks.joint import JointPredictions, JointTask
from skincancer.models.tasks.segmentation import MaskPredictions, SegmentationTask
from skincancer.runs.artifacts import SUBGROUPS_FILE, predictions_file
from skincancer.runs.finished import FinishedRun
from skincancer.schema.model import ModelConfig
from skincancer.visualization.classification import FIGURES
from skincancer.visualization.segmentation import Case, choose_cases, jaccard_histogram, overlay_sheet

# Number of best, of median and of worst images.
SHOWN_CASES = 3


# Name of a figure, and the function that draws the figure and may fail.
Drawing = tuple[str, Callable[[], Figure]]


class Outcome(Protocol):
    """Outputs of one task, from the tables `predictions/{val,test}.csv` of a folder.

    Attributes:
        classes: class names to count images by.
    """

    classes: tuple[str, ...]

    def params(self, model: ModelConfig) -> dict[str, Any]:
        """Return the params of this task only."""

    def selected(self, task: Any) -> dict[str, float]:
        """Return values selected on the validation set, except the epoch."""

    def table(self, predictions: Any) -> pd.DataFrame:
        """Return the table of predictions of a subset."""

    def best(self, folder: Path) -> dict[str, float]:
        """Return the validation metrics of the best checkpoint."""

    def test(self, folder: Path) -> pd.DataFrame:
        """Return the test metrics with intervals: metric value low high n_resamples note."""

    def figures(self, folder: Path, task: Any, title: str, note: str) -> Iterator[Drawing]:
        """Yield the figures of the test set."""


class ClassificationOutcome:
    """Outputs of classification. Unlabelled images are in the table, but not in metrics."""

    def __init__(self, data: PreparedData) -> None:
        self.data, self.classes = data, data.classes

    def params(self, model: ModelConfig) -> dict[str, Any]:
        """Return loss and dropout."""
        return {"loss": model.loss.name, "dropout": model.dropout}

    def selected(self, task: ClassificationTask) -> dict[str, float]:
        """Return no values."""
        return {}

    def table(self, predictions: Predictions) -> pd.DataFrame:
        """Return image_id lesion_id label prediction p_<class>… logit_<class>…."""
        rows = self.data.index.iloc[predictions.index]
        return predictions_table(rows, predictions.label, predictions.logits, predictions.probability, self.classes)

    def best(self, folder: Path) -> dict[str, float]:
        """Return the validation metrics of the best checkpoint."""
        _, label, probability = self._labelled(folder, "val")
        return classification_metrics(label, probability, self.classes)

    def test(self, folder: Path) -> pd.DataFrame:
        """Return the test metrics with intervals."""
        table, label, probability = self._labelled(folder, "test")
        return classification_intervals(label, probability, table["lesion_id"].to_numpy(), self.classes)

    def figures(self, folder: Path, task: Any, title: str, note: str) -> Iterator[Drawing]:
        """Yield confusion matrix, ROC and precision-recall curves, and reliability."""
        _, label, probability = self._labelled(folder, "test")
        for name, draw in FIGURES.items():
            yield name, partial(draw, label, probability, self.classes, title=title, note=note)

    def _labelled(self, folder: Path, part: str) -> tuple[pd.DataFrame, npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        table, label, probability = read_predictions(folder / predictions_file(part), self.classes)
        known = label >= 0
        return table[known], label[known], probability[known]


class SegmentationOutcome:
    """Outputs of segmentation, for images with a true mask at their original size.

    Args:
        data: prepared data.
        prefix: prefix of the names of metrics.
    """

    def __init__(self, data: PreparedData, prefix: str = "") -> None:
        self.data, self.prefix, self.classes = data, prefix, tuple[str, ...]()

    def params(self, model: ModelConfig) -> dict[str, Any]:
        """Return architecture, losses and mask cleaning."""
        masks = " + ".join(f"{weight:g} {name}" for name, weight in model.loss.masks.items())
        return {
            "architecture": model.architecture, "loss": "own" if model.architecture in OWN_LOSSES else masks,
            "largest_component": model.mask.largest_component, "fill_holes": model.mask.fill_holes,
        }  # fmt: skip

    def selected(self, task: SegmentationTask) -> dict[str, float]:
        """Return the threshold."""
        return {"threshold": task.threshold}

    def table(self, predictions: MaskPredictions) -> pd.DataFrame:
        """Return image_id lesion_id and every mask metric."""
        rows = self.data.index.iloc[predictions.index][["image_id", "lesion_id"]].reset_index(drop=True)
        return pd.concat([rows, predictions.table.add_prefix(self.prefix)], axis=1)

    def best(self, folder: Path) -> dict[str, float]:
        """Return the validation metrics of the best checkpoint."""
        return mean_metrics(read_scores(folder / predictions_file("val")), self.prefix)

    def test(self, folder: Path) -> pd.DataFrame:
        """Return the test metrics with intervals."""
        table = read_scores(folder / predictions_file("test"))
        return mean_intervals(table, [self.prefix + name for name in MASK_METRICS], table["lesion_id"].to_numpy())

    def figures(self, folder: Path, task: Any, title: str, note: str) -> Iterator[Drawing]:
        """Yield the histogram of the Jaccard index and overlays."""
        scores = read_scores(folder / predictions_file("test")).set_index("image_id")
        jaccard = scores[f"{self.prefix}jaccard"].dropna()
        yield "jaccard_histogram", partial(jaccard_histogram, jaccard.to_numpy(), title=title, note=note)
        yield "overlays", partial(self._overlays, jaccard, task, title, note)

    def _overlays(self, jaccard: pd.Series[float], task: SegmentationTask | JointTask, title: str, note: str) -> Figure:
        selection = choose_cases(jaccard.to_numpy(), SHOWN_CASES)
        cases = {
            name: [self._case(task, jaccard.index[position], float(jaccard.iloc[position])) for position in row]
            for name, row in selection.items()
        }
        return overlay_sheet(cases, title=title, note=note)

    def _case(self, task: SegmentationTask | JointTask, image_id: str, jaccard: float) -> Case:
        assert task.scorer is not None
        row = int(np.flatnonzero(self.data.index["image_id"].to_numpy() == image_id)[0])
        pixels = torch.from_numpy(np.array(self.data.store.images[row][None]))
        image = pixels.permute(0, 3, 1, 2).to(task.device).float() / 255
        with torch.inference_mode():
            square = task.eval().predict(image)[0][0, 0].cpu().numpy()
        original = np.asarray(read_image(image_root(self.data.root) / self.data.index["image"].iloc[row]))
        return Case(image_id, original, task.scorer.truth(row), task.scorer.mask(row, square, task.threshold), jaccard)


class JointOutcome:
    """Outputs of both tasks in one table. Metrics of masks are called `mask_<metric>`."""

    def __init__(self, data: PreparedData) -> None:
        self.data, self.classes = data, data.classes
        self.of_classes, self.of_masks = ClassificationOutcome(data), SegmentationOutcome(data, MASK_PREFIX)

    def params(self, model: ModelConfig) -> dict[str, Any]:
        """Return the params of both tasks, and counts of masks and labels."""
        of_classes, of_masks = self.of_classes.params(model), self.of_masks.params(model)
        counts: dict[str, int] = {}
        for role in ROLES:
            rows = self.data.rows(role)
            counts[f"{role}_masks"] = int(rows["mask"].notna().sum())
            counts[f"{role}_labels"] = int((rows["label"] >= 0).sum())
        loss = f"{of_masks['loss']} + {model.loss.class_factor:g} {of_classes['loss']}"
        return {**of_classes, **of_masks, "loss": loss, **counts}

    def selected(self, task: JointTask) -> dict[str, float]:
        """Return the threshold."""
        return {"threshold": task.threshold}

    def table(self, predictions: JointPredictions) -> pd.DataFrame:
        """Return the table of classes with all mask metrics, empty without label or mask."""
        return self.of_classes.table(predictions.classes).merge(
            self.of_masks.table(predictions.masks).drop(columns="lesion_id"), on="image_id", validate="1:1"
        )

    def best(self, folder: Path) -> dict[str, float]:
        """Return the validation metrics of the best checkpoint."""
        return {**self.of_classes.best(folder), **self.of_masks.best(folder)}

    def test(self, folder: Path) -> pd.DataFrame:
        """Return the test metrics with intervals."""
        return pd.concat([self.of_classes.test(folder), self.of_masks.test(folder)], ignore_index=True)

    def figures(self, folder: Path, task: Any, title: str, note: str) -> Iterator[Drawing]:
        """Yield the figures of both tasks."""
        yield from self.of_classes.figures(folder, task, title, note)
        yield from self.of_masks.figures(folder, task, title, note)


OUTCOMES: dict[str, type[ClassificationOutcome | SegmentationOutcome | JointOutcome]] = {
    "classification": ClassificationOutcome, "segmentation": SegmentationOutcome, "joint": JointOutcome,
}  # fmt: skip


def write_subgroups(folder: Path, smallest: int = SMALLEST) -> Path | None:
    """Write subgroups.csv of the test predictions into a run folder.

    Groups of fewer than `smallest` lesions are listed without metrics. Returns the path, or None if no test image has attributes.
    """
    run = FinishedRun(folder)
    table, label, probability = read_predictions(run.file(predictions_file("test")), run.classes)
    attributes = run.split[["image_id", *(name for name in ATTRIBUTES if name in run.split)]]
    rows = table[["image_id", "lesion_id"]].merge(attributes, on="image_id", how="left", validate="1:1")
    known = label >= 0
    subgroups = subgroup_table(
        rows[known], label[known], probability[known], run.classes, run.malignant, smallest=smallest
    )
    if subgroups.empty:
        return None
    path = folder / SUBGROUPS_FILE
    subgroups.to_csv(path, index=False, float_format=DIGITS)
    return path
