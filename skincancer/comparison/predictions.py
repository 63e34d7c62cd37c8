"""Test predictions of compared runs, which can be scored on any resample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.errors import DataError
from skincancer.metrics.classification import weighted_metrics
from skincancer.metrics.names import AREAS, check_class_metric, is_mask_metric
from skincancer.metrics.prediction_files import read_predictions, read_scores

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores(ABC):
    """Test images of one run, sorted by id.

    Attributes:
        image_id, lesion_id: str (N,).
        stratum: int64 (N,). Lesions are resampled within a stratum.
    """

    image_id: npt.NDArray[np.object_]
    lesion_id: npt.NDArray[np.object_]
    stratum: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_id)

    @abstractmethod
    def take(self, rows: npt.NDArray[np.int64]) -> Scores:
        """Return a subset of the images."""

    @abstractmethod
    def values(self, metric: str, weight: npt.ArrayLike) -> Floats:
        """Return a metric (R,) for each row of weights (R, N), NaN if undefined.

        Raises:
            ValueError: the metric is unknown.
        """


@dataclass(frozen=True, eq=False)
class ClassScores(Scores):
    """Scores of classes with `probability` (N, C). The stratum is the label."""

    probability: Floats
    classes: tuple[str, ...]

    def take(self, rows: npt.NDArray[np.int64]) -> ClassScores:
        """Return a subset of the images."""
        return ClassScores(
            self.image_id[rows], self.lesion_id[rows], self.stratum[rows], self.probability[rows], self.classes
        )

    def values(self, metric: str, weight: npt.ArrayLike) -> Floats:
        """Return a metric (R,) for each row of weights (R, N)."""
        check_class_metric("--metric", metric, len(self.classes))
        metrics = weighted_metrics(self.stratum, self.probability, self.classes, weight, areas=metric in AREAS)
        if metric not in metrics:
            raise ValueError(f"metric is {metric!r}; expected one of {', '.join(metrics)}")
        return metrics[metric]


@dataclass(frozen=True, eq=False)
class MaskScores(Scores):
    """Scores of masks: `table` has one row per image and one column per metric."""

    table: pd.DataFrame

    def take(self, rows: npt.NDArray[np.int64]) -> MaskScores:
        """Return a subset of the images."""
        return MaskScores(self.image_id[rows], self.lesion_id[rows], self.stratum[rows], self.table.iloc[rows])

    def values(self, metric: str, weight: npt.ArrayLike) -> Floats:
        """Return the mean of a metric (R,) for each row of weights (R, N)."""
        if metric not in self.table:
            raise ValueError(f"metric is {metric!r}; expected one of {', '.join(map(str, self.table))}")
        value = self.table[metric].to_numpy(dtype=np.float64)
        known = np.isfinite(value)
        known_weight = np.asarray(weight, dtype=np.float64)[:, known]
        total = known_weight.sum(axis=1)
        return np.divide(known_weight @ value[known], total, out=np.full(len(total), np.nan), where=total > 0)


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
    lesion_id, stratum = (np.concatenate([getattr(fold, name) for fold in folds]) for name in ("lesion_id", "stratum"))
    pooled: Scores
    if isinstance(folds[0], ClassScores):
        probability = np.concatenate([fold.probability for fold in folds if isinstance(fold, ClassScores)])
        pooled = ClassScores(image_id, lesion_id, stratum, probability, folds[0].classes)
    else:
        table = pd.concat([fold.table for fold in folds if isinstance(fold, MaskScores)], ignore_index=True)
        pooled = MaskScores(image_id, lesion_id, stratum, table)
    return pooled.take(np.argsort(image_id.astype(str), kind="stable"))
