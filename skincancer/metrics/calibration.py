"""Temperature scaling, fitted on the validation set and measured on the test set.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2: probabilities become softmax(logits / T), where T
minimises the mean negative log-likelihood on the validation set. Predictions do not change, because the order of the classes stays.

Measures, lower is better:

* `ece`: as in `classification`.
* `brier`: squared distance to 0 or 1, summed over the classes and averaged over images, from 0 to 2 (Brier 1950). For two classes it
  is twice scikit-learn's default.
* `nll`: mean of −log of the probability of the true class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from skincancer.metrics.bootstrap import bootstrap_weights, percentile_interval
from skincancer.metrics.classification import CALIBRATION_BINS, calibration_gap, check_predictions

Floats = npt.NDArray[np.float64]

# Bounds of the search.
TEMPERATURES = (0.01, 100.0)
MEASURES = ("ece", "brier", "nll")
STAGES = ("before", "after", "change")
_SMALLEST = np.finfo(np.float64).tiny


def fit_temperature(label: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Return the temperature that minimises the mean negative log-likelihood.

    The likelihood is convex in 1/T, so the minimum is unique. It may be a bound of `TEMPERATURES`, as when all predictions are correct.

    Args:
        label: (N,) integers in 0 … C−1.
        logits: (N, C), finite.

    Raises:
        ValueError: malformed labels or logits.
    """
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ValueError(f"logits must be finite and have shape (N, C), got {z.shape}")
    y, _ = check_predictions(label, softmax(z, axis=1), [str(number) for number in range(z.shape[1])])
    z = z - z.max(axis=1, keepdims=True)
    rows = np.arange(len(y))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(z / np.exp(log_temperature), axis=1)[rows, y].mean())

    bounds = tuple(np.log(TEMPERATURES))
    result = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9, "maxiter": 500})
    # The search never evaluates a bound.
    return min((*TEMPERATURES, float(np.exp(result.x))), key=lambda temperature: loss(np.log(temperature)))


def scale(logits: npt.ArrayLike, temperature: float) -> Floats:
    """Return probabilities float64 (N, C) of logits (N, C) at a temperature."""
    return np.asarray(softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1))


def calibration_table(
    label: npt.ArrayLike, before: npt.ArrayLike, after: npt.ArrayLike, groups: Sequence[str] | npt.NDArray[np.str_],
    classes: Sequence[str], n_resamples: int = 2000, level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Measure calibration before and after scaling, and the change, with intervals over lesions.

    Both stages use the same resamples, so the interval of the change is that of a paired difference. The interval of `ece` lies too
    high (see `bootstrap_intervals`).

    Args:
        label: (N,) integers in 0 … C−1.
        before: probabilities (N, C), rows summing to 1.
        after: scaled probabilities (N, C).
        groups: (N,), lesion of each image.
        classes: the C class names.
        n_resamples: number of resamples.
        level: level of the interval, between 0 and 1.
        seed: random seed.

    Returns:
        One row per measure and stage (before, after, change): `metric stage value low high n_resamples`.

    Raises:
        ValueError: malformed predictions (see `check_predictions`), groups, n_resamples or level.
    """
    y, _ = check_predictions(label, before, classes)
    weight = bootstrap_weights(groups, y, n_resamples, seed)
    once = np.ones((1, len(y)))
    measures = []
    for probability in (before, after):
        _, p = check_predictions(y, probability, classes)
        measures.append((_measured(y, p, once), _measured(y, p, weight)))
    (first, first_resampled), (second, second_resampled) = measures
    rows = []
    for name in MEASURES:
        stages = (
            (first[name], first_resampled[name]),
            (second[name], second_resampled[name]),
            (second[name] - first[name], second_resampled[name] - first_resampled[name]),
        )
        for stage, (value, resampled) in zip(STAGES, stages, strict=True):
            rows.append((name, stage, float(value[0]), *percentile_interval(float(value[0]), resampled, level)))
    return pd.DataFrame(rows, columns=["metric", "stage", "value", "low", "high", "n_resamples"])


def _measured(label: npt.NDArray[np.int64], probability: Floats, weight: npt.NDArray[np.number]) -> dict[str, Floats]:
    """Return every measure (R,) for weights (R, N)."""
    squares = ((probability - np.eye(probability.shape[1])[label]) ** 2).sum(axis=1)
    surprise = -np.log(np.maximum(probability[np.arange(len(label)), label], _SMALLEST))
    each = np.column_stack([calibration_gap(label, probability), squares, surprise, np.ones(len(label))])
    sums = weight @ each
    total = sums[:, -1]
    ece = np.abs(sums[:, :CALIBRATION_BINS]).sum(axis=1) / total
    return {"ece": ece, "brier": sums[:, -3] / total, "nll": sums[:, -2] / total}
