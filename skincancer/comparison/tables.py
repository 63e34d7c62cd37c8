"""Methods side by side: experiment × split, over seeds, on their own and on common test images, and tests between them.

A cell is one experiment at one split: its runs differ by seed alone. The metric of a cell is the mean over its runs; its interval is
of lesions resampled, the same resamples for every run and every cell, so that differences are paired; `sd` is that over seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.comparison.entries import Cell, departures, find_differences, obstacle
from skincancer.comparison.predictions import ClassScores, Scores
from skincancer.comparison.published import published_metrics, published_table
from skincancer.errors import RunError
from skincancer.metrics.bootstrap import bootstrap_weights, percentile_interval
from skincancer.metrics.paired_tests import delong, holm, mcnemar

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A metric: mean over runs, standard deviation over seeds (NaN of one), interval over lesions, and what it was taken from."""

    value: float
    sd: float
    low: float
    high: float
    n_images: int
    n_lesions: int


class Difference(NamedTuple):
    """First minus second, its paired 95 % interval over lesions, and the two-sided p-value of the paired bootstrap."""

    difference: float
    low: float
    high: float
    p: float


class Resamples:
    """Draws lesions once for each set of images, and gives every run the same draws.

    Args:
        n: number of resamples.
        seed: of the draw.
    """

    def __init__(self, n: int = RESAMPLES, seed: int = 0) -> None:
        self.n, self.seed = n, seed
        self._last: tuple[str, npt.NDArray[np.int32]] | None = None  # one is enough: callers go set by set
        # a run is scored once for all tables; it is kept too, since ids of what is gone are used again
        self._values: dict[tuple[int, str], tuple[Scores, npt.NDArray[np.float64]]] = {}

    def weights(self, scores: Scores) -> npt.NDArray[np.int32]:
        """Return how often each image counts in each resample (R, N)."""
        content = "\n".join([*scores.image_id, *scores.lesion_id, *scores.stratum.astype(str)])
        key = hashlib.sha256(content.encode()).hexdigest()
        if self._last is None or self._last[0] != key:
            lesions = scores.lesion_id.astype(str)
            self._last = key, bootstrap_weights(lesions, scores.stratum, self.n, self.seed)
        return self._last[1]

    def values(self, metric: str, run: Scores) -> npt.NDArray[np.float64]:
        """Return the metric (R,) of each resample."""
        known = self._values.get((id(run), metric))
        if known is None:
            known = self._values[id(run), metric] = run, run.values(metric, self.weights(run))
        return known[1]

    def mean(self, metric: str, runs: Sequence[Scores]) -> npt.NDArray[np.float64]:
        """Return the metric (R,) of each resample, the mean over runs, which are of the same images."""
        return np.mean([self.values(metric, run) for run in runs], axis=0)


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison found.

    Attributes:
        dataset: the catalog's name.
        synthetic: whether its images are drawn.
        cells: experiment by experiment, in the order of the splits.
        metrics: those asked for; tests and figures are of the first.
        table: of `cells_table`, the rows of every metric below each other.
        pairs: of `pairs_table`, likewise.
        published: of `published.published_table`.
        obstacle: why nothing could be paired; "" where it was.
        differences: what makes figures hard to compare, a line each.
    """

    dataset: str
    synthetic: bool
    cells: tuple[Cell, ...]
    metrics: tuple[str, ...]
    table: pd.DataFrame
    pairs: pd.DataFrame
    published: pd.DataFrame
    obstacle: str
    differences: tuple[str, ...]


def compare_cells(
    cells: Sequence[Cell], metrics: Sequence[str], dataset: str, n_resamples: int = RESAMPLES
) -> Comparison:
    """Score cells side by side.

    Raises:
        RunError: folds are missing, or runs disagree over the label of an image.
    """
    resamples = Resamples(n_resamples)
    tables = {metric: cells_table(cells, metric, resamples) for metric in metrics}
    pairs = pd.concat([pairs_table(cells, metric, resamples) for metric in metrics], ignore_index=True)
    places = [(cell.experiment, cell.split) for cell in cells]
    beside = [cells_table(cells, metric, resamples) for metric in published_metrics(places) if metric not in tables]
    published = published_table(pd.concat([*tables.values(), *beside], ignore_index=True), dataset)
    lines = find_differences(cells)
    why = obstacle(cells)
    if not why and not tables[metrics[0]]["common_images"].iloc[0]:
        why = "no test image is common to all of them"
    synthetic = any(run.tags.get("synthetic") == "true" for cell in cells for run in cell.runs)
    return Comparison(
        dataset, synthetic, tuple(cells), tuple(metrics), pd.concat(tables.values(), ignore_index=True), pairs, published,
        why, tuple(lines),
    )  # fmt: skip


def estimate(metric: str, runs: Sequence[Scores], resamples: Resamples) -> Estimate:
    """Return a cell's metric; without an interval where its runs have different test images: they are summarised, never paired."""
    values = [values_once(metric, run) for run in runs]
    low = high = np.nan
    if all(same_images(runs[0], run) for run in runs):
        low, high, _ = percentile_interval(float(np.mean(values)), resamples.mean(metric, runs))
    images, lesions = (set[str]().union(*(getattr(run, name) for run in runs)) for name in ("image_id", "lesion_id"))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return Estimate(float(np.mean(values)), sd, low, high, len(images), len(lesions))


