"""Temperature scaling: one number that makes a classifier less (or more) sure, fitted on validation, measured on test.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2: probabilities become softmax(logits / T), T being what
minimises the mean negative log-likelihood on validation. No prediction changes, since the order of the classes does not.

Measures, lower being better: `ece` as in `metrics`; `brier`, the sum over the classes of the squared distance to 0 or 1, averaged
over images, so from 0 to 2 (Brier 1950; of two classes it is twice scikit-learn's default); `nll`, the mean of −log of the true class's
probability.
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

TEMPERATURES = (0.01, 100.0)  # the bounds of the search
MEASURES = ("ece", "brier", "nll")
STAGES = ("before", "after", "change")
_SMALLEST = np.finfo(np.float64).tiny


def fit_temperature(label: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Return the temperature that minimises the mean negative log-likelihood.

    It has one minimum, being convex in 1/T; one that lies at a bound of `TEMPERATURES` (every image predicted right, say) is that bound.

    Args:
        label: (N,) integers in 0 … C−1.
        logits: (N, C), finite.

    Raises:
        ValueError: shapes or labels are not as above.
    """
    z = np.asarray(logits, dtype=np.float64)
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ValueError(f"logits must be finite and have shape (N, C), given {z.shape}")
    y, _ = check_predictions(label, softmax(z, axis=1), [str(number) for number in range(z.shape[1])])
    z = z - z.max(axis=1, keepdims=True)
    rows = np.arange(len(y))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(z / np.exp(log_temperature), axis=1)[rows, y].mean())

    bounds = tuple(np.log(TEMPERATURES))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9, "maxiter": 500})
    # the search itself never tries a bound
    best = min((*TEMPERATURES, float(np.exp(found.x))), key=lambda temperature: loss(np.log(temperature)))
    return best


def scale(logits: npt.ArrayLike, temperature: float) -> Floats:
    """Return probabilities float64 (N, C) of logits (N, C) at a temperature."""
    return np.asarray(softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1))


def calibration_table(
    label: npt.ArrayLike,
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    groups: Sequence[str] | npt.NDArray[np.str_],
    classes: Sequence[str],
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the calibration of the same images before and after scaling, and the change, with intervals over lesions.

    Each resample of the lesions, drawn within the classes, is given to both, so the interval of the change is that of a paired
    difference. The interval of an `ece` lies too high, as said at `statistics.bootstrap_intervals`.

    Args:
        label: (N,) integers in 0 … C−1.
        before: probabilities (N, C), rows summing to 1.
        after: the same, scaled.
        groups: (N,) the lesion of each image.
        classes: the C class names.
        n_resamples: how many resamples are drawn.
        level: of the interval, between 0 and 1.
        seed: of the draw.

    Returns:
        A row a measure and stage (before, after, change): `metric stage value low high n_resamples`.

    Raises:
        ValueError: malformed predictions (see `metrics.check_predictions`), groups, n_resamples or level.
    """
    y, _ = check_predictions(label, before, classes)
    weight = bootstrap_weights(groups, y, n_resamples, seed)
    once = np.ones((1, len(y)))
    found = []
    for given in (before, after):
        _, p = check_predictions(y, given, classes)
        found.append((_measured(y, p, once), _measured(y, p, weight)))
    (first, first_resampled), (second, second_resampled) = found
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
