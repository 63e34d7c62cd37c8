"""Confidence intervals over lesions, valid at the ends of the range of a metric.

Every estimate has the influence of each lesion: influences sum to about 0, and correlate metrics, runs and models. `lesion_sums` makes
the estimates. The kinds of estimates:

* `Proportion`: exact binomial interval of the effective sample size (Clopper and Pearson, Biometrika 26, 1934; Korn and Graubard, Survey
  Methodology 24, 1998).
* `Area`: AUROC by inversion of method 5 of Newcombe (Statistics in Medicine 25, 2006), with the variance over lesions (Obuchowski,
  Biometrics 53, 1997).
* `PositiveMean`: t interval of the logarithm of a mean.
* `CalibrationError`: corrected for the noise of the bins, which adds to the plug-in estimate.
* `Monotone`: a monotone function of another estimate.
* `Combination`: sums and differences of the confidence distributions of other estimates.
* `Resampled`: percentiles of bootstrap resamples, for metrics of plugins.

`benchmarks/coverage.py` simulates the coverage of every metric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.stats import qmc

Floats = npt.NDArray[np.float64]

# Number of parts up to which the skew of each part matters more than the bias that it adds to the sum.
FEW_PARTS = 4
# Smaller variances are rounding errors.
NO_VARIANCE = 1e-24
# Number of draws of a simulated distribution.
DRAWS = 4096
# Levels of a confidence distribution, as normal quantiles.
LEVELS = np.linspace(-5, 5, 51)


@dataclass(frozen=True, eq=False)
class Estimate(ABC):
    """A metric and its uncertainty.

    Attributes:
        value: the metric on all images; NaN if undefined.
        influence: (G,), influence of each lesion on the value.
    """

    value: float
    influence: Floats

    @abstractmethod
    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return one-sided limits (K,), such that the metric is below with probability `level` (K,).

        A level of 0.025 is the lower bound of a 95 % interval, 0.975 the upper. Both differ for discrete data, so the limits for lower
        bounds and those for upper bounds are two distributions.
        """

    def bounds(self, level: float = 0.95) -> tuple[float, float]:
        """Return the bounds of the interval of a level between 0 and 1."""
        low = self.limit(np.array([(1 - level) / 2]), upper=False)
        high = self.limit(np.array([(1 + level) / 2]), upper=True)
        return float(low[0]), float(high[0])

    @property
    def unit(self) -> float:
        """Influence of one more wrong image, 0 for continuous values."""
        return 0.0

    @property
    def note(self) -> str:
        """Reason why the estimate has no interval, "" if it has one."""
        return ""

    @property
    def n_resamples(self) -> int:
        """Number of bootstrap resamples, 0 for closed forms."""
        return 0


@dataclass(frozen=True, eq=False)
class NoInterval(Estimate):
    """A value without interval, or an undefined value (NaN), for a reason."""

    reason: str

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return NaN."""
        return np.full(len(level), np.nan)

    @property
    def note(self) -> str:
        """Reason why the estimate has no interval."""
        return self.reason


@dataclass(frozen=True, eq=False)
class Certain(Estimate):
    """A value without uncertainty: the difference of equal predictions."""

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return the value."""
        return np.full(len(level), self.value)


@dataclass(frozen=True, eq=False)
class Proportion(Estimate):
    """A proportion or a mean of values in [0, 1]."""

    size: float

    @property
    def unit(self) -> float:
        """Influence of one more wrong image."""
        return 1 / self.size

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return quantiles of the beta distributions of Clopper and Pearson."""
        hits = self.size * min(max(self.value, 0.0), 1.0)
        first, second = (hits + 1, self.size - hits) if upper else (hits, self.size - hits + 1)
        if min(first, second) < 1e-9:
            return np.full(len(level), float(upper))
        return np.asarray(special.betaincinv(first, second, level), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Area(Estimate):
    """AUROC, with effective numbers of positives and negatives and the inflation of its variance."""

    n_positive: float
    n_negative: float
    inflation: float

    @property
    def unit(self) -> float:
        """Influence of an image that moves past half of the other class."""
        return 0.5 / min(self.n_positive, self.n_negative)

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return areas at the distance of their own standard error.

        The distance to the value is the normal quantile times the standard error.
        """
        area = np.sin(np.linspace(0, np.pi / 2, 1002)[1:-1]) ** 2
        error = np.sqrt(self.inflation * newcombe_variance(area, self.n_positive, self.n_negative))
        return np.interp(special.ndtri(level), (area - self.value) / error, area, left=0.0, right=1.0)


