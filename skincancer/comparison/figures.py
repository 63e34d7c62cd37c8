"""Figures of a comparison. A method has the same colour in every figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from matplotlib.typing import LineStyleType
from sklearn.metrics import roc_curve

from skincancer.comparison.entries import Entry
from skincancer.comparison.predictions import ClassScores
from skincancer.comparison.tables import table_title
from skincancer.metrics.classification import CALIBRATION_BINS, calibration_bin
from skincancer.visualization.style import INK, class_styles, finish_axes, legend_of_panels, new_figure

# Smallest number of images in a calibration bin that the line passes through.
LINE_FROM = 10
# Width of the legend in inches.
_LEGEND = 2.4
_GRID = np.linspace(0, 1, 501)


def interval_dots(table: pd.DataFrame, *, title: str = "", note: str = "") -> Figure:
    """Draw the metric and interval of every entry (common test images: hollow dots).

    `table` contains the rows of one metric of `tables.entries_table`.
    """
    experiments, splits = _names(table["experiment"]), _names(table["split"])
    colours = dict(zip(experiments, class_styles(experiments), strict=True))
    figure = new_figure((8.5, 1.6 + 0.42 * len(table) + 0.25 * len(splits)), title, note)
    axes = figure.subplots()
    ticks, labels, place = [], [], 0.0
    for split in splits:
        for row in table[table["split"] == split].to_dict("records"):
            colour = colours[row["experiment"]][0]
            _dot(axes, row["value"], row["low"], row["high"], place, colour, filled=True)
            if row["common_images"]:
                _dot(
                    axes, row["common_value"], row["common_low"], row["common_high"], place + 0.28, colour, filled=False
                )
            ticks.append(place + 0.14 * bool(row["common_images"]))
            labels.append(f"{row['experiment']}  {split}")
            place += 1
        place += 0.5
    axes.set_yticks(ticks, labels)
    axes.invert_yaxis()
    axes.set_xlabel(
        table_title(table) + " (filled: own test images; hollow: common test images; 95 % intervals over lesions)"
    )
    axes.tick_params(axis="y", length=0)
    finish_axes(axes)
    axes.xaxis.label.set_fontsize(9)
    return figure


def roc_overlay(entries: Sequence[Entry], *, title: str = "", note: str = "") -> Figure:
    """Draw ROC curves, each the mean over classes (of two, the second) and seeds."""

    def draw(axes: Axes, colour: str, dash: LineStyleType, label: str, runs: Sequence[ClassScores]) -> None:
        curve = np.mean([_mean_roc(scores) for scores in runs], axis=0)
        axes.plot(np.append(0, _GRID), np.append(0, curve), color=colour, linestyle=dash, linewidth=1.8, label=label)

    figure = _panels(entries, draw, title, note)
    for axes in figure.axes:
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=0.8)
        axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    return figure


def calibration_overlay(entries: Sequence[Entry], *, title: str = "", note: str = "") -> Figure:
    """Draw accuracy against mean confidence per calibration bin, in one panel per split.

    All seeds are pooled. The area of a dot is the share of images in its bin. The line skips bins of few images.
    """

    def draw(axes: Axes, colour: str, dash: LineStyleType, label: str, runs: Sequence[ClassScores]) -> None:
        confidence = np.concatenate([scores.probability.max(axis=1) for scores in runs])
        right = np.concatenate([scores.probability.argmax(axis=1) == scores.label for scores in runs])
        bins = pd.DataFrame({"confidence": confidence, "right": right}).groupby(calibration_bin(confidence))
        mean, share = bins.mean().astype(float), bins.size() / len(right)
        known = mean[bins.size() >= LINE_FROM]
        axes.plot(known["confidence"], known["right"], color=colour, linestyle=dash, linewidth=1.4, label=label)
        axes.scatter(mean["confidence"], mean["right"], s=6 + 300 * share, color=colour, alpha=0.7, linewidths=0)

    figure = _panels(entries, draw, title, note)
    for axes in figure.axes:
        axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
        axes.set(
            xlabel=f"confidence ({CALIBRATION_BINS} bins)", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), aspect="equal",
        )  # fmt: skip
    return figure


def learning_curves(entries: Sequence[Entry], metric: str, *, title: str = "", note: str = "") -> Figure:
    """Draw validation loss and metric of each run against the training images seen.

    Epochs would mislead: an epoch with undersampling has fewer images than one with oversampling.
    """
    experiments, splits = _names(entry.experiment for entry in entries), _names(entry.split for entry in entries)
    styles = dict(zip(experiments, class_styles(experiments), strict=True))
    columns = ["val/loss", f"val/{metric}"]
    columns = [name for name in columns if any(name in run.epochs for entry in entries for run in entry.runs)]
    figure = new_figure((3.6 * len(splits) + _LEGEND, 3.1 * max(1, len(columns)) + 0.9), title, note)
    grid = figure.subplots(max(1, len(columns)), len(splits), squeeze=False, sharey="row")
    for number, name in enumerate(columns):
        for axes, split in zip(grid[number], splits, strict=True):
            for entry in (entry for entry in entries if entry.split == split):
                for position, run in enumerate(entry.runs):
                    if name not in run.epochs:
                        continue
                    seen = run.metrics.get("images_seen", np.nan) * run.epochs["epoch"] / run.epochs["epoch"].max()
                    x = seen if np.isfinite(seen).all() else run.epochs["epoch"]
                    axes.plot(
                        x, run.epochs[name], color=styles[entry.experiment][0], linewidth=1.4, alpha=0.85,
                        linestyle=styles[entry.experiment][1], label=entry.experiment if position == 0 else None,
                    )  # fmt: skip
            axes.set_title(split if number == 0 else "", fontsize=10)
            axes.set(xlabel="training images seen", ylabel=name if axes is grid[number][0] else "")
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.tick_params(axis="x", labelrotation=20, labelsize=8)
            finish_axes(axes)
    legend_of_panels(figure)
    return figure


def training_size(table: pd.DataFrame, *, title: str = "", note: str = "") -> Figure:
    """Draw the metric against the number of training images.

    The test images are the common ones, or each run's own if there are none.
    """
    experiments = _names(table["experiment"])
    shared = bool((table["common_images"] > 0).all())
    prefix = "common_" if shared else ""
    figure = new_figure((6.4 + _LEGEND, 4.2), title, note)
    axes = figure.subplots()
    for number, (name, (colour, dash)) in enumerate(zip(experiments, class_styles(experiments), strict=True)):
        rows = table[table["experiment"] == name].sort_values("train_images")
        value, low, high = (rows[prefix + column].to_numpy(dtype=float) for column in ("value", "low", "high"))
        reach = np.nan_to_num(np.maximum(0, np.stack([value - low, high - value])))
        # Shift the methods, so that their points do not cover each other.
        x = rows["train_images"] * (1 + 0.006 * (number - (len(experiments) - 1) / 2))
        axes.errorbar(x, value, reach, color=colour, linestyle=dash, marker="o", markersize=5, capsize=3, label=name)
    test = f"the {int(table['common_images'].iloc[0]):,} common test images" if shared else "each run's own test images"
    axes.set(xlabel="training images (before balancing)", ylabel=table_title(table))
    axes.set_title(f"on {test}", fontsize=10)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    finish_axes(axes)
    legend_of_panels(figure)
    return figure


def draw_all(
    entries: Sequence[Entry], table: pd.DataFrame, metric: str, *, title: str = "", note: str = ""
) -> dict[str, Callable[[], Figure]]:
    """Return a drawing function for each figure that the data of the entries allow."""
    figures: dict[str, Callable[[], Figure]] = {"intervals": partial(interval_dots, table, title=title, note=note)}
    if all(isinstance(run.scores, ClassScores) for entry in entries for run in entry.runs):
        figures["roc"] = partial(roc_overlay, entries, title=title, note=note)
        figures["calibration"] = partial(calibration_overlay, entries, title=title, note=note)
    if any(len(run.epochs) for entry in entries for run in entry.runs):
        figures["learning_curves"] = partial(learning_curves, entries, metric, title=title, note=note)
    if table["train_images"].notna().all() and table["train_images"].nunique() > 1:
        figures["training_size"] = partial(training_size, table, title=title, note=note)
    return figures


def _panels(entries: Sequence[Entry], draw: Callable[..., None], title: str, note: str) -> Figure:
    """Return a figure with one panel per split."""
    experiments, splits = _names(entry.experiment for entry in entries), _names(entry.split for entry in entries)
    styles = dict(zip(experiments, class_styles(experiments), strict=True))
    figure = new_figure((3.6 * len(splits) + _LEGEND, 4.5), title, note)
    for axes, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        for entry in (entry for entry in entries if entry.split == split):
            runs = [scores for scores in entry.scores if isinstance(scores, ClassScores)]
            draw(axes, *styles[entry.experiment], entry.experiment, runs)
        axes.set_title(split, fontsize=10)
        finish_axes(axes)
    legend_of_panels(figure)
    return figure


def _mean_roc(scores: ClassScores) -> npt.NDArray[np.float64]:
    """Return the mean sensitivity (501,) over classes at `_GRID` of 1 − specificity."""
    positive_classes = [1] if len(scores.classes) == 2 else range(len(scores.classes))
    curves = []
    for c in positive_classes:
        positive = scores.label == c
        if 0 < positive.sum() < len(positive):
            fpr, tpr, _ = roc_curve(positive, scores.probability[:, c])
            curves.append(np.interp(_GRID, fpr, tpr))
    return np.asarray(np.mean(curves, axis=0)) if curves else np.full(len(_GRID), np.nan)


def _dot(axes: Axes, value: float, low: float, high: float, y: float, colour: str, *, filled: bool) -> None:
    if np.isfinite(low):
        axes.plot([low, high], [y, y], color=colour, linewidth=1.8, solid_capstyle="butt", alpha=1 if filled else 0.6)
    axes.plot(value, y, "o", color=colour, markersize=6.5, markerfacecolor=colour if filled else "white")


def _names(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
