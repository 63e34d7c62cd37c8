"""Classification metrics of one set of images, or of thousands of resamples at once.

`label` is int64 (N,) in 0 … C−1, and `probability` float64 (N, C) in [0, 1] with rows that sum to 1. The prediction is the class of
highest probability, the first of equal ones. The weight of an image is the number of times that it counts.

* `accuracy`: share of images with the correct prediction.
* `balanced_accuracy`: mean recall over the classes present in `label`.
* `f1_macro`: mean F1 over the classes present in `label` or in the prediction.
* `sensitivity`, `specificity`, `precision`: of two classes, those of class 1, the positive class. Precision of a class without
  predictions is 0.
* `recall_macro`, `specificity_macro`, `precision_macro`: the same of more classes, each class against the rest, averaged over the
  classes present in `label`. `recall_macro` equals `balanced_accuracy`.
* `auroc_macro`: AUROC of class 1 of two classes. Of more, each class against the rest, averaged over the classes with positives and
  negatives. Ties count as in scikit-learn.
* `average_precision`, `average_precision_macro`: average precision, likewise, as step-wise sum without interpolation.
* `ece`: expected calibration error of the highest probability in 15 bins of equal width, each open below and closed above (Guo et al.,
  "On Calibration of Modern Neural Networks", ICML 2017).
* `recall/<class>`: recall of one class.

Undefined metrics are NaN, such as the recall of a class absent from `label`, or the AUROC of one class. Macro averages leave NaN out.
All values equal those of scikit-learn if scikit-learn has the metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from skincancer.errors import RunError
from skincancer.metrics.custom import CUSTOM_METRICS
from skincancer.metrics.names import class_metric
from skincancer.plugins import describe_error

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CALIBRATION_BINS = 15

# Number of weights per chunk, 4 MiB of float64, so that memory does not grow with the number of resamples.
_CHUNK = 2**19


def classification_metrics(
    label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str], weight: npt.ArrayLike | None = None
) -> dict[str, float]:
    """Compute every metric of one set of images.

    Args:
        label: (N,) integers in 0 … C−1.
        probability: (N, C) in [0, 1], rows summing to 1.
        classes: the C class names. The second of two is the positive class.
        weight: (N,), count of each image, not negative; None counts each image once.

    Returns:
        Names in `names.METRICS` for this number of classes, metrics of plugins, then `recall/<class>`; NaN for undefined metrics.

    Raises:
        ValueError: malformed labels, probabilities or weights.
    """
    rows = np.ones((1, np.size(label))) if weight is None else np.asarray(weight)[None]
    return {name: float(value[0]) for name, value in weighted_metrics(label, probability, classes, rows).items()}


def weighted_metrics(
    label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str], weight: npt.ArrayLike
) -> dict[str, Floats]:
    """Compute every metric for each row of weights, such as bootstrap resamples.

    Args:
        label: (N,) integers in 0 … C−1.
        probability: (N, C) in [0, 1], rows summing to 1.
        classes: the C class names. The second of two is the positive class.
        weight: (R, N), count of each image in each resample, any real dtype, not negative.

    Returns:
        Metrics as in `classification_metrics`, each float64 (R,); NaN for undefined metrics of a resample.

    Raises:
        ValueError: malformed labels, probabilities or weights.
    """
    y, p = check_predictions(label, probability, classes)
    w = _checked_weight(weight, len(y))
    n_classes = len(classes)
    # Cell of the confusion matrix of each image. A dense matrix of 300 classes would need 60 GiB.
    places = np.arange(len(y)), y * n_classes + p.argmax(axis=1)
    cell = csr_array((np.ones(len(y)), places), shape=(len(y), n_classes**2))
    gap = calibration_gap(y, p)
    rankings = [_ranking(p[:, c], y == c) for c in ([1] if n_classes == 2 else range(n_classes))]

    step = max(1, _CHUNK // len(y))
    chunks = []
    for start in range(0, len(w), step):
        rows = w[start : start + step].astype(np.float64)
        rates = _rates((rows @ cell).reshape(-1, n_classes, n_classes))
        columns = np.ascontiguousarray(rows.T)
        class_areas = [_areas(columns, ranking) for ranking in rankings]
        # Classes present in the resample.
        chosen = np.isfinite(rates.recall)
        if n_classes == 2:
            chosen = np.broadcast_to([False, True], chosen.shape)
        values = {
            "accuracy": rates.accuracy,
            "balanced_accuracy": _mean(rates.recall),
            "f1_macro": _mean(rates.f1),
            **{
                name: _mean(np.stack(area, axis=1))
                for name, area in zip(("auroc_macro", "average_precision"), zip(*class_areas, strict=True), strict=True)
            },
            "sensitivity": _mean(np.where(chosen, rates.recall, np.nan)),
            "specificity": _mean(np.where(chosen, rates.specificity, np.nan)),
            "precision": _mean(np.where(chosen, rates.precision, np.nan)),
            "ece": _ratio(np.abs(rows @ gap).sum(axis=1), rows.sum(axis=1)),
            **{name: custom_values(name, y, p, rows) for name in CUSTOM_METRICS},
        }
        values = {class_metric(name, n_classes): value for name, value in values.items()}
        values |= {f"recall/{name}": rates.recall[:, c] for c, name in enumerate(classes)}
        chunks.append(values)
    return {name: np.concatenate([values[name] for values in chunks]) for name in chunks[0]}


def custom_values(name: str, label: Ints, probability: Floats, weight: Floats) -> Floats:
    """Compute the metric of a plugin for each row of weights, float64 (R,).

    Raises:
        RunError: the metric fails.
    """
    try:
        function = CUSTOM_METRICS[name].function
        return np.array([float(function(label, probability, row)) for row in weight])
    # A user's code may raise anything.
    except Exception as error:
        raise RunError(f"the metric {name} of a plugin fails: {describe_error(error)}. Fix it.") from error


def calibration_bin(confidence: Floats) -> Ints:
    """Return the calibration bins 0 … 14 of confidences in [0, 1].

    Bin b is (b/15, (b+1)/15]. The first also contains 0.
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, CALIBRATION_BINS - 1)


