"""Tables of a comparison: metrics of each entry, and paired tests between experiments.

The metric of an entry is the mean over its runs, which differ by seed, and `sd` is the standard deviation over seeds. Differences are
paired by lesion.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from skincancer.comparison.entries import Entry, find_deviations, find_differences, pairing_obstacle
from skincancer.comparison.predictions import ClassScores, Scores
from skincancer.comparison.published import published_metrics, published_table
from skincancer.errors import RunError
from skincancer.metrics.combinations import combine, difference
from skincancer.metrics.intervals import Estimate, p_value
from skincancer.metrics.names import OF_POSITIVE, metric_title, positive_of
from skincancer.metrics.paired_tests import delong, holm, mcnemar

LEVEL = 0.95


@dataclass(frozen=True)
class EntryMetric:
    """Metric of an entry: mean, sd over seeds (NaN for one), interval over lesions."""

    value: float
    sd: float
    low: float
    high: float
    n_images: int
    n_lesions: int


class Difference(NamedTuple):
    """First minus second, with interval and two-sided p-value over lesions."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        entries: entries in the order of experiments, then splits.
        metrics: requested metrics; tests and figures use the first.
        table: rows of `entries_table` for every metric.
        pairs: rows of `pairs_table` for every metric.
        published: table of `published.published_table`.
        obstacle: reason why nothing could be paired, "" otherwise.
        differences: differences between runs that limit the comparison, one per line.
    """

    dataset: str
    synthetic: bool
    entries: tuple[Entry, ...]
    metrics: tuple[str, ...]
    table: pd.DataFrame
    pairs: pd.DataFrame
    published: pd.DataFrame
    obstacle: str
    differences: tuple[str, ...]


def compare_entries(entries: Sequence[Entry], metrics: Sequence[str], dataset: str) -> Comparison:
    """Compute all tables of a comparison.

    Raises:
        RunError: folds are missing, or runs have different labels for an image.
    """
    tables = {metric: entries_table(entries, metric) for metric in metrics}
    pairs = pd.concat([pairs_table(entries, metric) for metric in metrics], ignore_index=True)
    places = [(entry.experiment, entry.split) for entry in entries]
    others = [entries_table(entries, metric) for metric in published_metrics(places) if metric not in tables]
    published = published_table(pd.concat([*tables.values(), *others], ignore_index=True), dataset)
    lines = find_differences(entries)
    reason = pairing_obstacle(entries)
    if not reason and not tables[metrics[0]]["common_images"].iloc[0]:
        reason = "no test image is common to all of them"
    synthetic = any(run.tags.get("synthetic") == "true" for entry in entries for run in entry.runs)
    return Comparison(
        dataset, synthetic, tuple(entries), tuple(metrics), pd.concat(tables.values(), ignore_index=True), pairs, published,
        reason, tuple(lines),
    )  # fmt: skip


def estimate(metric: str, runs: Sequence[Scores]) -> EntryMetric:
    """Return the metric of an entry (no interval if test images differ)."""
    estimates = [run.estimate(metric) for run in runs]
    values = [each.value for each in estimates]
    low = high = np.nan
    if all(same_images(runs[0], run) for run in runs):
        low, high = average(estimates).bounds(LEVEL)
    images, lesions = (set[str]().union(*(getattr(run, name) for run in runs)) for name in ("image_id", "lesion_id"))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
    return EntryMetric(float(np.mean(values)), sd, low, high, len(images), len(lesions))


def paired_difference(metric: str, first: Sequence[Scores], second: Sequence[Scores]) -> Difference:
    """Return the difference of a metric between two methods on the same images.

    Lesions that are hard for both methods do not widen the interval, because the correlation of the methods over lesions counts
    (`combinations.Combination`). `estimates.classification_intervals` describes what the interval covers.

    Args:
        metric: name of a metric.
        first: runs of the first method. The mean over runs is compared.
        second: runs of the second method, with the same images in the same order.

    Raises:
        ValueError: the metric is unknown.
    """
    means = [average([run.estimate(metric) for run in runs]) for runs in (first, second)]
    if len(first) == len(second) and all(a.equals(b, metric) for a, b in zip(first, second, strict=True)):
        return Difference(0.0, 0.0, 0.0, 1.0)
    change = difference(*means)
    return Difference(change.value, *change.bounds(LEVEL), p_value(change))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over the runs of an entry."""
    return combine(estimates, [1 / len(estimates)] * len(estimates))


def same_images(first: Scores, second: Scores) -> bool:
    """Return whether two runs have the same test images, lesions and labels."""
    return all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in ("image_id", "lesion_id", "label")
    )


def common_images(entries: Iterable[Entry]) -> dict[tuple[str, str], list[Scores]]:
    """Return the predictions of every entry for the test images that all runs share.

    Raises:
        RunError: an image has different labels or lesions in two runs.
    """
    return _restrict({(entry.experiment, entry.split): entry.scores for entry in entries})


def _restrict(scores: Mapping[tuple[str, str], Sequence[Scores]]) -> dict[tuple[str, str], list[Scores]]:
    everything = [run for runs in scores.values() for run in runs]
    shared = reduce(np.intersect1d, [run.image_id.astype(str) for run in everything])
    cut = {
        place: [
            run if len(run) == len(shared) else run.take(np.flatnonzero(np.isin(run.image_id.astype(str), shared)))
            for run in runs
        ]
        for place, runs in scores.items()
    }
    first = next(iter(cut.values()))[0]
    for place, runs in cut.items():
        if not all(same_images(first, run) for run in runs):
            raise RunError(
                f"{' '.join(place)}: images of the same id have other labels or lesions than in the other runs, so the runs used "
                "different versions of the data. Compare them separately, or train again on one version."
            )
    return cut


