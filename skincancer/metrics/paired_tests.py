"""Paired tests of two models: McNemar's, DeLong's, and Holm's correction for multiple tests.

Images of one lesion are not independent, so both tests use lesions as units. With one image per lesion they equal the textbook tests.
Neither covers the randomness of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from skincancer.metrics.areas import auroc_influence
from skincancer.metrics.classification import check_predictions

# Number of discordant units from which chi-squared is accurate enough (the usual rule).
EXACT_BELOW = 25


class McNemar(NamedTuple):
    """Units that only one model predicts correctly, and the two-sided p-value."""

    first_only: int
    second_only: int
    p: float
    exact: bool


class DeLong(NamedTuple):
    """AUROCs, their difference (first minus second), its standard error, and the two-sided p-value."""

    first: float
    second: float
    difference: float
    error: float
    p: float


def mcnemar(
    first_right: npt.ArrayLike, second_right: npt.ArrayLike, groups: Sequence[str] | npt.NDArray[np.str_] | None = None
) -> McNemar:
    """Test whether two models are correct equally often (McNemar, Psychometrika 12, 1947).

    A lesion counts for the model with more correct images of the lesion, and for neither in a tie: a sign test over lesions. With
    fewer than 25 discordant lesions the test is exact (binomial), else chi-squared with Edwards' continuity correction.

    Args:
        first_right: bool (N,), whether the first model is correct.
        second_right: bool (N,), whether the second model is correct.
        groups: (N,), lesion of each image; None uses images as units.

    Raises:
        ValueError: arguments of different lengths, or empty.
    """
    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    group = np.arange(len(first)) if groups is None else np.asarray(groups)
    if first.ndim != 1 or not len(first) or first.shape != second.shape or group.shape != first.shape:
        raise ValueError(f"use three columns of one length, not {first.shape}, {second.shape} and {group.shape}")
    _, lesion = np.unique(group, return_inverse=True)
    net = np.bincount(lesion, weights=first.astype(np.int64) - second.astype(np.int64))
    first_only, second_only = int((net > 0).sum()), int((net < 0).sum())
    discordant = first_only + second_only
    exact = discordant < EXACT_BELOW
    if not discordant:
        p = 1.0
    elif exact:
        p = float(stats.binomtest(first_only, discordant).pvalue)
    else:
        p = float(stats.chi2.sf((abs(first_only - second_only) - 1) ** 2 / discordant, df=1))
    return McNemar(first_only, second_only, p, exact)


def delong(
    label: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, classes: Sequence[str],
    groups: Sequence[str] | npt.NDArray[np.str_] | None = None,
) -> DeLong:  # fmt: skip
    """Test whether two models have the same AUROC.

    DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988. The share of each image in the AUROC (DeLong's structural components, from
    midranks: Sun and Xu, IEEE Signal Processing Letters 21, 2014) is summed over the images of a lesion before the variance is
    computed (Obuchowski, Biometrics 53, 1997). With more than two classes, AUROC and shares are means over the classes, each against
    the rest.

    Args:
        label: (N,) integers in 0 … C−1.
        first: probabilities (N, C) of the first model.
        second: probabilities (N, C) of the second model, for the same images in the same order.
        classes: the C class names. The second of two is the positive class.
        groups: (N,), lesion of each image; None uses images as units.

    Raises:
        ValueError: malformed predictions or groups, or no class with two images and two other images.
    """
    y, p = check_predictions(label, first, classes)
    _, q = check_predictions(label, second, classes)
    group = np.arange(len(y)) if groups is None else np.asarray(groups)
    if group.shape != y.shape:
        raise ValueError(f"groups must have shape {y.shape}, got {group.shape}")
    candidates = [1] if len(classes) == 2 else range(len(classes))
    scored = [c for c in candidates if 2 <= (y == c).sum() <= len(y) - 2]
    if not scored:
        raise ValueError("no class has two images and two images of other classes: there is no AUROC with a variance")
    _, lesion = np.unique(group, return_inverse=True)
    # Factors n / (n − 1) of the variances of positives and negatives.
    sizes = np.bincount(y, minlength=len(classes))
    corrections = {}
    for c in scored:
        corrections[c] = np.full(len(classes), np.sqrt((len(y) - sizes[c]) / (len(y) - sizes[c] - 1)))
        corrections[c][c] = np.sqrt(sizes[c] / (sizes[c] - 1))
    areas, shares = [], []
    for probability in (p, q):
        components = [auroc_influence(y == c, probability[:, c]) for c in scored]
        areas.append(float(np.mean([area for area, _ in components])))
        shares.append(
            np.mean([share * corrections[c][y] for c, (_, share) in zip(scored, components, strict=True)], axis=0)
        )
    error = float(np.sqrt((np.bincount(lesion, weights=shares[0] - shares[1]) ** 2).sum()))
    difference = areas[0] - areas[1]
    # Equal rankings, or rankings that differ without any variance.
    if error < 1e-12:
        return DeLong(areas[0], areas[1], difference, 0.0, 1.0 if abs(difference) < 1e-12 else 0.0)
    return DeLong(areas[0], areas[1], difference, error, float(2 * stats.norm.sf(abs(difference) / error)))


def holm(p: Sequence[float]) -> list[float]:
    """Correct the p-values of one family of tests, without counting NaN.

    Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    values = np.asarray(p, dtype=np.float64)
    corrected = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * (len(order) - np.arange(len(order)))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return [float(value) for value in corrected]
