"""What a run predicted for its test images, ready to be scored again on any resample: of classes, or of masks."""

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
from skincancer.metrics.names import AREAS, is_mask_metric
from skincancer.metrics.prediction_files import read_predictions, read_scores

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores(ABC):
    """Test images of one run, sorted by id: `image_id`, `lesion_id`, str (N,), and `stratum` (N,), within which lesions are resampled."""

    image_id: npt.NDArray[np.object_]
    lesion_id: npt.NDArray[np.object_]
    stratum: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_id)

    @abstractmethod
    def take(self, rows: npt.NDArray[np.int64]) -> Scores:
        """Return some of the images."""

    @abstractmethod
    def values(self, metric: str, weight: npt.ArrayLike) -> Floats:
        """Return a metric (R,) for each row of weights (R, N); NaN where it is undefined.

        Raises:
            ValueError: the metric is unknown.
        """


@dataclass(frozen=True, eq=False)
class ClassScores(Scores):
    """Of classes: `probability` (N, C), rows summing to 1; the stratum is the label."""

    probability: Floats
    classes: tuple[str, ...]

    def take(self, rows: npt.NDArray[np.int64]) -> ClassScores:
        """Return some of the images."""
        return ClassScores(
            self.image_id[rows], self.lesion_id[rows], self.stratum[rows], self.probability[rows], self.classes
        )

    def values(self, metric: str, weight: npt.ArrayLike) -> Floats:
        """Return a metric (R,) for each row of weights (R, N)."""
        found = weighted_metrics(self.stratum, self.probability, self.classes, weight, areas=metric in AREAS)
        if metric not in found:
            raise ValueError(
                f"metric is {metric!r}, which is unknown; known are {', '.join(found)}, {', '.join(AREAS)}"
            )
        return found[metric]


@dataclass(frozen=True, eq=False)
class MaskScores(Scores):
    """Of masks: `table`, a row an image, a column a metric, NaN where an image has no true mask; one stratum."""

    table: pd.DataFrame

    def take(self, rows: npt.NDArray[np.int64]) -> MaskScores:
        """Return some of the images."""
        return MaskScores(self.image_id[rows], self.lesion_id[rows], self.stratum[rows], self.table.iloc[rows])

    def values(self, metric: str, weight: npt.ArrayLike) -> Floats:
        """Return the mean of a metric (R,) for each row of weights (R, N)."""
        if metric not in self.table:
            raise ValueError(f"metric is {metric!r}, which is unknown; known are {', '.join(map(str, self.table))}")
        value = self.table[metric].to_numpy(dtype=np.float64)
        known = np.isfinite(value)
        counted = np.asarray(weight, dtype=np.float64)[:, known]
        total = counted.sum(axis=1)
        return np.divide(counted @ value[known], total, out=np.full(len(total), np.nan), where=total > 0)


def load_scores(path: Path, classes: Sequence[str], metric: str) -> Scores:
    """Read test predictions of a run for a metric; images without a label count in no metric of classes.

    Raises:
        DataError: the table is another task's, malformed, or has no image that counts.
    """
    if is_mask_metric(metric):
        table = read_scores(path)
        if metric not in table:
            raise DataError(f"it has no column {metric}; it has {', '.join(map(str, table))}: it is of another task.")
        table = table[table[metric].notna()].sort_values("image_id", ignore_index=True)
        if table.empty:
            raise DataError("it has no image with a mask.")
        return MaskScores(
            table["image_id"].to_numpy(object), table["lesion_id"].to_numpy(object), np.zeros(len(table), np.int64), table
        )  # fmt: skip
    table, label, probability = read_predictions(path, classes)
    rows = np.argsort(table["image_id"].to_numpy(str), kind="stable")
    rows = rows[label[rows] >= 0]
    if not len(rows):
        raise DataError("it has no image with a label.")
    image_id, lesion_id = (table[name].to_numpy(object)[rows] for name in ("image_id", "lesion_id"))
    return ClassScores(image_id, lesion_id, label[rows], probability[rows], tuple(classes))


def pool(parts: Sequence[Scores]) -> Scores:
    """Join the test images of the folds of one method: each image once, predicted by the fold that did not learn from it.

    Raises:
        ValueError: an image is in two folds.
    """
    image_id = np.concatenate([part.image_id for part in parts])
    if len(set(image_id)) != len(image_id):
        raise ValueError("an image is tested in two folds: the folds are of different splits")
    lesion_id, stratum = (np.concatenate([getattr(part, name) for part in parts]) for name in ("lesion_id", "stratum"))
    whole: Scores
    if isinstance(parts[0], ClassScores):
        probability = np.concatenate([part.probability for part in parts if isinstance(part, ClassScores)])
        whole = ClassScores(image_id, lesion_id, stratum, probability, parts[0].classes)
    else:
        table = pd.concat([part.table for part in parts if isinstance(part, MaskScores)], ignore_index=True)
        whole = MaskScores(image_id, lesion_id, stratum, table)
    return whole.take(np.argsort(image_id.astype(str), kind="stable"))