def calibration_gap(label: Ints, probability: Floats) -> Floats:
    """Return correctness (0 or 1) minus confidence, float64 (N, 15).

    Each image has one value, in the column of its bin. The `ece` is the sum of the absolute sums of the bins, divided by N.
    """
    confidence = probability.max(axis=1)
    correct = probability.argmax(axis=1) == label
    return np.eye(CALIBRATION_BINS)[calibration_bin(confidence)] * (correct - confidence)[:, None]


def check_predictions(label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str]) -> tuple[Ints, Floats]:
    """Return label as int64 (N,) and probability as float64 (N, C).

    Raises:
        ValueError: shapes that do not fit, labels that are not integers in 0 … C−1, or probabilities that are not finite, not in
            [0, 1], or do not sum to 1 (tolerance 0.01, for softmax in half precision).
    """
    y, p = np.asarray(label), np.asarray(probability, dtype=np.float64)
    n_classes = len(classes)
    if n_classes < 2 or len(set(classes)) != n_classes:
        raise ValueError(f"classes must be two or more different names, got {list(classes)}")
    if y.ndim != 1 or not len(y):
        raise ValueError(f"label must have shape (N,) with at least one image, got {y.shape}")
    if p.shape != (len(y), n_classes):
        raise ValueError(
            f"probability must have shape ({len(y)}, {n_classes}) for {len(y)} labels and {n_classes} classes, "
            f"got {p.shape}"
        )
    if y.dtype.kind not in "iu":
        raise ValueError(f"label must hold integers, the positions in classes, got dtype {y.dtype}")
    if y.min() < 0 or y.max() >= n_classes:
        raise ValueError(
            f"labels must lie in 0 … {n_classes - 1}, got {y.min()} … {y.max()}; leave out images without label (−1)"
        )
    if not np.isfinite(p).all():
        raise ValueError(
            f"probabilities must be finite; {(~np.isfinite(p).all(axis=1)).sum()} of {len(p)} rows are not"
        )
    if p.min() < -1e-6 or p.max() > 1 + 1e-6 or np.abs(p.sum(axis=1) - 1).max() > 0.01:
        raise ValueError(
            f"probabilities must lie in [0, 1] and sum to 1 in each row, got values {p.min():.4g} … {p.max():.4g} "
            f"and sums {p.sum(axis=1).min():.4g} … {p.sum(axis=1).max():.4g}; apply softmax to logits first"
        )
    return y.astype(np.int64), p


