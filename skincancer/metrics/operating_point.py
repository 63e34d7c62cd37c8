"""Operating points: thresholds for a sensitivity, and their metrics on other images.

A lesion with a score of at least the threshold is called positive, and would be biopsied. At a prevalence π, sensitivity s and
specificity c, Bayes' rule gives PPV = sπ / (sπ + (1−c)(1−π)) and NPV = c(1−π) / (c(1−π) + (1−s)π). The number needed to biopsy is
1 / PPV, the number of biopsies per malignant lesion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.metrics.bootstrap import bootstrap_weights, percentile_interval

Floats = npt.NDArray[np.float64]

SENSITIVITY = 0.95
# With fewer positive validation images, one image changes the sensitivity by more than five points.
FEW_POSITIVES = 20
MEASURES = ("sensitivity", "specificity", "ppv", "npv", "number_needed_to_biopsy")


def sensitivity_threshold(positive: npt.ArrayLike, score: npt.ArrayLike, sensitivity: float = SENSITIVITY) -> float:
    """Return the highest threshold that reaches a sensitivity.

    Args:
        positive: bool (N,), at least one true.
        score: (N,), higher for positives.
        sensitivity: above 0, at most 1.

    Raises:
        ValueError: no positive image, or malformed shapes or sensitivity.
    """
    truth, scores = _checked(positive, score)
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity must be above 0 and at most 1, such as 0.95; got {sensitivity}")
    if not truth.any():
        raise ValueError("no image is positive, so no threshold has a sensitivity")
    falling = np.sort(scores[truth])[::-1]
    # 0.95 × 20 is 19, and not 19.000000000000004.
    needed = int(np.ceil(sensitivity * len(falling) - 1e-9))
    return float(falling[needed - 1])


def operating_point(
    positive: npt.ArrayLike, score: npt.ArrayLike, threshold: float, groups: Sequence[str] | npt.NDArray[np.str_],
    prevalence: float | None = None, n_resamples: int = 2000, level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Measure a fixed threshold, with percentile bootstrap intervals over lesions.

    Lesions are resampled within positives and negatives. The intervals cover the sampling of these lesions, not of the validation
    images that the threshold was selected on.

    Args:
        positive: bool (N,).
        score: (N,).
        threshold: smallest score that is called positive.
        groups: (N,), lesion of each image.
        prevalence: share of positives where the test would be used, above 0 and below 1; None for the share in these images.
        n_resamples: number of resamples.
        level: level of the interval, between 0 and 1.
        seed: random seed.

    Returns:
        One row for each of `MEASURES`, as in `bootstrap_intervals`: `metric value low high n_resamples`. Undefined values are NaN,
        such as the PPV without positive calls.

    Raises:
        ValueError: malformed shapes, prevalence or level.
    """
    truth, scores = _checked(positive, score)
    if prevalence is not None and not 0 < prevalence < 1:
        raise ValueError(f"prevalence must be above 0 and below 1, such as 0.1; got {prevalence}")
    called = scores >= threshold
    cells = np.stack([truth & called, truth & ~called, ~truth & called, ~truth & ~called], axis=1).astype(np.float64)
    once = _measures(cells.sum(axis=0, keepdims=True), prevalence)
    weight = bootstrap_weights(groups, truth.astype(np.int64), n_resamples, seed)
    resampled = _measures(weight @ cells, prevalence)
    rows = [
        (name, float(once[name][0]), *percentile_interval(float(once[name][0]), resampled[name], level))
        for name in MEASURES
    ]
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n_resamples"])


def _measures(cells: Floats, prevalence: float | None) -> dict[str, Floats]:
    """Return measures (R,) of counts (R, 4) of TP, FN, FP and TN."""
    hit, missed, alarm, passed = cells.T
    sensitivity, specificity = _ratio(hit, hit + missed), _ratio(passed, passed + alarm)
    share = _ratio(hit + missed, cells.sum(axis=1)) if prevalence is None else np.full(len(cells), prevalence)
    detected, lost = sensitivity * share, (1 - sensitivity) * share
    alarms, cleared = (1 - specificity) * (1 - share), specificity * (1 - share)
    ppv = _ratio(detected, detected + alarms)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": ppv,
        "npv": _ratio(cleared, cleared + lost),
        "number_needed_to_biopsy": _ratio(np.ones_like(ppv), ppv),
    }


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _checked(positive: npt.ArrayLike, score: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], Floats]:
    truth, scores = np.asarray(positive), np.asarray(score, dtype=np.float64)
    if truth.dtype != np.bool_ or truth.ndim != 1 or truth.shape != scores.shape or not len(truth):
        raise ValueError(
            f"positive must be bool (N,) and score (N,), N at least 1; got {truth.dtype} {truth.shape} and {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite; {(~np.isfinite(scores)).sum()} of {len(scores)} are not")
    return truth, scores
