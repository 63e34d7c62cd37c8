"""Simulate the coverage of the 95 % intervals of every printed metric.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --lesions 30 200 --metrics accuracy auroc_macro

Each setting is a population of lesions: number of lesions in the test set, images per lesion, correlation of the scores within a
lesion, prevalence, and a level p of performance from 0 to 1 (sensitivity, specificity, or mean mask metric). Test sets are sampled from
the population, and the coverage is the share of intervals that contain the metric of the population. Undefined metrics and metrics
without interval are not counted; their share is printed. The exit status is 1 if a coverage is below --least.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import expit, softmax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.metrics.estimates import CountedPredictions

Floats = npt.NDArray[np.float64]

LEVELS = (0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98, 1.0)
IMAGES = ((1, 1, 0.0), (1, 6, 0.0), (1, 6, 0.7))
PREVALENCES = (0.02, 0.1, 0.3, 0.5)
# Images per class of a population.
POPULATION = 100_000


class Setting(NamedTuple):
    """A population and the size of its test sets."""

    task: str
    lesions: int
    least_images: int
    most_images: int
    correlation: float
    prevalence: float
    level: float


def sample_lesions(setting: Setting, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return the lesion (N,) of each image of a test set."""
    return np.repeat(
        np.arange(setting.lesions), rng.integers(setting.least_images, setting.most_images + 1, setting.lesions)
    )


def noise(setting: Setting, lesion: npt.NDArray[np.int64], n: int, rng: np.random.Generator) -> Floats:
    """Return standard normal noise (N, n) that is correlated within lesions."""
    alone = rng.standard_normal((len(lesion), n))
    shared = rng.standard_normal((setting.lesions, n))[lesion]
    return np.sqrt(setting.correlation) * shared + np.sqrt(1 - setting.correlation) * alone


def separation(level: float) -> float:
    """Return the distance of two normal classes whose best threshold has this sensitivity."""
    return float(np.clip(2 * stats.norm.ppf(level), -60, 60))


def two_probabilities(score: Floats) -> Floats:
    """Return probabilities (N, 2) of scores, with the threshold at 0."""
    p = expit(1.5 * score)
    return np.column_stack([1 - p, p])


def population_two(setting: Setting) -> tuple[CountedPredictions, Floats]:
    """Return a fine grid of both classes, and the weight of each image."""
    distance = separation(setting.level)
    grid = stats.norm.ppf((np.arange(POPULATION) + 0.5) / POPULATION)
    score = np.concatenate([grid - distance / 2, grid + distance / 2])
    label = np.repeat([0, 1], POPULATION)
    weight = np.repeat([1 - setting.prevalence, setting.prevalence], POPULATION)
    return CountedPredictions(label, two_probabilities(score), np.arange(len(label)).astype(str), ["b", "m"]), weight


def sample_two(setting: Setting, rng: np.random.Generator) -> CountedPredictions:
    """Return a test set of two classes."""
    lesion = sample_lesions(setting, rng)
    label = (rng.random(setting.lesions) < setting.prevalence).astype(np.int64)[lesion]
    score = noise(setting, lesion, 1, rng)[:, 0] + separation(setting.level) * (label - 0.5)
    return CountedPredictions(label, two_probabilities(score), lesion.astype(str), ["b", "m"])


def classes_of(setting: Setting) -> list[str]:
    return [f"c{number}" for number in range(5)]


def shares_of(setting: Setting) -> Floats:
    """Return the prevalence of each of five classes."""
    rest = np.array([1.0, 2, 4, 8])
    return np.append(setting.prevalence, (1 - setting.prevalence) * rest / rest.sum())


def sample_many(setting: Setting, rng: np.random.Generator) -> CountedPredictions:
    """Return a test set of five classes."""
    lesion = sample_lesions(setting, rng)
    shares = shares_of(setting)
    label = rng.choice(len(shares), setting.lesions, p=shares)[lesion]
    distance = separation(setting.level) if setting.level in (0, 1) else 4 * setting.level
    logits = noise(setting, lesion, len(shares), rng) + distance * np.eye(len(shares))[label]
    return CountedPredictions(label, softmax(1.5 * logits, axis=1), lesion.astype(str), classes_of(setting))