def paired_difference(
    metric: str, first: Sequence[Scores], second: Sequence[Scores], resamples: Resamples
) -> Difference:
    """Return how much more of a metric the first of two methods has than the second on the same images.

    Each resample of the lesions is given to both, so what a hard image costs both does not widen the interval (Efron and Tibshirani,
    "An Introduction to the Bootstrap", 1993, section 8.3). What the interval covers and what not is said at
    `statistics.bootstrap_intervals`.

    Args:
        metric: a name that the scores know.
        first: the runs of the first method, all of the same images; of several the mean is taken.
        second: those of the second, of the same images in the same order.
        resamples: draws the lesions.

    Raises:
        ValueError: the metric is unknown.
    """
    means = [float(np.mean([values_once(metric, run) for run in runs])) for runs in (first, second)]
    drawn = resamples.mean(metric, first) - resamples.mean(metric, second)
    difference = means[0] - means[1]
    low, high, n = percentile_interval(difference, drawn)
    if not n or not np.isfinite(difference):
        return Difference(difference, low, high, np.nan)
    # the share of resamples on the other side of 0, both ways; 1 is added, since a p-value of 0 cannot be had from draws
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Difference(difference, low, high, min(1.0, 2 * float(beyond + 1) / (n + 1)))


def values_once(metric: str, scores: Scores) -> float:
    """Return a metric of the images themselves."""
    return float(scores.values(metric, np.ones((1, len(scores))))[0])


def same_images(first: Scores, second: Scores) -> bool:
    """Say whether two runs were tested on the same images, of the same lesions and labels."""
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("image_id", "lesion_id", "stratum")
    )


def common_images(cells: Iterable[Cell]) -> dict[tuple[str, str], list[Scores]]:
    """Return the predictions of every cell for the images that all their runs were tested on; empty lists of images where there are none.

    Raises:
        RunError: an image has different labels or lesions in two runs.
    """
    found = {(cell.experiment, cell.split): cell.scores for cell in cells}
    return _restricted(found)


def _restricted(found: Mapping[tuple[str, str], Sequence[Scores]]) -> dict[tuple[str, str], list[Scores]]:
    everything = [scores for runs in found.values() for scores in runs]
    shared = reduce(np.intersect1d, [scores.image_id.astype(str) for scores in everything])
    cut = {
        place: [
            run if len(run) == len(shared) else run.take(np.flatnonzero(np.isin(run.image_id.astype(str), shared)))
            for run in runs
        ]
        for place, runs in found.items()
    }
    first = next(iter(cut.values()))[0]
    for place, runs in cut.items():
        if not all(same_images(first, run) for run in runs):
            raise RunError(
                f"{' '.join(place)}: images of the same id have other labels or lesions than in the other runs: the runs were made from "
                "different versions of the data. Compare them apart, or train again on one version."
            )
    return cut