@dataclass(frozen=True, eq=False)
class PositiveMean(Estimate):
    """Mean of positive values without upper bound, with its standard error."""

    error: float
    freedom: float

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return the limits of a t interval of the logarithm."""
        return np.asarray(self.value * np.exp(special.stdtrit(self.freedom, level) * self.error / self.value))


@dataclass(frozen=True, eq=False)
class CalibrationError(Estimate):
    """Expected calibration error: the sum of absolute gaps of bins.

    Attributes:
        gap: (B,), gap of each bin, as a share of all images.
        covariance: (B, B), covariance of the gaps.
    """

    gap: Floats
    covariance: Floats

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return the value minus simulated errors.

        The plug-in estimate is too high: noise adds to the absolute gap of a bin that may be 0 (Kumar, Liang and Ma, NeurIPS 2019; Roelofs
        et al., AISTATS 2022). For lower limits, the noise of such bins therefore counts with its absolute value.
        """
        variance, axes = np.linalg.eigh(self.covariance)
        draws = np.random.default_rng(0).standard_normal((DRAWS // 2, len(self.gap)))
        noise = (draws * np.sqrt(np.maximum(variance, 0))) @ axes.T
        signed = noise * np.sign(self.gap)
        if upper:
            error = signed.sum(axis=1)
        else:
            unclear = np.abs(self.gap) < 2 * np.sqrt(np.diag(self.covariance))
            error = np.where(unclear, np.abs(noise), signed).sum(axis=1)
        return np.clip(self.value - np.quantile(error, 1 - level), 0, 1)


@dataclass(frozen=True, eq=False)
class Monotone(Estimate):
    """A monotone function of an estimate, such as F1 of a proportion."""

    base: Estimate
    function: Callable[[Any], Any]
    slope: float

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return the function of the limits of the base."""
        if self.slope < 0:
            return self.function(self.base.limit(1 - level, upper=not upper))
        return self.function(self.base.limit(level, upper=upper))

    @property
    def unit(self) -> float:
        """Influence of one more wrong image."""
        return abs(self.slope) * self.base.unit

    @property
    def note(self) -> str:
        """Reason why the base has no interval."""
        return self.base.note


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
        """Return quantiles of `distribution`."""
        if len(self.parts) > FEW_PARTS:
            return self._mover(level, upper=upper)
        return np.quantile(self.distribution(upper=upper), level)

    def _mover(self, level: Floats, *, upper: bool) -> Floats:
        """Return the limits of MOVER.

        The distances of the parts from their limits are added with their correlations.
        """
        distances = np.stack(
            [
                abs(weight)
                * (
                    (part.limit(level, upper=upper) if weight > 0 else part.limit(1 - level, upper=not upper))
                    - part.value
                )
                for part, weight in zip(self.parts, self.weights, strict=True)
            ]
        )
        square = np.einsum("ck,cd,dk->k", distances, self._correlation(), distances)
        return self.value + np.where(level < 0.5, -1, 1) * np.sqrt(np.maximum(square, 0))

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


@dataclass(frozen=True, eq=False)
class Resampled(Estimate):
    """A metric on bootstrap resamples of lesions, (R,), NaN where undefined."""

    resampled: Floats

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return percentiles, NaN without defined resamples."""
        defined = self.resampled[np.isfinite(self.resampled)]
        return np.quantile(defined, level) if len(defined) else np.full(len(level), np.nan)

    @property
    def n_resamples(self) -> int:
        """Number of resamples with a defined metric."""
        return int(np.isfinite(self.resampled).sum())


def monotone(base: Estimate, function: Callable[[Any], Any], slope: float) -> Estimate:
    """Return a monotone function of an estimate, with its slope at the value."""
    return Monotone(float(function(base.value)), base.influence * slope, base, function, slope)


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


def p_value(change: Estimate) -> float:
    """Return the two-sided p-value of a difference.

    This is the smallest level at which the interval excludes 0, at least 1 / `DRAWS`. For resamples,
    this is twice the share beyond 0. Adding 1 avoids a p-value of 0, which resampling cannot prove.
    """
    if isinstance(change, Resampled):
        defined = change.resampled[np.isfinite(change.resampled)]
        beyond = min((defined <= 0).sum(), (defined >= 0).sum())
        return min(1.0, 2 * float(beyond + 1) / (len(defined) + 1)) if len(defined) else np.nan
    if not np.isfinite(change.bounds()[0]):
        return np.nan
    smallest, largest = np.log(1 / DRAWS), 0.0
    while largest - smallest > 0.005:
        middle = (smallest + largest) / 2
        low, high = change.bounds(1 - np.exp(middle))
        smallest, largest = (smallest, middle) if low > 0 or high < 0 else (middle, largest)
    return float(np.exp(largest)) if largest < 0 else 1.0


def newcombe_variance(area: Floats, n_positive: float, n_negative: float) -> Floats:
    """Return the variance of an AUROC by Newcombe (method 5)."""
    pairs = max((n_positive + n_negative) / 2 - 1, 0.0)
    return area * (1 - area) * (1 + pairs * ((1 - area) / (2 - area) + area / (1 + area))) / (n_positive * n_negative)


@cache
def normal_draws(n: int) -> Floats:
    """Return evenly spread standard normal draws (R, n)."""
    uniform = qmc.Sobol(n, rng=0).random(DRAWS)
    return np.asarray(special.ndtri(np.clip(uniform, 1e-6, 1 - 1e-6)), dtype=np.float64)
