"""Estimate every printed metric with an interval.

`METHODS` lists the method of each metric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.metrics import lesion_sums
from skincancer.metrics.areas import auroc_influence, average_precision_bias, average_precision_influence
from skincancer.metrics.bootstrap import bootstrap_weights, lesion_numbers
from skincancer.metrics.classification import CALIBRATION_BINS, calibration_bin, check_predictions, custom_values
from skincancer.metrics.combinations import mean
from skincancer.metrics.custom import CUSTOM_METRICS
from skincancer.metrics.intervals import Estimate, NoInterval, Resampled, monotone
from skincancer.metrics.lesion_sums import positive_mean, proportion
from skincancer.metrics.names import class_metric

Floats = npt.NDArray[np.float64]

COLUMNS = ["metric", "value", "low", "high", "n_resamples", "note"]
RESAMPLES = 2000
# Smallest number of lesions of each class for the interval of a mean of one class against the rest (benchmarks/coverage.py).
FEWEST_LESIONS = 5
# Means of positive values without upper bound.
UNBOUNDED = ("hd95", "mask_hd95")


class CountedPredictions:
    """Predictions of test images, counted by lesion.

    Args:
        label: (N,) integers in 0 … C−1.
        probability: (N, C) in [0, 1], rows summing to 1.
        groups: (N,), lesion of each image.
        classes: the C class names. The second of two is the positive class.
        n_resamples: number of bootstrap resamples for metrics of plugins.
        seed: random seed of the bootstrap.

    Raises:
        ValueError: malformed predictions (see `check_predictions`) or groups.
    """

    def __init__(
        self, label: npt.ArrayLike, probability: npt.ArrayLike, groups: Sequence[str] | npt.NDArray[np.str_],
        classes: Sequence[str], n_resamples: int = RESAMPLES, seed: int = 0,
    ) -> None:  # fmt: skip
        self.label, self.probability = check_predictions(label, probability, classes)
        self.groups, self.lesion = groups, lesion_numbers(groups, len(self.label))
        self.classes, self.n_resamples, self.seed = tuple(classes), n_resamples, seed
        self.true = self._count(self.label)
        self.predicted = self._count(self.probability.argmax(axis=1))
        self.hit = self._count(self.label, self.probability.argmax(axis=1) == self.label)
        self.images = self.true.sum(axis=1)

    def _count(self, column: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Return the number of images (G, C) of each lesion and class."""
        cell = self.lesion * len(self.classes) + column
        n_cells = (self.lesion.max() + 1) * len(self.classes)
        counts = np.bincount(cell if chosen is None else cell[chosen], minlength=n_cells)
        return counts.reshape(-1, len(self.classes)).astype(np.float64)

    def of_lesions(self, values: Floats) -> Floats:
        """Return sums (G,) or (G, K) over lesions of values (N,) or (N, K)."""
        columns = values.reshape(len(values), -1)
        sums = np.column_stack([np.bincount(self.lesion, column) for column in columns.T]).astype(np.float64)
        return sums.reshape(-1, *values.shape[1:])

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics for this number of classes."""
        return [class_metric(name, len(self.classes)) for name in METHODS]

    @property
    def scored(self) -> Sequence[int]:
        """Classes of sensitivity, specificity, precision and areas: the positive of two, or all."""
        return [1] if len(self.classes) == 2 else range(len(self.classes))

    def accuracy(self) -> Estimate:
        """Estimate the accuracy."""
        return proportion(self.hit.sum(axis=1), self.images)

    @cached_property
    def recalls(self) -> list[Estimate]:
        """Recall of each class."""
        return [proportion(hit, true) for hit, true in zip(self.hit.T, self.true.T, strict=True)]

    def precision(self, c: int) -> Estimate:
        """Estimate the precision of a class, 0 if never predicted."""
        if not self.predicted[:, c].any() and self.true[:, c].any():
            return NoInterval(0.0, np.zeros(len(self.images)), f"no prediction of {self.classes[c]}")
        return proportion(self.hit[:, c], self.predicted[:, c])

    def specificity(self, c: int) -> Estimate:
        """Estimate the specificity of a class against the rest."""
        others = self.images - self.true[:, c]
        return proportion(others - self.predicted[:, c] + self.hit[:, c], others)

    def f1(self, c: int) -> Estimate:
        """Estimate F1 of a class.

        F1 is a function of the share of hits in all images of the class, true or predicted.
        """
        share = proportion(self.hit[:, c], self.true[:, c] + self.predicted[:, c] - self.hit[:, c])
        if isinstance(share, NoInterval):
            return share
        return monotone(share, lambda value: 2 * value / (1 + value), slope=2 / (1 + share.value) ** 2)

    def auroc(self, c: int) -> Estimate:
        """Estimate the AUROC of a class against the rest."""
        positive = self.label == c
        value, influence = auroc_influence(positive, self.probability[:, c])
        if np.isnan(value):
            return NoInterval(value, np.zeros(len(self.images)), "a single class")
        of_positives, of_negatives = (self.of_lesions(np.where(side, influence, 0)) for side in (positive, ~positive))
        true = self.true[:, c]
        return lesion_sums.area(value, of_positives, of_negatives, true, self.images - true)

    def average_precision(self, c: int) -> Estimate:
        """Estimate the average precision of a class against the rest."""
        positive, score = self.label == c, self.probability[:, c]
        value, influence = average_precision_influence(positive, score)
        if np.isnan(value):
            return NoInterval(value, np.zeros(len(self.images)), "a single class")
        bias = average_precision_bias(positive, score, self.lesion)
        return lesion_sums.average_precision(value, self.of_lesions(influence), self.true[:, c], bias)

    def macro(self, method: Callable[[int], Estimate]) -> Estimate:
        """Return the mean over classes of a metric of one class against the rest.

        Classes without images do not count. Of more than two classes, the mean has no interval if a class has fewer than
        `FEWEST_LESIONS` lesions.
        """
        present = [c for c in self.scored if self.true[:, c].any() or len(self.classes) == 2]
        estimate = mean([method(c) for c in present])
        few = [self.classes[c] for c in present if np.count_nonzero(self.true[:, c]) < FEWEST_LESIONS]
        if len(self.classes) > 2 and few and not estimate.note:
            return NoInterval(estimate.value, estimate.influence, f"fewer than {FEWEST_LESIONS} lesions of {few[0]}")
        return estimate

    def ece(self) -> Estimate:
        """Estimate the expected calibration error."""
        confidence, right = self.probability.max(axis=1), self.probability.argmax(axis=1) == self.label
        bins = np.eye(CALIBRATION_BINS)[calibration_bin(confidence)]
        gaps, hits, counts = map(self.of_lesions, (bins * (right - confidence)[:, None], bins * right[:, None], bins))
        return lesion_sums.calibration_error(gaps, hits, counts, self.images)

    def brier(self) -> Estimate:
        """Estimate the Brier score, from 0 to 2."""
        squares = ((self.probability - np.eye(len(self.classes))[self.label]) ** 2).sum(axis=1)
        half = proportion(self.of_lesions(squares / 2), self.images, binary=False)
        return monotone(half, lambda value: 2 * value, slope=2)

    def nll(self) -> Estimate:
        """Estimate the mean negative log-likelihood."""
        likelihood = self.probability[np.arange(len(self.label)), self.label]
        return positive_mean(self.of_lesions(-np.log(np.maximum(likelihood, np.finfo(np.float64).tiny))), self.images)

    def custom(self, name: str) -> Estimate:
        """Estimate a metric of a plugin by the bootstrap."""
        weight = bootstrap_weights(self.groups, self.n_resamples, self.seed).astype(np.float64)
        values = custom_values(name, self.label, self.probability, np.vstack([np.ones(weight.shape[1]), weight]))
        return Resampled(float(values[0]), np.empty(0), values[1:])

    def estimate(self, metric: str) -> Estimate:
        """Return the estimate of a metric of these classes, of a plugin, or `recall/<class>`.

        Raises:
            ValueError: the metric is unknown.
        """
        if metric in self.metrics:
            return METHODS[class_metric(metric, 2)](self)
        if metric in CUSTOM_METRICS:
            return self.custom(metric)
        recalls = dict(zip(map("recall/{}".format, self.classes), self.recalls, strict=True))
        if metric not in recalls:
            raise ValueError(
                f"metric is {metric!r}; expected one of {', '.join([*self.metrics, *CUSTOM_METRICS, *recalls])}"
            )
        return recalls[metric]


# Methods by the names of two classes. More classes have the same methods.
METHODS: dict[str, Callable[[CountedPredictions], Estimate]] = {
    "accuracy": CountedPredictions.accuracy,
    "balanced_accuracy": lambda tested: mean(tested.recalls),
    "f1_macro": lambda tested: mean(
        [tested.f1(c) for c in range(len(tested.classes))], dependent=len(tested.classes) == 2
    ),
    "auroc_macro": lambda tested: tested.macro(tested.auroc),
    "average_precision": lambda tested: tested.macro(tested.average_precision),
    "sensitivity": lambda tested: mean([tested.recalls[c] for c in tested.scored]),
    "specificity": lambda tested: tested.macro(tested.specificity),
    "precision": lambda tested: tested.macro(tested.precision),
    "ece": CountedPredictions.ece,
}


def classification_intervals(
    label: npt.ArrayLike, probability: npt.ArrayLike, groups: Sequence[str] | npt.NDArray[np.str_], classes: Sequence[str],
    metrics: Sequence[str] | None = None, n_resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Compute classification metrics with intervals over lesions.

    The interval covers the sampling of test lesions. It does not cover the randomness of training (other seeds, other training sets),
    nor images of another clinic.

    Args:
        label: (N,) integers in 0 … C−1.
        probability: (N, C) in [0, 1], rows summing to 1.
        groups: (N,), lesion of each image.
        classes: the C class names. The second of two is the positive class.
        metrics: names of metrics; None for all.
        n_resamples: number of bootstrap resamples for metrics of plugins.
        level: level of the intervals, between 0 and 1.
        seed: random seed of the bootstrap.

    Returns:
        One row per metric: `metric value low high n_resamples note`. `n_resamples` is 0 for closed forms, otherwise the number of
        resamples with a defined metric. Without an interval, `low` and `high` are NaN and `note` is the reason.

    Raises:
        ValueError: malformed predictions (see `check_predictions`), groups or level, or an unknown metric.
    """
    tested = CountedPredictions(label, probability, groups, classes, n_resamples, seed)
    recalls = [f"recall/{name}" for name in classes]
    names = [*tested.metrics, *CUSTOM_METRICS, *recalls] if metrics is None else metrics
    return interval_table({name: tested.estimate(name) for name in names}, level)


