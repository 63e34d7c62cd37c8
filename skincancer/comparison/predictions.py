"""Test predictions of compared runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.errors import DataError
from skincancer.metrics.estimates import CountedPredictions, mean_estimate
from skincancer.metrics.intervals import Estimate
from skincancer.metrics.names import check_class_metric, is_mask_metric
from skincancer.metrics.prediction_files import read_predictions, read_scores

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores(ABC):
    """Test images of one run, sorted by id.

    Attributes:
        image_id, lesion_id: str (N,).
        label: int64 (N,), 0 for masks.
    """

    image_id: npt.NDArray[np.object_]
    lesion_id: npt.NDArray[np.object_]
    label: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_id)

    @abstractmethod
    def take(self, rows: npt.NDArray[np.int64]) -> Scores:
        """Return a subset of the images."""

    @abstractmethod
    def estimate(self, metric: str) -> Estimate:
        """Estimate a metric, with the influence of each lesion.

        Raises:
            ValueError: the metric is unknown.
        """

    @abstractmethod
    def equals(self, other: Scores, metric: str) -> bool:
        """Return whether all predictions are equal, so that metrics cannot differ."""


@dataclass(frozen=True, eq=False)
class ClassScores(Scores):
    """Scores of classes with `probability` (N, C)."""

    probability: Floats
    classes: tuple[str, ...]

    def take(self, rows: npt.NDArray[np.int64]) -> ClassScores:
        """Return a subset of the images."""
        return ClassScores(
            self.image_id[rows], self.lesion_id[rows], self.label[rows], self.probability[rows], self.classes
        )

    def estimate(self, metric: str) -> Estimate:
        """Estimate a metric, with the influence of each lesion."""
        check_class_metric("--metric", metric, len(self.classes))
        return self._tested.estimate(metric)

    def equals(self, other: Scores, metric: str) -> bool:
        """Return whether all probabilities are equal."""
        return isinstance(other, ClassScores) and np.array_equal(self.probability, other.probability)

    @cached_property
    def _tested(self) -> CountedPredictions:
        return CountedPredictions(self.label, self.probability, self.lesion_id.astype(str), self.classes)


@dataclass(frozen=True, eq=False)
class MaskScores(Scores):
    """Scores of masks: `table` has one row per image and one column per metric."""

    table: pd.DataFrame

    def take(self, rows: npt.NDArray[np.int64]) -> MaskScores:
        """Return a subset of the images."""
        return MaskScores(self.image_id[rows], self.lesion_id[rows], self.label[rows], self.table.iloc[rows])

    def estimate(self, metric: str) -> Estimate:
        """Estimate the mean of a metric, with the influence of each lesion."""
        return mean_estimate(self.table, metric, self.lesion_id.astype(str))

    def equals(self, other: Scores, metric: str) -> bool:
        """Return whether all images have equal values."""
        return isinstance(other, MaskScores) and np.array_equal(self.table[metric], other.table[metric])


def load_scores(path: Path, classes: Sequence[str], metric: str) -> Scores:
    """Read the test predictions of a run for a metric, without unlabelled images.

    Raises:
        DataError: the table is malformed, of another task, or has no image with a label or mask.
    """
    if is_mask_metric(metric):
        table = read_scores(path)
        if metric not in table:
            raise DataError(
                f"the table has the columns {', '.join(map(str, table))}; expected {metric}, so the run is of another task."
            )
        table = table[table[metric].notna()].sort_values("image_id", ignore_index=True)
        if table.empty:
            raise DataError("the table has no image with a mask.")
        return MaskScores(
            table["image_id"].to_numpy(object), table["lesion_id"].to_numpy(object), np.zeros(len(table), np.int64), table
        )  # fmt: skip
    table, label, probability = read_predictions(path, classes)
    rows = np.argsort(table["image_id"].to_numpy(str), kind="stable")
    rows = rows[label[rows] >= 0]
    if not len(rows):
        raise DataError("the table has no image with a label.")
    image_id, lesion_id = (table[name].to_numpy(object)[rows] for name in ("image_id", "lesion_id"))
    return ClassScores(image_id, lesion_id, label[rows], probability[rows], tuple(classes))


def pool_folds(folds: Sequence[Scores]) -> Scores:
    """Join the test images of all folds, each predicted by its own run.

    Raises:
        ValueError: an image is in two folds.
    """
    image_id = np.concatenate([fold.image_id for fold in folds])
    if len(set(image_id)) != len(image_id):
        raise ValueError(
            "an image is tested in two folds, so the folds are of different splits; use folds of one split"
        )
    lesion_id, label = (np.concatenate([getattr(fold, name) for fold in folds]) for name in ("lesion_id", "label"))
    pooled: Scores
    if isinstance(folds[0], ClassScores):
        probability = np.concatenate([fold.probability for fold in folds if isinstance(fold, ClassScores)])
        pooled = ClassScores(image_id, lesion_id, label, probability, folds[0].classes)
    else:
        table = pd.concat([fold.table for fold in folds if isinstance(fold, MaskScores)], ignore_index=True)
        pooled = MaskScores(image_id, lesion_id, label, table)
    return pooled.take(np.argsort(image_id.astype(str), kind="stable"))