def _checked_weight(weight: npt.ArrayLike, n_images: int) -> npt.NDArray[np.number]:
    w = np.asarray(weight)
    if w.ndim != 2 or not len(w) or w.shape[1] != n_images:
        raise ValueError(
            f"weight must have shape (R, {n_images}): one row per resample, one column per image; got {w.shape}"
        )
    if w.dtype.kind not in "biuf" or not np.isfinite(w).all() or w.min() < 0:
        raise ValueError("weights must be finite numbers that are not negative")
    return w


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, with NaN for denominators of 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _mean(values: Floats) -> Floats:
    """Average (R, C) over classes without NaN. np.nanmean would warn."""
    defined = np.isfinite(values)
    return _ratio(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


class _Rates(NamedTuple):
    accuracy: Floats  # (R,)
    recall: Floats  # (R, C), as all below; NaN if undefined
    precision: Floats
    specificity: Floats
    f1: Floats


def _rates(confusion: Floats) -> _Rates:
    """Compute rates from weighted confusion matrices (R, C, C), true class by predicted class."""
    n_classes = confusion.shape[1]
    right = np.einsum("rcc->rc", confusion)
    wrong = confusion * (1 - np.eye(n_classes))
    missed, false_alarms = wrong.sum(axis=2), wrong.sum(axis=1)
    n_true = right + missed
    # A sum is exactly 0 if no other class is present. A difference is not.
    n_other = n_true @ (1 - np.eye(n_classes))
    precision = _ratio(right, right + false_alarms)
    precision[(n_true > 0) & (right + false_alarms == 0)] = 0
    return _Rates(
        accuracy=_ratio(right.sum(axis=1), n_true.sum(axis=1)),
        recall=_ratio(right, n_true),
        precision=precision,
        specificity=_ratio(n_other - false_alarms, n_other),
        f1=_ratio(2 * right, 2 * right + missed + false_alarms),
    )


class _Ranking(NamedTuple):
    """Images by descending score in blocks of equal scores, for all weights."""

    order: Ints  # (N,)
    block_start: Ints  # (B,) positions in order
    positive: Ints  # (P,) the positive images, in order
    positive_start: Ints  # (K,) first positions of blocks in positive
    positive_block: Ints  # (K,) blocks with positives


def _ranking(score: Floats, positive: npt.NDArray[np.bool_]) -> _Ranking:
    order = np.argsort(-score, kind="stable")
    is_start = np.append(True, np.diff(score[order]) != 0)
    block = np.cumsum(is_start) - 1
    in_order = positive[order]
    positive_block, positive_start = np.unique(block[in_order], return_index=True)
    return _Ranking(order, np.flatnonzero(is_start), order[in_order], positive_start, positive_block)


def _areas(weight: Floats, ranking: _Ranking) -> tuple[Floats, Floats]:
    """Return AUROC and average precision (R,) for weights (N, R).

    Both are NaN if all positives or all negatives have weight 0. Only blocks with positives matter. AUROC is the mean over positives
    of the share of negatives ranked below, plus half of the ties. Average precision is the mean over positives of the precision at
    the end of their block.
    """
    nowhere = np.full(weight.shape[1], np.nan)
    if not 0 < len(ranking.positive) < len(ranking.order):
        return nowhere, nowhere
    block = np.add.reduceat(weight[ranking.order], ranking.block_start, axis=0)
    down_to_block = np.cumsum(block, axis=0)
    total = down_to_block[-1]
    down_to_block, block = down_to_block[ranking.positive_block], block[ranking.positive_block]
    positive = np.add.reduceat(weight[ranking.positive], ranking.positive_start, axis=0)
    positive_down_to_block = np.cumsum(positive, axis=0)
    n_positive = positive_down_to_block[-1]
    n_negative = total - n_positive

    negatives_beaten = n_negative - (down_to_block - positive_down_to_block) + (block - positive) / 2
    precision = np.divide(positive_down_to_block, down_to_block, out=np.zeros_like(block), where=down_to_block > 0)
    auroc = _ratio(np.einsum("kr,kr->r", positive, negatives_beaten), n_positive * n_negative)
    average_precision = _ratio(np.einsum("kr,kr->r", positive, precision), n_positive)
    return auroc, np.where(n_negative > 0, average_precision, np.nan)
