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
* `combinations.Combination`: sums and differences of the confidence distributions of other estimates.
* `Resampled`: percentiles of bootstrap resamples, for metrics of plugins.

`benchmarks/coverage.py` simulates the coverage of every metric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.stats import qmc

Floats = npt.NDArray[np.float64]

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

    def centre(self, *, upper: bool) -> float:
        """Return the value from which limits are measured, without bias."""
        return self.value

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
    """A proportion or a mean of values in [0, 1].

    Attributes:
        size: effective number of images.
        bias: amount by which the value is too high, subtracted for lower limits.
    """

    size: float
    bias: float = 0.0

    @property
    def unit(self) -> float:
        """Influence of one more wrong image."""
        return 1 / self.size

    def centre(self, *, upper: bool) -> float:
        """Return the value, without the bias for lower limits."""
        return min(max(self.value if upper else self.value - self.bias, 0.0), 1.0)

    def limit(self, level: Floats, *, upper: bool) -> Floats:
        """Return quantiles of the beta distributions of Clopper and Pearson."""
        hits = self.size * self.centre(upper=upper)
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
