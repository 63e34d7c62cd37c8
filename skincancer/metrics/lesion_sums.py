"""Estimates from sums over lesions, with steady variances.

Images of one lesion are not independent. Influences are therefore summed over the images of a lesion, and the sum of their squares is
the variance of an estimate between samples of lesions, without fixed class counts (linearisation, Binder, International Statistical
Review 51, 1983). Where the variance is estimated from few lesions, or is 0 because all lesions agree, it is drawn towards that of
lesions with equal images (`_steady`). `PRIOR` was chosen by `benchmarks/coverage.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

from skincancer.metrics.intervals import (
    NO_VARIANCE,
    Area,
    CalibrationError,
    Estimate,
    NoInterval,
    PositiveMean,
    Proportion,
    newcombe_variance,
)

Floats = npt.NDArray[np.float64]

# Degrees of freedom of the conservative variance, in units of those of the observed variance.
PRIOR = 4.0


def proportion(hits: Floats, counts: Floats, *, binary: bool = True) -> Estimate:
    """Estimate a proportion of images, or the mean of values in [0, 1].

    Args:
        hits: (G,), sum of the values of the images of each lesion.
        counts: (G,), number of images of each lesion.
        binary: values are 0 or 1, so images of one lesion never bring more than independent images.
    """
    total = counts.sum()
    if total <= 0:
        return NoInterval(np.nan, np.zeros(len(counts)), "no image counts")
    value = float(hits.sum() / total)
    influence = _widened((hits - value * counts) / total, counts > 0)
    spread = value * (1 - value) / max(total - 1, 1)
    observed = float((influence**2).sum() / spread) if spread > 1e-15 else 0.0
    equal = float((counts**2).sum() / total)
    if equal > 1:
        observed *= _student(influence)
    inflation = _steady(max(observed, 1.0) if binary else observed, equal, influence)
    return Proportion(value, influence, float(total / (max(inflation, 1.0) if binary else inflation)))


def positive_mean(sums: Floats, counts: Floats) -> Estimate:
    """Estimate the mean of positive values without upper bound.

    Args:
        sums: (G,), sum of the values of the images of each lesion.
        counts: (G,), number of images of each lesion.
    """
    total = counts.sum()
    if total <= 0:
        return NoInterval(np.nan, np.zeros(len(counts)), "no image counts")
    value = float(sums.sum() / total)
    influence = _widened((sums - value * counts) / total, counts > 0)
    variance = float((influence**2).sum())
    if variance < NO_VARIANCE or value <= 0:
        return NoInterval(value, influence, "no spread between lesions")
    # The largest value counts three times: others like it may be missing by chance.
    error = float(np.sqrt(variance + 2 * (influence**2).max()))
    return PositiveMean(value, influence, error, max(_freedom(influence), 1.0))


def area(value: float, of_positives: Floats, of_negatives: Floats, positives: Floats, negatives: Floats) -> Estimate:
    """Estimate an AUROC.

    Args:
        value: AUROC.
        of_positives: (G,), influence of the positive images of each lesion.
        of_negatives: (G,), influence of the negative images of each lesion.
        positives: (G,), number of positive images of each lesion.
        negatives: (G,), number of negative images of each lesion.
    """
    influence = of_positives + of_negatives
    n_positive, n_negative = effective_count(positives), effective_count(negatives)
    m, n = max(n_positive, 1.0), max(n_negative, 1.0)
    # Variance between positives and between negatives of exponential scores (Hanley and McNeil, Radiology 143, 1982, Q2 and Q1).
    # Reversed scores have the same variance.
    upper = max(value, 1 - value)
    expected = np.array([2 * upper**2 / (1 + upper) - upper**2, upper / (2 - upper) - upper**2]) / (m, n)
    if expected.sum() < 1e-15:
        return Area(value, influence, m, n, 1.0)
    sides = [_widened(part, counts > 0) for part, counts in ((of_positives, positives), (of_negatives, negatives))]
    variance = [
        _steady(float((side**2).sum()) * _student(side), equal, side)
        for side, equal in zip(sides, expected, strict=True)
    ]
    # The interval has the estimated variance at the value, and the shape of Newcombe's variance elsewhere.
    return Area(value, influence, m, n, float(sum(variance) / newcombe_variance(np.asarray(value), m, n)))


def average_precision(value: float, influence: Floats, positives: Floats, bias: float) -> Estimate:
    """Estimate an average precision.

    It is treated as a proportion of the positives (Boyd, Eng and Page, ECML 2013).

    Args:
        value: average precision.
        influence: (G,), influence of each lesion.
        positives: (G,), number of positive images of each lesion.
        bias: amount by which the value is too high (`areas.average_precision_bias`).
    """
    n_positive = effective_count(positives)
    reference = value * (1 - value) / n_positive
    observed = float((influence**2).sum()) / reference if reference > 1e-15 else 0.0
    return Proportion(value, influence, n_positive / _steady(observed, 1.0, influence), bias)


def calibration_error(gaps: Floats, right: Floats, counts: Floats, n_images: Floats) -> Estimate:
    """Estimate the expected calibration error.

    Args:
        gaps: (G, B), sum of correctness minus confidence of each lesion in each bin.
        right: (G, B), number of correct images.
        counts: (G, B), number of images.
        n_images: (G,), number of images of each lesion.
    """
    total = n_images.sum()
    gap = gaps.sum(axis=0) / total
    shares = _widened((gaps - n_images[:, None] * gap) / total, n_images > 0)
    covariance = shares.T @ shares
    # A bin without errors varies as much as one with two errors and two successes more.
    n, hits = counts.sum(axis=0), right.sum(axis=0)
    share = (hits + 2) / (n + 4)
    least = n * share * (1 - share) / total**2 * (counts**2).sum(axis=0) / np.maximum(n, 1)
    covariance[np.diag_indices(len(gap))] = np.maximum(np.diag(covariance), least)
    value = float(np.abs(gap).sum())
    return CalibrationError(value, shares @ np.sign(gap), gap, covariance)


def effective_count(counts: Floats) -> float:
    """Return the effective number of lesions with `counts` (G,) equal images.

    Kish, "Survey Sampling", 1965.
    """
    return float(counts.sum() ** 2 / (counts**2).sum()) if counts.any() else 0.0


def _widened(influence: Floats, member: npt.NDArray[np.bool_]) -> Floats:
    """Correct the variance for the estimated mean, as n / (n − 1) does."""
    n = member.sum()
    return influence * np.sqrt(n / (n - 1)) if n > 1 else influence


def _freedom(influence: Floats) -> float:
    """Return the degrees of freedom of the variance (Satterthwaite), 0 without variance.

    They equal the number of lesions for normal influences, and are few if few lesions carry most of the variance.
    """
    squares = influence**2
    total, n = squares.sum(), np.count_nonzero(squares)
    if total < NO_VARIANCE or n < 2:
        return 0.0
    return float(min(2 * total**2 / max((squares**2).sum() - total**2 / n, 1e-300), n - 1))


def _student(influence: Floats) -> float:
    """Return the factor of a variance that is itself estimated.

    It corrects by the degrees of freedom, as Korn and Graubard do.
    """
    freedom = _freedom(influence) + PRIOR
    return float(special.stdtrit(freedom, 0.975) / special.ndtri(0.975)) ** 2


def _steady(observed: float, equal: float, influence: Floats) -> float:
    """Average the observed inflation of the variance with that of lesions of equal images."""
    freedom = _freedom(influence)
    return (freedom * observed + PRIOR * equal) / (freedom + PRIOR)