def entries_table(entries: Sequence[Entry], metric: str) -> pd.DataFrame:
    """Return one row per entry.

    Columns: experiment, split, metric, positive (class of a metric of one class, else ""), runs, seeds; value, sd, low, high, n_images,
    n_lesions on the entry's own test images; common_value, common_sd, common_low, common_high, common_images on images common to all
    entries (NaN if nothing can be paired); means over runs of train_images, optimizer_steps, images_seen; departures: deviations from
    the experiment file; run_ids.
    """
    paired = not pairing_obstacle(entries)
    own = {(entry.experiment, entry.split): entry.scores for entry in entries}
    common = _restrict(own) if paired else {}
    n_common = len(next(iter(common.values()))[0]) if paired else 0
    estimates = {place: estimate(metric, runs) for place, runs in sorted(own.items(), key=lambda item: item[0][1])}
    shared = {place: estimate(metric, runs) for place, runs in common.items()} if n_common else {}
    nothing = EntryMetric(np.nan, np.nan, np.nan, np.nan, 0, 0)
    table = []
    for entry in entries:
        place = entry.experiment, entry.split
        table.append(
            {
                "experiment": entry.experiment, "split": entry.split, "metric": metric,
                "positive": positive_of(entry.runs[0].classes) if metric in OF_POSITIVE else "", "runs": len(entry.runs),
                "seeds": " ".join(map(str, entry.seeds)), **asdict(estimates[place]),
                **{f"common_{name}": getattr(shared.get(place, nothing), name) for name in ("value", "sd", "low", "high")},
                "common_images": n_common, "train_images": _mean(run.params.get("train_images") for run in entry.runs),
                "optimizer_steps": _mean(run.metrics.get("optimizer_steps") for run in entry.runs),
                "images_seen": _mean(run.metrics.get("images_seen") for run in entry.runs),
                "departures": find_deviations(entry), "run_ids": " ".join(run.run_id for run in entry.runs),
            }
        )  # fmt: skip
    return pd.DataFrame(table)


def table_title(table: pd.DataFrame) -> str:
    """Return the title of the first metric, with the positive classes.

    `table` contains rows of `entries_table`.
    """
    metric = str(table["metric"].iloc[0])
    return metric_title(metric, " / ".join(dict.fromkeys(table.loc[table["metric"] == metric, "positive"])))


def _mean(values: Iterable[str | float | None]) -> float:
    numbers = [float(value) for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else np.nan


def pairs_table(entries: Sequence[Entry], metric: str) -> pd.DataFrame:
    """Return one row per pair of experiments at a split, on common test images.

    Columns: split, first, second, n_images, n_lesions; difference (first minus second, of the means over seeds), low, high and p of
    the paired interval. For classes also first_only, second_only and mcnemar_p of McNemar's test, auroc_difference and delong_p of
    DeLong's test, both on the predictions of the lowest common seed (`seed`; without one, the lowest of each). The columns `…_holm`
    are corrected over the table. The table is empty if nothing can be paired.
    """
    rows = []
    for split in dict.fromkeys(entry.split for entry in entries):
        for entry, other in combinations([item for item in entries if item.split == split], 2):
            if pairing_obstacle([entry, other]):
                continue
            cut = common_images([entry, other])
            first, second = cut[entry.experiment, split], cut[other.experiment, split]
            if not len(first[0]):
                continue
            row = {
                "split": split, "first": entry.experiment, "second": other.experiment, "metric": metric,
                "n_images": len(first[0]), "n_lesions": len(set(first[0].lesion_id)),
            }  # fmt: skip
            row |= paired_difference(metric, first, second)._asdict() | _tests(entry, other, first, second)
            rows.append(row)
    table = pd.DataFrame(rows)
    for name in ("p", "mcnemar_p", "delong_p"):
        if name in table:
            table[f"{name.removesuffix('_p')}_holm" if name != "p" else "p_holm"] = holm(table[name].to_list())
    return table


def _tests(entry: Entry, other: Entry, first: Sequence[Scores], second: Sequence[Scores]) -> dict[str, object]:
    shared = sorted(set(entry.seeds) & set(other.seeds))
    seeds = (shared[0], shared[0]) if shared else (entry.seeds[0], other.seeds[0])
    a, b = first[_position(entry, seeds[0])], second[_position(other, seeds[1])]
    if not isinstance(a, ClassScores) or not isinstance(b, ClassScores):
        return {}
    lesion = a.lesion_id.astype(str)
    right = [scores.probability.argmax(axis=1) == scores.label for scores in (a, b)]
    counts = mcnemar(right[0], right[1], lesion)
    row: dict[str, object] = {
        "seed": seeds[0] if shared else f"{seeds[0]} {seeds[1]}",
        "first_only": counts.first_only, "second_only": counts.second_only, "mcnemar_p": counts.p,
    }  # fmt: skip
    try:
        area = delong(a.label, a.probability, b.probability, a.classes, lesion)
    except ValueError:
        # The images are all of one class.
        return row | {"auroc_difference": np.nan, "delong_p": np.nan}
    return row | {"auroc_difference": area.difference, "delong_p": area.p}


def _position(entry: Entry, seed: int) -> int:
    """Return the position of a seed among the scores of an entry."""
    if entry.split.startswith("fold:*/"):
        return entry.seeds.index(seed)
    return next(number for number, run in enumerate(entry.runs) if run.seed == seed)
