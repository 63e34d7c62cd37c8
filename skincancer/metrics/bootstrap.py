"""Bootstrap intervals that respect the lesions: images of one lesion are not independent, so lesions are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.metrics.classification import check_predictions, classification_metrics, weighted_metrics


def bootstrap_weights(
    groups: Sequence[str] | npt.NDArray[np.str_], strata: npt.ArrayLike, n_resamples: int, seed: int
) -> npt.NDArray[np.int32]:
    """Draw lesions with replacement, within each stratum as many as it has; a drawn lesion brings all its images.

    A lesion's stratum is the most frequent value among its images; of equally frequent ones the one that is rarer
    over all images, then the smaller. Lesions are drawn in the order of their sorted ids, so the result depends on
    the set of images and not on the order of the rows: two runs that predict the same images get the same resamples.

    Args:
        groups: (N,) the lesion of each image.
        strata: (N,) the stratum of each image, in general its label; integers or strings.
        n_resamples: R, at least 1.
        seed: of the draw.

    Returns:
        int32 (R, N): how often each image counts in each resample.

    Raises:
        ValueError: if groups and strata differ in length, are empty, if a group is missing, or if n_resamples is
            under 1.
    """
    group, stratum = np.asarray(groups), np.asarray(strata)
    if group.ndim != 1 or group.shape != stratum.shape or not len(group):
        raise ValueError(
            f"groups and strata must both have shape (N,), N at least 1, given {group.shape} and {stratum.shape}"
        )
    if pd.isna(group).any():
        raise ValueError(f"{pd.isna(group).sum()} images have no lesion; use the image's own id where it is unknown")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, given {n_resamples}")
    names, lesion = np.unique(group.astype(str), return_inverse=True)
    values, value = np.unique(stratum, return_inverse=True)
    count = np.zeros((len(names), len(values)), dtype=np.int64)
    np.add.at(count, (lesion, value), 1)
    rarest_first = np.argsort(count.sum(axis=0), kind="stable")
    lesion_stratum = rarest_first[count[:, rarest_first].argmax(axis=1)]

    generator = np.random.default_rng(seed)
    drawn = np.zeros((n_resamples, len(names)), dtype=np.int32)
    for s in range(len(values)):
        members = np.flatnonzero(lesion_stratum == s)
        if len(members):
            draws = generator.integers(len(members), size=(n_resamples, len(members)))
            draws += np.arange(n_resamples)[:, None] * len(members)
            counts = np.bincount(draws.ravel(), minlength=n_resamples * len(members))
            drawn[:, members] = counts.reshape(n_resamples, len(members))
    return drawn[:, lesion]


def bootstrap_intervals(
    label: npt.ArrayLike,
    probability: npt.ArrayLike,
    groups: Sequence[str] | npt.NDArray[np.str_],
    classes: Sequence[str],
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    areas: bool = True,
) -> pd.DataFrame:
    """Compute every classification metric with its percentile bootstrap interval.

    Lesions are resampled within the classes (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13).

    The interval covers the sampling of test lesions: how the number would move, had other lesions of the same classes
    in the same proportions been photographed. It does not cover the randomness of training (other seeds, other
    training sets), nor another clinic's images. It is too narrow for a class with few lesions (one lesion has no
    spread at all), and that of `ece` lies too high, since resampling adds noise to each bin and noise widens gaps on
    average.

    Args:
        label: (N,) integers in 0 … C−1.
        probability: (N, C) in [0, 1], rows summing to 1.
        groups: (N,) the lesion of each image.
        classes: the C class names; with two, the second is the positive class.
        n_resamples: how many resamples are drawn.
        level: of the interval, between 0 and 1.
        seed: of the draw; equal seeds give equal tables.
        areas: as of `weighted_metrics`.

    Returns:
        A row a metric, named and ordered as by `classification_metrics`: `metric value low high n_resamples`. `value`
        is that of the images themselves; where it is NaN so are `low` and `high`. `n_resamples` counts the resamples
        in which the metric was defined, and which the bounds are taken from.

    Raises:
        ValueError: if the predictions are malformed (see `classification_metrics`), or groups, n_resamples or level
            are.
    """
    y, p = check_predictions(label, probability, classes)
    weight = bootstrap_weights(groups, y, n_resamples, seed)
    rows = []
    values = classification_metrics(y, p, classes)
    for metric, resampled in weighted_metrics(y, p, classes, weight, areas=areas).items():
        rows.append((metric, values[metric], *percentile_interval(values[metric], resampled, level)))
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "n_resamples"])


def bootstrap_means(
    table: pd.DataFrame,
    columns: Sequence[str],
    groups: Sequence[str] | npt.NDArray[np.str_],
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compute the means of per-image values, such as the segmentation metrics, with percentile bootstrap intervals.

    Lesions are resampled, all of one stratum; where every image is its own group, images are. What the interval covers
    and what not is said at `bootstrap_intervals`.

    Args:
        table: a row an image; NaN in images without the value (such as those without a mask), which are left out of
            that column's mean.
        columns: the columns to average, one metric each.
        groups: (N,) the lesion of each image.
        n_resamples: how many resamples are drawn.
        level: of the interval, between 0 and 1.
        seed: of the draw; equal seeds give equal tables.

    Returns:
        A row a column, in the order given: `metric value low high n_resamples`. `value` is the mean over the images
        themselves. `n_resamples` counts the resamples that hold at least one value, and which the bounds are taken
        from. A column without any value has NaN and 0.

    Raises:
        ValueError: if a column is missing or holds infinite values, or groups, n_resamples or level are malformed.
    """
    tails = _tails(level)
    missing = [name for name in columns if name not in table]
    if missing or not len(columns):
        raise ValueError(f"columns must name columns of the table, given {list(columns)}; it has {list(table)}")
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
    """Return the bounds of a percentile interval (NaN where `value` is), and the number of resamples that they are taken from.

    Args:
        value: of the images themselves.
        resampled: (R,) the values of the resamples; NaN where undefined, which are left out.
        level: of the interval, between 0 and 1.
    """
    tails = _tails(level)
    defined = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(defined):
        return np.nan, np.nan, len(defined)
    low, high = np.quantile(defined, tails)
    return float(low), float(high), len(defined)


def _tails(level: float) -> tuple[float, float]:
    """Return the two quantiles between which an interval lies."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, such as 0.95; given {level}")
    return (1 - level) / 2, (1 + level) / 2
