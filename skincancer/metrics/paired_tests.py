"""Tests between two models on the same images: McNemar's, DeLong's, and Holm's correction over a family of tests.

Images of one lesion are not independent. Both tests therefore take lesions as their units; where every image is a lesion of its own
they are the textbook's. Neither covers the randomness of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from skincancer.metrics.classification import check_predictions

EXACT_BELOW = 25  # discordant units; from here on chi-squared is close enough (the usual rule)


class McNemar(NamedTuple):
    """Units that only the first model has right, those that only the second has, and the two-sided p-value."""

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
    """Test whether two models are right equally often (McNemar, Psychometrika 12, 1947).

    A lesion counts for the model that has more of its images right, and for neither where both have as many: a sign test over
    lesions. Under 25 discordant lesions it is exact (binomial), else chi-squared with Edwards' continuity correction.

    Args:
        first_right: bool (N,), whether the first model is right.
        second_right: bool (N,), of the second.
        groups: (N,) the lesion of each image; None counts images.

    Raises:
        ValueError: if the three differ in length or are empty.
    """
    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    group = np.arange(len(first)) if groups is None else np.asarray(groups)
    if first.ndim != 1 or not len(first) or first.shape != second.shape or group.shape != first.shape:
        raise ValueError(f"give three columns of one length, not {first.shape}, {second.shape} and {group.shape}")
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
    label: npt.ArrayLike,
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    classes: Sequence[str],
    groups: Sequence[str] | npt.NDArray[np.str_] | None = None,
) -> DeLong:
    """Test whether two models have the same AUROC (DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988).

    Each image's share in the AUROC (DeLong's structural components, from midranks: Sun and Xu, IEEE Signal Processing Letters 21,
    2014) is summed over a lesion's images before its spread is taken (Obuchowski, Biometrics 53, 1997); with lesions of one image
    that is DeLong's test itself. With more than two classes the AUROC is the mean over the classes, each against the rest, and so
    are the shares.

    Args:
        label: (N,) integers in 0 … C−1.
        first: probabilities (N, C) of the first model.
        second: those of the second, same images, same order.
        classes: the C class names; with two, the second is the positive class.
        groups: (N,) the lesion of each image; None takes each image for itself.

    Raises:
        ValueError: if the predictions are malformed, groups do not fit, or no class has both two images and two others.
    """
    y, p = check_predictions(label, first, classes)
    _, q = check_predictions(label, second, classes)
    group = np.arange(len(y)) if groups is None else np.asarray(groups)
    if group.shape != y.shape:
        raise ValueError(f"groups must have shape {y.shape}, given {group.shape}")
    candidates = [1] if len(classes) == 2 else range(len(classes))
    scored = [c for c in candidates if 2 <= (y == c).sum() <= len(y) - 2]
    if not scored:
        raise ValueError("no class has two images and two images of other classes: there is no AUROC with a variance")
    _, lesion = np.unique(group, return_inverse=True)
    areas, shares = [], []
    for probability in (p, q):
        found = [_components(y == c, probability[:, c]) for c in scored]
        areas.append(float(np.mean([area for area, _ in found])))
        shares.append(np.mean([share for _, share in found], axis=0))
    error = float(np.sqrt((np.bincount(lesion, weights=shares[0] - shares[1]) ** 2).sum()))
    difference = areas[0] - areas[1]
    if error < 1e-12:  # the same ranking: nothing to tell apart, or rankings that differ without any spread
        return DeLong(areas[0], areas[1], difference, 0.0, 1.0 if abs(difference) < 1e-12 else 0.0)
    return DeLong(areas[0], areas[1], difference, error, float(2 * stats.norm.sf(abs(difference) / error)))


def holm(p: Sequence[float]) -> list[float]:
    """Correct the p-values of one family of tests (Holm, Scandinavian Journal of Statistics 6, 1979); NaN stays and does not count."""
    values = np.asarray(p, dtype=np.float64)
    corrected = np.full(len(values), np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * (len(order) - np.arange(len(order)))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return [float(value) for value in corrected]


def _components(
    positive: npt.NDArray[np.bool_], score: npt.NDArray[np.float64]
) -> tuple[float, npt.NDArray[np.float64]]:
    """Return the AUROC, and each image's share (N,) in its error: the sum of their squares is DeLong's variance."""
    midrank = stats.rankdata(score)
    m, n = int(positive.sum()), int((~positive).sum())
    share = np.zeros(len(score))
    # the part of the negatives below a positive, and of the positives above a negative; ties count half
    beaten = (midrank[positive] - stats.rankdata(score[positive])) / n
    beating = 1 - (midrank[~positive] - stats.rankdata(score[~positive])) / m
    area = float(beaten.mean())
    share[positive] = (beaten - area) / np.sqrt(m * (m - 1))
    share[~positive] = (beating - area) / np.sqrt(n * (n - 1))
    return area, share