def mean_intervals(
    table: pd.DataFrame, columns: Sequence[str], groups: Sequence[str] | npt.NDArray[np.str_], level: float = 0.95
) -> pd.DataFrame:
    """Compute means of per-image values with intervals over lesions.

    Args:
        table: one row per image; NaN for images without a value, which are left out of the mean.
        columns: columns to average, such as segmentation metrics. Values lie in [0, 1], except in columns of `names.UNBOUNDED`.
        groups: (N,), lesion of each image.
        level: level of the intervals, between 0 and 1.

    Returns:
        One row per column, as in `classification_intervals`. A column without values has NaN.

    Raises:
        ValueError: missing columns, infinite or negative values, values above 1, or malformed groups or level.
    """
    return interval_table({name: mean_estimate(table, name, groups) for name in columns}, level)


def mean_estimate(table: pd.DataFrame, column: str, groups: Sequence[str] | npt.NDArray[np.str_]) -> Estimate:
    """Estimate the mean of a column as in `mean_intervals`."""
    if column not in table:
        raise ValueError(f"metric is {column!r}; expected one of {', '.join(map(str, table))}")
    values, lesion = table[column].to_numpy(dtype=np.float64), lesion_numbers(groups, len(table))
    known = ~np.isnan(values)
    unbounded = column in UNBOUNDED
    if (values[known] < 0).any() or (values[known] > (np.finfo(np.float64).max if unbounded else 1 + 1e-9)).any():
        raise ValueError(
            f"values of {column} must be {'finite and not negative' if unbounded else 'in [0, 1]'}, or NaN"
        )
    sums, counts = (np.bincount(lesion, part).astype(np.float64) for part in (np.where(known, values, 0), known))
    return positive_mean(sums, counts) if unbounded else proportion(sums, counts, binary=False)


def interval_table(estimates: Mapping[str, Estimate], level: float = 0.95) -> pd.DataFrame:
    """Return one row per estimate: `metric value low high n_resamples note`.

    Raises:
        ValueError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95; got {level}")
    rows = [
        (name, estimate.value, *estimate.bounds(level), estimate.n_resamples, estimate.note)
        for name, estimate in estimates.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)
