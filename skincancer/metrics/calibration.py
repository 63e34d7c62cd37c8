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

from skincancer.metrics.classification import check_predictions
from skincancer.metrics.combinations import difference
from skincancer.metrics.estimates import COLUMNS, CountedPredictions, interval_table
from skincancer.metrics.intervals import Certain

Floats = npt.NDArray[np.float64]

# Bounds of the search.
TEMPERATURES = (0.01, 100.0)
MEASURES = {"ece": CountedPredictions.ece, "brier": CountedPredictions.brier, "nll": CountedPredictions.nll}
STAGES = ("before", "after", "change")


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
    classes: Sequence[str], level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Measure calibration before and after scaling, and the paired change, with intervals over lesions.

    Args:
        label: (N,) integers in 0 … C−1.
        before: probabilities (N, C), rows summing to 1.
        after: scaled probabilities (N, C).
        groups: (N,), lesion of each image.
        classes: the C class names.
        level: level of the interval, between 0 and 1.

    Returns:
        One row per measure and stage (before, after, change): `metric stage value low high n_resamples note`.

    Raises:
        ValueError: malformed predictions (see `check_predictions`), groups or level.
    """
    first, second = (CountedPredictions(label, probability, groups, classes) for probability in (before, after))
    unchanged = np.array_equal(first.probability, second.probability)
    tables = []
    for name, measure in MEASURES.items():
        estimates = [measure(tested) for tested in (first, second)]
        change = Certain(0.0, np.empty(0)) if unchanged else difference(*reversed(estimates))
        table = interval_table(dict(zip(STAGES, (*estimates, change), strict=True)), level)
        tables.append(table.rename(columns={"metric": "stage"}).assign(metric=name))
    return pd.concat(tables, ignore_index=True)[["metric", "stage", *COLUMNS[1:]]]
