"""Operating points: thresholds for a sensitivity, and their metrics on other images.

A lesion with a score of at least the threshold is called positive, and would be biopsied. At a prevalence π, sensitivity s and
specificity c, Bayes' rule gives PPV = sπ / (sπ + (1−c)(1−π)) and NPV = c(1−π) / (c(1−π) + (1−s)π). The number needed to biopsy is
1 / PPV, the number of biopsies per malignant lesion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from skincancer.metrics.bootstrap import lesion_numbers
from skincancer.metrics.estimates import interval_table
from skincancer.metrics.intervals import DRAWS, LEVELS, Estimate, NoInterval, monotone, normal_draws
from skincancer.metrics.lesion_sums import proportion

Floats = npt.NDArray[np.float64]

SENSITIVITY = 0.95
# With fewer positive validation images, one image changes the sensitivity by more than five points.
FEW_POSITIVES = 20
MEASURES = ("sensitivity", "specificity", "ppv", "npv", "number_needed_to_biopsy")


@dataclass(frozen=True, eq=False)
class Predictive(Estimate):
    """PPV or NPV at a prevalence.

    The value is 1 / (1 + odds × wrong / right).

    Attributes:
        wrong: share of false calls among the negatives; for NPV, share of missed among the positives.
        right: share of correct calls among the positives; for NPV, share of cleared among the negatives.
        odds: odds of the other class.
    """

    wrong: Estimate
    right: Estimate
    odds: float

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return quantiles of the value for independent confidence distributions of both proportions."""
        normal = normal_draws(2).T
        levels = special.ndtr(LEVELS)
        wrong = np.interp(normal[0], LEVELS, self.wrong.limit(levels, upper=not upper))
        right = np.interp(normal[1], LEVELS, self.right.limit(levels, upper=upper))
        both = right + self.odds * wrong
        return np.quantile(np.divide(right, both, out=np.full(DRAWS, float(upper)), where=both > 0), level)


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
    prevalence: float | None = None, level: float = 0.95,
) -> pd.DataFrame:  # fmt: skip
    """Measure a fixed threshold, with intervals over lesions.

    The intervals cover the sampling of these lesions, not of the validation images that the threshold was selected on.

    Args:
        positive: bool (N,).
        score: (N,).
        threshold: smallest score that is called positive.
        groups: (N,), lesion of each image.
        prevalence: share of positives where the test would be used, above 0 and below 1; None for the share in these images.
        level: level of the interval, between 0 and 1.

    Returns:
        One row for each of `MEASURES`, as in `estimates.classification_intervals`. Undefined values are NaN, such as the PPV without
        positive calls.

    Raises:
        ValueError: malformed shapes, prevalence or level.
    """
    truth, scores = _checked(positive, score)
    if prevalence is not None and not 0 < prevalence < 1:
        raise ValueError(f"prevalence must be above 0 and below 1, such as 0.1; got {prevalence}")
    called = scores >= threshold
    cells = np.stack([truth & called, truth & ~called, ~truth & called, ~truth & ~called])
    lesion = lesion_numbers(groups, len(truth))
    hit, missed, alarm, passed = (np.bincount(lesion, cell).astype(np.float64) for cell in cells)
    sensitivity, specificity = proportion(hit, hit + missed), proportion(passed, passed + alarm)
    if prevalence is None:
        ppv, npv = proportion(hit, hit + alarm), proportion(passed, passed + missed)
    else:
        odds = (1 - prevalence) / prevalence
        ppv = predictive(proportion(alarm, passed + alarm), sensitivity, odds)
        npv = predictive(proportion(missed, hit + missed), specificity, 1 / odds)
    number = (
        monotone(ppv, lambda value: 1 / value, slope=-1 / ppv.value**2)
        if ppv.value > 0
        else NoInterval(np.nan, ppv.influence, "no true positive")
    )
    return interval_table(dict(zip(MEASURES, (sensitivity, specificity, ppv, npv, number), strict=True)), level)


def predictive(wrong: Estimate, right: Estimate, odds: float) -> Estimate:
    """Return the PPV or NPV of `Predictive`, undefined without calls of its kind."""
    if not np.isfinite(wrong.value + right.value) or wrong.value + right.value == 0:
        return NoInterval(np.nan, wrong.influence, "no image counts")
    return Predictive(
        1 / (1 + odds * wrong.value / right.value) if right.value else 0.0, wrong.influence, wrong, right, odds
    )


def _checked(positive: npt.ArrayLike, score: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], Floats]:
    truth, scores = np.asarray(positive), np.asarray(score, dtype=np.float64)
    if truth.dtype != np.bool_ or truth.ndim != 1 or truth.shape != scores.shape or not len(truth):
        raise ValueError(
            f"positive must be bool (N,) and score (N,), N at least 1; got {truth.dtype} {truth.shape} and {scores.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError(f"scores must be finite; {(~np.isfinite(scores)).sum()} of {len(scores)} are not")
    return truth, scores