def cells_table(cells: Sequence[Cell], metric: str, resamples: Resamples) -> pd.DataFrame:
    """Return a row a cell.

    Columns: experiment, split, runs, seeds; value, sd, low, high, n_images, n_lesions of its own test images; common_value, common_sd,
    common_low, common_high, common_images of those common to all cells (NaN where nothing can be paired); train_images,
    optimizer_steps, images_seen: means over runs; departures: in what they are not what the experiment says; run_ids.
    """
    paired = not obstacle(cells)
    own = {(cell.experiment, cell.split): cell.scores for cell in cells}
    common = _restricted(own) if paired else {}
    n_common = len(next(iter(common.values()))[0]) if paired else 0
    rows = {
        place: estimate(metric, runs, resamples) for place, runs in sorted(own.items(), key=lambda item: item[0][1])
    }
    shared = {place: estimate(metric, runs, resamples) for place, runs in common.items()} if n_common else {}
    nothing = Estimate(np.nan, np.nan, np.nan, np.nan, 0, 0)
    table = []
    for cell in cells:
        mine, theirs = rows[cell.experiment, cell.split], shared.get((cell.experiment, cell.split), nothing)
        table.append(
            {
                "experiment": cell.experiment, "split": cell.split, "metric": metric, "runs": len(cell.runs),
                "seeds": " ".join(map(str, cell.seeds)), "value": mine.value, "sd": mine.sd, "low": mine.low, "high": mine.high,
                "n_images": mine.n_images, "n_lesions": mine.n_lesions, "common_value": theirs.value, "common_sd": theirs.sd,
                "common_low": theirs.low, "common_high": theirs.high, "common_images": n_common,
                "train_images": _mean(run.params.get("train_images") for run in cell.runs),
                "optimizer_steps": _mean(run.metrics.get("optimizer_steps") for run in cell.runs),
                "images_seen": _mean(run.metrics.get("images_seen") for run in cell.runs),
                "departures": departures(cell), "run_ids": " ".join(run.run_id for run in cell.runs),
            }
        )  # fmt: skip
    return pd.DataFrame(table)


def _mean(values: Iterable[str | float | None]) -> float:
    numbers = [float(value) for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else np.nan


def pairs_table(cells: Sequence[Cell], metric: str, resamples: Resamples) -> pd.DataFrame:
    """Return a row a pair of experiments at the same split, on the test images of both; empty where nothing can be paired.

    Columns: split, first, second, n_images, n_lesions; difference (of the means over seeds, first minus second), low, high and p of
    the paired bootstrap; of classes also McNemar's first_only, second_only and mcnemar_p, and DeLong's auroc_difference and delong_p,
    both on the predictions of the lowest seed that the two share (`seed`; where there is none, of the lowest of each); `…_holm`:
    corrected over the table.
    """
    rows = []
    for split in dict.fromkeys(cell.split for cell in cells):
        for one, other in combinations([cell for cell in cells if cell.split == split], 2):
            if obstacle([one, other]):
                continue
            cut = common_images([one, other])
            first, second = cut[one.experiment, split], cut[other.experiment, split]
            if not len(first[0]):
                continue
            row = {
                "split": split, "first": one.experiment, "second": other.experiment, "metric": metric,
                "n_images": len(first[0]), "n_lesions": len(set(first[0].lesion_id)),
            }  # fmt: skip
            row |= paired_difference(metric, first, second, resamples)._asdict() | _tests(one, other, first, second)
            rows.append(row)
    table = pd.DataFrame(rows)
    for name in ("p", "mcnemar_p", "delong_p"):
        if name in table:
            table[f"{name.removesuffix('_p')}_holm" if name != "p" else "p_holm"] = holm(table[name].to_list())
    return table


def _tests(one: Cell, other: Cell, first: Sequence[Scores], second: Sequence[Scores]) -> dict[str, object]:
    shared = sorted(set(one.seeds) & set(other.seeds))
    seeds = (shared[0], shared[0]) if shared else (one.seeds[0], other.seeds[0])
    mine, theirs = (
        scores[_position(cell, seed)] for cell, scores, seed in zip((one, other), (first, second), seeds, strict=True)
    )
    if not isinstance(mine, ClassScores) or not isinstance(theirs, ClassScores):
        return {}
    lesion = mine.lesion_id.astype(str)
    right = [scores.probability.argmax(axis=1) == scores.stratum for scores in (mine, theirs)]
    counts = mcnemar(right[0], right[1], lesion)
    row: dict[str, object] = {
        "seed": seeds[0] if shared else f"{seeds[0]} {seeds[1]}",
        "first_only": counts.first_only, "second_only": counts.second_only, "mcnemar_p": counts.p,
    }  # fmt: skip
    try:
        area = delong(mine.stratum, mine.probability, theirs.probability, mine.classes, lesion)
    except ValueError:  # one class alone among these images
        return row | {"auroc_difference": np.nan, "delong_p": np.nan}
    return row | {"auroc_difference": area.difference, "delong_p": area.p}


def _position(cell: Cell, seed: int) -> int:
    """Return the place of a seed among a cell's scores: those of folds are pooled by seed."""
    if cell.split.startswith("fold:*/"):
        return cell.seeds.index(seed)
    return next(number for number, run in enumerate(cell.runs) if run.seed == seed)
