"""Bootstrap intervals over lesions, because images of one lesion are not independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.metrics.classification import check_predictions, classification_metrics, weighted_metrics


def bootstrap_weights(
    groups: Sequence[str] | npt.NDArray[np.str_], strata: npt.ArrayLike, n_resamples: int, seed: int
) -> npt.NDArray[np.int32]:
    """Sample lesions, with all their images, with replacement within strata.

    Each stratum keeps its number of lesions. The stratum of a lesion is the most frequent value among its images. Ties go to the
    value that is rarer over all images, then to the smaller value. Lesions are sampled in the order of their sorted ids, so two
    runs that predict the same images get the same resamples, in any order of rows.

    Args:
        groups: (N,), lesion of each image.
        strata: (N,), stratum of each image, in general its label. Integers or strings.
        n_resamples: number R of resamples, at least 1.
        seed: random seed.

    Returns:
        Weights int32 (R, N): number of times that each resample contains each image.

    Raises:
        ValueError: groups and strata differ in length, are empty or incomplete, or n_resamples is below 1.
    """
    group, stratum = np.asarray(groups), np.asarray(strata)
    if group.ndim != 1 or group.shape != stratum.shape or not len(group):
        raise ValueError(
            f"groups and strata must both have shape (N,), N at least 1, got {group.shape} and {stratum.shape}"
        )
    if pd.isna(group).any():
        raise ValueError(f"{pd.isna(group).sum()} images have no lesion; use the image id if the lesion is unknown")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    names, lesion = np.unique(group.astype(str), return_inverse=True)
    values, value = np.unique(stratum, return_inverse=True)
    count = np.zeros((len(names), len(values)), dtype=np.int64)
    np.add.at(count, (lesion, value), 1)
    rarest_first = np.argsort(count.sum(axis=0), kind="stable")
    lesion_stratum = rarest_first[count[:, rarest_first].argmax(axis=1)]

    generator = np.random.default_rng(seed)
    samples = np.zeros((n_resamples, len(names)), dtype=np.int32)
    for number in range(len(values)):
        members = np.flatnonzero(lesion_stratum == number)
        if len(members):
            draws = generator.integers(len(members), size=(n_resamples, len(members)))
            draws += np.arange(n_resamples)[:, None] * len(members)
            counts = np.bincount(draws.ravel(), minlength=n_resamples * len(members))
            samples[:, members] = counts.reshape(n_resamples, len(members))
    return samples[:, lesion]


def bootstrap_intervals(
    label: npt.ArrayLike, probability: npt.ArrayLike, groups: Sequence[str] | npt.NDArray[np.str_], classes: Sequence[str],
    n_resamples: int = 2000, level: float = 0.95, seed: int = 0, areas: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Compute every classification metric with its percentile bootstrap interval.

    Lesions are resampled within the classes (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).

    The interval covers the sampling of test lesions: other lesions of the same classes in the same proportions. It does not cover
    the randomness of training (other seeds, other training sets), nor images of another clinic. It is too narrow for a class with
    few lesions, because one lesion has no spread. The interval of `ece` lies too high, because resampling adds noise to each bin,
    and noise widens gaps on average.

    Args:
        label: (N,) integers in 0 … C−1.
        probability: (N, C) in [0, 1], rows summing to 1.
        groups: (N,), lesion of each image.
        classes: the C class names. The second of two is the positive class.
        n_resamples: number of resamples.
        level: level of the interval, between 0 and 1.
        seed: random seed.
        areas: as in `weighted_metrics`.

    Returns:
        One row per metric, as in `classification_metrics`: `metric value low high n_resamples`. `value` is computed on all images.
        `low` and `high` are NaN if `value` is. `n_resamples` counts the resamples with a defined metric.

    Raises:
        ValueError: malformed predictions (see `check_predictions`), groups, n_resamples or level.
    """
    y, p = check_predictions(label, probability, classes)
    weight = bootstrap_weights(groups, y, n_resamples, seed)
    rows = []
    values = classification_metrics(y, p, classes)
    for metric, resampled in weighted_metrics(y, p, classes, weight, areas=areas).items():
        rows.append((metric, values[metric], *percentile_interval(values[metric], resampled, level)))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n_resamples"])


def bootstrap_means(
    table: pd.DataFrame, columns: Sequence[str], groups: Sequence[str] | npt.NDArray[np.str_], n_resamples: int = 2000,
    level: float = 0.95, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Compute means of per-image values with percentile bootstrap intervals.

    Lesions are resampled in one stratum. `bootstrap_intervals` explains the interval.

    Args:
        table: one row per image; NaN for images without a value, which are left out of the mean.
        columns: columns to average, such as segmentation metrics.
        groups: (N,), lesion of each image.
        n_resamples: number of resamples.
        level: level of the interval, between 0 and 1.
        seed: random seed.

    Returns:
        One row per column, in order: `metric value low high n_resamples`. `value` is the mean over all images. `n_resamples` counts
        the resamples with at least one value. A column without values has NaN and 0.

    Raises:
        ValueError: missing columns, infinite values, or malformed groups, n_resamples or level.
    """
    tails = _tails(level)
    missing = [name for name in columns if name not in table]
    if missing or not len(columns):
        raise ValueError(f"columns must name columns of the table, got {list(columns)}; it has {list(table)}")
    values = table[list(columns)].to_numpy(dtype=np.float64)
    if np.isinf(values).any():
        infinite = np.array(columns)[np.isinf(values).any(axis=0)]
        raise ValueError(f"values must be finite or NaN; some are infinite in {', '.join(infinite)}")
    weight = bootstrap_weights(groups, np.zeros(len(table), dtype=np.int64), n_resamples, seed).astype(np.float64)
    known = np.isfinite(values)
    total, count = weight @ np.where(known, values, 0), weight @ known
    rows = []
    for number, metric in enumerate(columns):
        defined = count[:, number] > 0
        value = low = high = np.nan
        if known[:, number].any():
            value = values[known[:, number], number].mean()
            means = total[defined, number] / count[defined, number]
            low, high = np.quantile(means, tails)
        rows.append((metric, float(value), float(low), float(high), int(defined.sum())))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n_resamples"])


def percentile_interval(
    value: float, resampled: npt.NDArray[np.float64], level: float = 0.95
) -> tuple[float, float, int]:
    """Return the bounds of a percentile interval, and the number of defined resamples.

    Args:
        value: value on all images. If NaN, so are the bounds.
        resampled: (R,), values of the resamples; NaN if undefined.
        level: level of the interval, between 0 and 1.
    """
    tails = _tails(level)
    defined = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(defined):
        return np.nan, np.nan, len(defined)
    low, high = np.quantile(defined, tails)
    return float(low), float(high), len(defined)


def _tails(level: float) -> tuple[float, float]:
    """Return the lower and the upper quantile of an interval."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95; got {level}")
    return (1 - level) / 2, (1 + level) / 2
