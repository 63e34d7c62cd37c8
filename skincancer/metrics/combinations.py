"""Means over classes, differences of models and other weighted sums of estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from skincancer.metrics.intervals import DRAWS, LEVELS, NO_VARIANCE, Estimate, NoInterval, Resampled, normal_draws

Floats = npt.NDArray[np.float64]

# Number of parts up to which limits are quantiles of the sum. Every further part moves the mean of the sum towards the middle of the range.
FEW_PARTS = 4


@dataclass(frozen=True, eq=False)
class Combination(Estimate):
    """A weighted sum of estimates: a mean over classes, or a difference.

    Attributes:
        parts: estimates.
        weights: weight of each part.
        dependent: parts without variance are fully correlated, such as F1 of two classes without errors; otherwise independent.
    """

    parts: Sequence[Estimate]
    weights: Sequence[float]
    dependent: bool = False

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return quantiles of `distribution`, of many parts the wider of those and of MOVER."""
        total = self.distribution(upper=upper)
        if len(self.parts) <= FEW_PARTS:
            return np.quantile(total, level)
        centred = np.quantile(total - total.mean(), level) + self.centre(upper=upper)
        mover = self._mover(level, upper=upper)
        return np.where(level < 0.5, np.minimum(centred, mover), np.maximum(centred, mover))

    def centre(self, *, upper: bool) -> float:
        """Return the sum of the centres of the parts."""
        return sum(
            weight * part.centre(upper=upper if weight > 0 else not upper)
            for part, weight in zip(self.parts, self.weights, strict=True)
        )

    def _mover(self, level: Floats, *, upper: bool) -> Floats:
        """Return the limits of MOVER.

        The distances of the parts from their limits are added with their correlations.
        """
        distances = np.stack(
            [
                abs(weight) * (part.limit(level, upper=upper) - part.centre(upper=upper))
                if weight > 0
                else abs(weight) * (part.limit(1 - level, upper=not upper) - part.centre(upper=not upper))
                for part, weight in zip(self.parts, self.weights, strict=True)
            ]
        )
        square = np.einsum("ck,cd,dk->k", distances, self._correlation(), distances)
        return self.centre(upper=upper) + np.where(level < 0.5, -1, 1) * np.sqrt(np.maximum(square, 0))

    def distribution(self, *, upper: bool) -> Floats:
        """Sample the sum (R,) of the confidence distributions of the parts.

        Schweder and Hjort, "Confidence, Likelihood, Probability", 2016. The parts have normal dependence with the
        correlation of their influences. With normal parts the quantiles are those of MOVER
        (Zou and Donner, Statistics in Medicine 27, 2008), but skewed parts, near the ends of their range, keep their skew.
        """
        variance, axes = np.linalg.eigh(self._correlation())
        normal = (normal_draws(len(self.parts)) * np.sqrt(np.maximum(variance, 0))) @ axes.T
        total = np.zeros(DRAWS)
        levels = special.ndtr(LEVELS)
        for part, weight, column in zip(self.parts, self.weights, normal.T, strict=True):
            side = upper if weight > 0 else not upper
            total += weight * np.interp(column, LEVELS, part.limit(levels, upper=side))
        return total

    def _correlation(self) -> Floats:
        """Return the correlations (C, C) of the influences.

        A difference has two further images, each right in one and wrong in the other (Bonett and Price, Journal of Educational and
        Behavioral Statistics 37, 2012). Models that are wrong on the same images thus have a correlation below 1.
        """
        influence = np.stack([part.influence for part in self.parts])
        sign = np.sign(self.weights)
        if sign.min() < 0 < sign.max():
            position = np.where(sign > 0, np.cumsum(sign > 0), np.cumsum(sign < 0)) - 1
            more = np.zeros((len(sign), position.max() + 1))
            more[np.arange(len(sign)), position] = sign * [part.unit for part in self.parts] / np.sqrt(2)
            influence = np.hstack([influence, more])
        norm = np.sqrt((influence**2).sum(axis=1))
        alone = norm**2 < NO_VARIANCE
        direction = influence / np.where(alone, 1, norm)[:, None]
        correlation = direction @ direction.T
        if self.dependent:
            correlation[np.ix_(alone, alone)] = 1
        correlation[np.diag_indices(len(norm))] = 1
        return correlation


def combine(parts: Sequence[Estimate], weights: Sequence[float], *, dependent: bool = False) -> Estimate:
    """Return the weighted sum of estimates on the same lesions.

    Args:
        parts: estimates.
        weights: weight of each part, not 0.
        dependent: parts without variance are fully correlated; otherwise they are independent.
    """
    if len(parts) == 1 and weights[0] == 1:
        return parts[0]
    value = float(sum(weight * part.value for part, weight in zip(parts, weights, strict=True)))
    samples = [part.resampled for part in parts if isinstance(part, Resampled)]
    if len(samples) == len(parts):
        return Resampled(value, np.empty(0), np.asarray(weights) @ np.stack(samples))
    reason = next((part.note for part in parts if part.note), "")
    if reason or not np.isfinite(value):
        return NoInterval(value, np.empty(0), reason)
    influence = np.asarray(weights) @ np.stack([part.influence for part in parts])
    flat: list[tuple[Estimate, float]] = []
    for part, weight in zip(parts, weights, strict=True):
        if isinstance(part, Combination):
            flat += [(inner, weight * factor) for inner, factor in zip(part.parts, part.weights, strict=True)]
            dependent = dependent or part.dependent
        else:
            flat.append((part, weight))
    return Combination(value, influence, [part for part, _ in flat], [weight for _, weight in flat], dependent)


def mean(parts: Sequence[Estimate], *, dependent: bool = False) -> Estimate:
    """Return the mean of the defined estimates, an undefined one without any."""
    defined = [part for part in parts if np.isfinite(part.value)]
    if not defined:
        return NoInterval(np.nan, np.empty(0), parts[0].note)
    return combine(defined, [1 / len(defined)] * len(defined), dependent=dependent)


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Return the first estimate minus the second, on the same lesions."""
    return combine([first, second], [1, -1])
