"""Simulate the coverage of the 95 % intervals of every printed metric.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --lesions 200 --tasks two masks --processes 8

A setting is a population and a size of test sets: number of lesions, images per lesion, correlation within a lesion, prevalence, and a
level p of performance from 0 to 1. Test sets are sampled, and the coverage is the share of their intervals that contain the metric of
the population. A metric with a coverage near or below --least is sampled again, nine times as often. Test sets without an interval, or
without one of the classes, do not count. The exit status is 1 if a coverage is below --least.

Tasks: `two` classes with sensitivity and specificity p, `many` (five) classes, `masks`, `points` (PPV, NPV and number needed to biopsy
at a prevalence), and `differences` of two models with correlated scores.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections import defaultdict
from collections.abc import Set
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from scipy.special import expit, softmax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.metrics.classification import classification_metrics
from skincancer.metrics.combinations import difference
from skincancer.metrics.estimates import CountedPredictions, mean_estimate
from skincancer.metrics.intervals import Estimate
from skincancer.metrics.operating_point import operating_point

Floats = npt.NDArray[np.float64]
Values = dict[str, float]

LEVELS = (0.0, 0.02, 0.1, 0.5, 0.9, 0.98, 1.0)
PREVALENCES = (0.02, 0.1, 0.5)
# Smallest and largest number of images of a lesion, and the correlation of their scores.
IMAGES = ((1, 1, 0.0), (1, 6, 0.0), (1, 6, 0.7))
TASKS = ("two", "many", "masks", "points", "differences")
# Images per class of a population, and of a sampled population. The error of the samples must be far below that of 2,000 lesions.
POPULATION, SAMPLED = 50_000, 500_000
# Used for a threshold outside the images' own prevalence.
USED_PREVALENCE = 0.05


class Setting(NamedTuple):
    """A population and the size of its test sets."""

    task: str
    lesions: int
    least_images: int
    most_images: int
    correlation: float
    prevalence: float
    level: float


def settings(task: str, lesions: int) -> list[Setting]:
    """Return the grid of a task. Masks have no prevalence, and means of 0 and 1 no spread."""
    prevalences = (np.nan,) if task == "masks" else PREVALENCES
    levels = (0.5, 0.8, 0.9, 0.97, 1.0) if task == "masks" else LEVELS
    return [
        Setting(task, lesions, *images, prevalence, level)
        for images, prevalence, level in itertools.product(IMAGES, prevalences, levels)
    ]


def noise(setting: Setting, lesion: npt.NDArray[np.int64], n: int, rng: np.random.Generator) -> Floats:
    """Return standard normal noise (N, n) that is correlated within lesions."""
    shared, alone = rng.standard_normal((setting.lesions, n))[lesion], rng.standard_normal((len(lesion), n))
    return np.sqrt(setting.correlation) * shared + np.sqrt(1 - setting.correlation) * alone


def separation(level: float) -> float:
    """Return the distance of two normal classes with this sensitivity and specificity."""
    return float(np.clip(2 * stats.norm.ppf(level), -60, 60))


def two_probabilities(score: Floats) -> Floats:
    """Return probabilities (N, 2) of scores, with the threshold at 0."""
    p = expit(1.5 * score)
    return np.column_stack([1 - p, p])


def shares(setting: Setting) -> Floats:
    """Return the prevalence of each class."""
    if setting.task != "many":
        return np.array([1 - setting.prevalence, setting.prevalence])
    rest = np.array([1.0, 2, 4, 8])
    return np.append(setting.prevalence, (1 - setting.prevalence) * rest / rest.sum())


def scores_of(setting: Setting, label: npt.NDArray[np.int64], noises: Floats) -> Floats:
    """Return probabilities (N, C) of labels and noise."""
    if setting.task != "many":
        return two_probabilities(noises[:, 0] + separation(setting.level) * (label - 0.5))
    distance = separation(setting.level) if setting.level in (0, 1) else 4 * setting.level
    return np.asarray(softmax(1.5 * (noises + distance * np.eye(5)[label]), axis=1))


def losses(label: npt.NDArray[np.int64], probability: Floats, weight: Floats) -> Values:
    """Return Brier score and negative log-likelihood."""
    squares = ((probability - np.eye(probability.shape[1])[label]) ** 2).sum(axis=1)
    likelihood = np.maximum(probability[np.arange(len(label)), label], np.finfo(np.float64).tiny)
    return {"brier": np.average(squares, weights=weight), "nll": np.average(-np.log(likelihood), weights=weight)}


def class_truth(setting: Setting) -> Values:
    """Return every metric of the population: normal quantiles of each of two classes, or many samples of more."""
    return _class_truth(setting._replace(lesions=0, least_images=0, most_images=0, correlation=0.0))


@cache
def _class_truth(setting: Setting) -> Values:
    share = shares(setting)
    label = np.repeat(np.arange(len(share)), POPULATION if len(share) == 2 else SAMPLED)
    grid = stats.norm.ppf((np.arange(POPULATION) + 0.5) / POPULATION)
    noises = np.tile(grid, 2)[:, None] if len(share) == 2 else np.random.default_rng(0).standard_normal((len(label), 5))
    probability, weight = scores_of(setting, label, noises), share[label]
    metrics = classification_metrics(label, probability, [f"c{number}" for number in range(len(share))], weight)
    return metrics | losses(label, probability, weight)


def class_estimates(counted: CountedPredictions, wanted: Set[str]) -> dict[str, Estimate]:
    """Return the estimates of the wanted metrics of classes."""
    more = {"brier": counted.brier, "nll": counted.nll}
    return {name: more[name]() if name in more else counted.estimate(name) for name in wanted}


def sample_classes(setting: Setting, rng: np.random.Generator, levels: tuple[float, ...]) -> list[CountedPredictions]:
    """Return predictions of one test set by a model of each level, with noise of correlation 0.8."""
    share = shares(setting)
    lesion = np.repeat(
        np.arange(setting.lesions), rng.integers(setting.least_images, setting.most_images + 1, setting.lesions)
    )
    label = rng.choice(len(share), setting.lesions, p=share)[lesion]
    common = noise(setting, lesion, len(share), rng)
    models = []
    for level in levels:
        own = np.sqrt(0.8) * common + np.sqrt(0.2) * noise(setting, lesion, len(share), rng)
        probability = scores_of(setting._replace(level=level), label, own)
        models.append(
            CountedPredictions(label, probability, lesion.astype(str), [f"c{number}" for number in range(len(share))])
        )
    return models


def sample_masks(setting: Setting, rng: np.random.Generator | None) -> tuple[pd.DataFrame, npt.NDArray[np.str_]]:
    """Return metrics of masks and the lesions of a test set, or of a population.

    One mask in a hundred is empty, with a jaccard of 0. The mean of the others is the level. Distances are log-normal.
    """
    if rng is None:
        lesion = np.arange(POPULATION)
        normal, empty = stats.norm.ppf((lesion + 0.5) / POPULATION), lesion % 100 == 50
        normal = np.random.default_rng(0).permutation(normal)
    else:
        lesion = np.repeat(
            np.arange(setting.lesions), rng.integers(setting.least_images, setting.most_images + 1, setting.lesions)
        )
        normal, empty = noise(setting, lesion, 1, rng)[:, 0], (rng.random(setting.lesions) < 0.01)[lesion]
    level = setting.level
    jaccard = (
        stats.beta.ppf(stats.norm.cdf(normal), 12 * level, 12 * (1 - level)) if level < 1 else np.ones(len(lesion))
    )
    jaccard = np.where(empty & (level < 1), 0, jaccard)
    table = pd.DataFrame({"jaccard": jaccard, "thresholded_jaccard": np.where(jaccard < 0.65, 0, jaccard)})
    return table.assign(hd95=np.exp(2 - 0.7 * normal)), lesion.astype(str)


def point_truth(setting: Setting) -> Values:
    """Return the measures of the threshold 0.5 at the used prevalence, and at that of the images."""
    values = {}
    for suffix, share in (("", setting.prevalence), ("@used", USED_PREVALENCE)):
        right, wrong, odds = setting.level, 1 - setting.level, (1 - share) / share
        ppv, npv = right / (right + odds * wrong), right / (right + wrong / odds)
        values |= {f"ppv{suffix}": ppv, f"npv{suffix}": npv}
        values[f"number_needed_to_biopsy{suffix}"] = 1 / ppv if ppv else np.nan
    return values


def truth(setting: Setting) -> Values:
    """Return the metrics of the population."""
    if setting.task == "masks":
        return {name: float(value) for name, value in sample_masks(setting, None)[0].mean().items()}
    if setting.task == "points":
        return point_truth(setting)
    own = class_truth(setting)
    if setting.task != "differences":
        return own
    other = class_truth(setting._replace(level=second_level(setting.level)))
    return {name: value - other[name] for name, value in own.items()}


def second_level(level: float) -> float:
    """Return the level of the second of two models: a little less, or as good if rarely wrong."""
    return level if level in (0, 1) else level * 0.95


def intervals(setting: Setting, rng: np.random.Generator, wanted: Set[str]) -> dict[str, tuple[float, float]]:
    """Return the intervals of the wanted metrics of one test set."""
    if setting.task == "masks":
        table, lesion = sample_masks(setting, rng)
        return {name: mean_estimate(table, name, lesion).bounds() for name in wanted}
    levels = (setting.level, second_level(setting.level)) if setting.task == "differences" else (setting.level,)
    models = sample_classes(setting, rng, levels)
    if len(set(models[0].label)) < len(models[0].classes):
        return {}
    if setting.task == "points":
        positive, score = models[0].label == 1, models[0].probability[:, 1]
        bounds = {}
        for suffix, prevalence in (("", None), ("@used", USED_PREVALENCE)):
            table = operating_point(positive, score, 0.5, models[0].groups, prevalence).set_index("metric")
            for name in ("ppv", "npv", "number_needed_to_biopsy"):
                if name + suffix not in wanted:
                    continue
                bounds[name + suffix] = (table.loc[name, "low"], table.loc[name, "high"])
        return bounds
    estimates = [class_estimates(model, wanted) for model in models]
    if setting.task == "differences":
        return {name: difference(first, estimates[1][name]).bounds() for name, first in estimates[0].items()}
    return {name: estimate.bounds() for name, estimate in estimates[0].items()}


def coverage(setting: Setting, samples: int, doubtful: float) -> list[dict[str, object]]:
    """Return one row per metric: the setting, coverage, mean width, number of samples with interval."""
    values = truth(setting)
    rows: dict[str, dict[str, object]] = {}
    wanted = set(values)
    for numbers in (range(samples), range(samples, 10 * samples)):
        collected = defaultdict(list)
        for number in numbers:
            for name, (low, high) in intervals(
                setting, np.random.default_rng([number, crc32(repr(setting).encode())]), wanted
            ).items():
                if np.isfinite(low) and np.isfinite(values[name]):
                    collected[name].append((low - 1e-6 <= values[name] <= high + 1e-6, high - low))
        for name, results in collected.items():
            if name in rows or len(results) >= len(numbers) / 10:
                share, width = np.mean(results, axis=0)
                counted = {"metric": name, "coverage": share, "width": width, "samples": len(results)}
                rows[name] = {**setting._asdict(), "value": values[name], **counted}
        wanted = {name for name, row in rows.items() if float(str(row["coverage"])) < doubtful}
        if not wanted:
            break
    return list(rows.values())


def main() -> None:
    """Simulate, print the worst settings of every metric, and exit with 1 if one is too low."""
    parser = argparse.ArgumentParser(description="Coverage of the intervals.", allow_abbrev=False)
    parser.add_argument("--lesions", type=int, nargs="+", default=[30, 200, 2000])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--samples", type=int, default=200, help="test sets of a setting; nine times as many in doubt")
    parser.add_argument("--least", type=float, default=0.93, help="smallest accepted coverage")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="CSV file of every setting")
    given = parser.parse_args()

    grid = [setting for task in given.tasks for lesions in given.lesions for setting in settings(task, lesions)]
    measure = partial(coverage, samples=given.samples, doubtful=given.least + 0.015)
    with ProcessPoolExecutor(given.processes) as pool:
        table = pd.DataFrame(row for rows in pool.map(measure, grid) for row in rows)
    table = table.sort_values("coverage", kind="stable")
    if given.out:
        table.to_csv(given.out, index=False, float_format="%.6g")
    worst = (
        table.groupby(["task", "metric"], sort=False)
        .head(1)
        .assign(
            mean_coverage=lambda rows: [
                table[(table["task"] == row.task) & (table["metric"] == row.metric)]["coverage"].mean()
                for row in rows.itertuples()
            ]
        )
    )
    print(worst.to_string(index=False, float_format="{:.3f}".format))
    low = table[table["coverage"] < given.least]
    print(f"{len(low)} of {len(table)} coverages are below {given.least}")
    sys.exit(1 if len(low) else 0)


if __name__ == "__main__":
    main()
