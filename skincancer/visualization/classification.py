"""Figures of a classification run.

The figures use matplotlib's object interface, without pyplot, windows and global state. Every function returns a new `Figure` for `save`.
`title` is printed above the figure, and `note` in small type below the figure, for warnings such as "synthetic data" that must stay
with the image. A class has the same colour in every figure, by its position in `classes`.

The functions in `FIGURES` take the same arguments: `label` (N,) integers in 0 … C−1, `probability` (N, C) in [0, 1] with rows that sum to
1, and the C names `classes`. They raise ValueError for inconsistent arguments (see `check_predictions` in `metrics.classification`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.typing import LineStyleType
from sklearn import metrics as sklearn_metrics

from skincancer.metrics.classification import (
    CALIBRATION_BINS,
    calibration_bin,
    check_predictions,
    classification_metrics,
)
from skincancer.metrics.names import CURVES
from skincancer.visualization.style import (
    FAINT,
    INK,
    MOST_CLASSES,
    PALETTE,
    class_label,
    class_styles,
    finish_axes,
    new_figure,
)

# Up to this number, names of classes may take several lines of a legend.
_FEW_CLASSES = 10
# Line of a class without a legend entry.
_REST: dict[str, Any] = {"color": "#d0d0d0", "linestyle": "-", "linewidth": 0.6, "zorder": 1}
_BLUES: Colormap = LinearSegmentedColormap.from_list("blues", ["#ffffff", "#9ecae1", "#3182bd", "#08306b"])


def learning_curves(epochs: pd.DataFrame, best_epoch: int | None = None, *, title: str = "", note: str = "") -> Figure:
    """Plot losses (left) and validation metrics (right) against the epoch.

    Args:
        epochs: one row per epoch, with `epoch` (integers), `train/loss` or `val/loss` or both, and `val/<metric>`. NaN values are skipped.
            Only metrics in `names.CURVES` are plotted; without any, the right panel is left out.
        best_epoch: epoch to mark, or None.
        title: title above the figure.
        note: small text below the figure.

    Raises:
        ValueError: `epoch` or both losses are missing, or `best_epoch` is not among the epochs.
    """
    losses = [name for name in ("train/loss", "val/loss") if name in epochs]
    metrics = [f"val/{name}" for name in CURVES if f"val/{name}" in epochs]
    if "epoch" not in epochs or not losses:
        raise ValueError(f"epochs has columns {list(epochs.columns)}; expected epoch and train/loss or val/loss.")
    if best_epoch is not None and best_epoch not in set(epochs["epoch"]):
        raise ValueError(f"best_epoch is {best_epoch}; expected one of {sorted(set(epochs['epoch']))}.")
    panels = [(losses, "loss"), *([(metrics, "validation metric")] if metrics else [])]
    figure = new_figure((5 * len(panels), 4.2), title, note)
    axes_row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (names, quantity) in zip(axes_row, panels, strict=True):
        for i, name in enumerate(names):
            known = epochs[["epoch", name]].dropna()
            label = name.replace("train/", "training ").replace("val/", "validation " if quantity == "loss" else "")
            marker = "o" if len(known) <= 30 else ""
            axes.plot(known["epoch"], known[name], color=PALETTE[i], marker=marker, markersize=3.5, label=label)
        if best_epoch is not None:
            axes.axvline(
                best_epoch, color=INK, linestyle=":", linewidth=1.2, label=f"best epoch {best_epoch}", zorder=0
            )
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        if len(epochs) == 1:
            axes.set_xlim(epochs["epoch"].iloc[0] - 0.5, epochs["epoch"].iloc[0] + 0.5)
        finish_axes(axes)
        # The legend is below the panel, so that no curve is hidden.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9)
    return figure


def confusion_matrix(
    label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str], *, title: str = "", note: str = ""
) -> Figure:
    """Plot the confusion matrix as counts and as row shares.

    Of more than `MOST_CLASSES` classes the matrix has no texts, and the most frequent confusions are listed next to it.
    """
    y, p = check_predictions(label, probability, classes)
    counts = sklearn_metrics.confusion_matrix(y, p.argmax(axis=1), labels=range(len(classes)))
    totals = counts.sum(axis=1, keepdims=True)
    rates = np.divide(counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0)
    if len(classes) > MOST_CLASSES:
        return _many_confusions(counts, rates, classes, title, note)
    names = [class_label(name) for name in classes]
    side = max(2.6, 0.62 * len(classes))
    figure = new_figure((2 * side + 3.4, side + 1.8), title, note)
    left, right = figure.subplots(1, 2)
    # A square root keeps the cells of rare classes visible next to the cells of common classes.
    _cells(left, np.sqrt(counts / max(1, counts.max())), [[f"{n:,}" for n in row] for row in counts])
    _cells(right, rates, [["–" if np.isnan(rate) else f"{rate:.2f}" for rate in row] for row in rates])
    left.set_title(f"images ({len(y):,})", fontsize=10)
    right.set_title("share of the true class", fontsize=10)
    slanted = len(classes) > 4 or max(len(name) for name in classes) > 10
    for axes in (left, right):
        axes.set_xticks(
            range(len(names)), names, **({"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {})
        )
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="predicted class")
        axes.tick_params(length=0, labelsize=9)
    left.set_ylabel("true class")
    return figure


def _many_confusions(
    counts: npt.NDArray[np.int64], rates: npt.NDArray[np.float64], classes: Sequence[str], title: str, note: str
) -> Figure:
    figure = new_figure((15, 7.4), title, note)
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    image = left.imshow(np.nan_to_num(rates), cmap=_BLUES, vmin=0, vmax=1, interpolation="nearest")
    left.set(xlabel="predicted class, by its position in classes.json", ylabel="true class")
    left.set_title(f"{len(classes)} classes, {counts.sum():,} images, share of the true class", fontsize=10)
    figure.colorbar(image, ax=left, shrink=0.8)
    errors = counts.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:MOST_CLASSES]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, errors.shape), strict=True) if errors[i, j]]
    bars = right.barh(range(len(pairs)), [errors[pair] for pair in pairs], color=PALETTE[1])
    right.bar_label(bars, [f"{errors[i, j]:,} of {counts[i].sum():,}" for i, j in pairs], padding=3, fontsize=8)
    names = [_short(classes[i]) + " → " + _short(classes[j]) for i, j in pairs]
    right.set_yticks(range(len(names)), names, fontsize=8)
    right.set_title("most frequent confusions: true → predicted", fontsize=10)
    right.invert_yaxis()
    right.margins(x=0.18)
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.set(xlabel="images")
    finish_axes(right)
    return figure


def roc_curves(
    label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str], *, title: str = "", note: str = ""
) -> Figure:
    """Plot ROC curves of each class against the rest, with mean.

    Of two classes only the second has a curve. The legend contains the areas behind `auroc_macro`. The mean curve averages sensitivity at
    equal 1 − specificity. A class without positives or without negatives has no curve, and the legend marks the class as undefined.
    """
    y, p = check_predictions(label, probability, classes)
    figure = new_figure((7.2, 5) if len(classes) <= _FEW_CLASSES else (8.8, 5.4), title, note)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linestyle=":", linewidth=1)
    entries: list[tuple[Line2D, str]] = []
    grid = np.linspace(0, 1, 1001)
    mean_curve: list[npt.NDArray[np.float64]] = []
    shown, names = _shown_classes(y, len(classes)), _legend_names(classes)
    for c, (colour, dash) in _scored_classes(classes):
        line = Line2D([], [], color=colour, linestyle=dash, linewidth=1.8)
        if 0 < (y == c).sum() < len(y):
            fpr, tpr, _ = sklearn_metrics.roc_curve(y == c, p[:, c])
            line.set_data(fpr, tpr)
            axes.add_line(line)
            mean_curve.append(np.interp(grid, fpr, tpr))
            if c in shown:
                entries.append((line, _entry(f"{sklearn_metrics.auc(fpr, tpr):.3f}", names[c])))
            else:
                line.set(**_REST)
        elif c in shown:
            entries.append((line, _entry("undefined", names[c])))
    if len(classes) > 2 and mean_curve:
        auroc = classification_metrics(y, p, classes)["auroc_macro"]
        (line,) = axes.plot(
            np.append(0, grid), np.append(0, np.mean(mean_curve, axis=0)), color=INK, linestyle="--", linewidth=1.8
        )
        entries.append((line, f"{auroc:.3f}  macro mean"))
    entries += _rest(len(classes) - len(shown))
    axes.set(xlabel="1 − specificity", ylabel="sensitivity")
    _unit_square(axes)
    _legend_beside(axes, entries, "AUROC")
    return figure


def precision_recall_curves(
    label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str], *, title: str = "", note: str = ""
) -> Figure:
    """Plot the precision-recall curve of each class against the rest.

    Of two classes only the second has a curve. The legend contains the areas behind `average_precision` or `average_precision_macro`,
    and prevalence, which is the precision of chance; ticks at the right edge mark the prevalence. A class without positives or
    negatives is undefined.
    """
    y, p = check_predictions(label, probability, classes)
    figure = new_figure((7.2, 5) if len(classes) <= _FEW_CLASSES else (8.8, 5.4), title, note)
    axes = figure.subplots()
    entries: list[tuple[Line2D, str]] = []
    shown, names = _shown_classes(y, len(classes)), _legend_names(classes)
    for c, (colour, dash) in _scored_classes(classes):
        line = Line2D([], [], color=colour, linestyle=dash, linewidth=1.8, drawstyle="steps-post")
        if 0 < (y == c).sum() < len(y):
            precision, recall, _ = sklearn_metrics.precision_recall_curve(y == c, p[:, c])
            area, prevalence = sklearn_metrics.average_precision_score(y == c, p[:, c]), np.mean(y == c)
            line.set_data(recall, precision)
            axes.add_line(line)
            if c not in shown:
                line.set(**_REST)
                continue
            axes.plot([1.0, 1.03], [prevalence] * 2, color=colour, linewidth=2.5, clip_on=False, solid_capstyle="butt")
            entries.append((line, _entry(f"{area:.3f}  ({prevalence:.3f})", names[c])))
        elif c in shown:
            entries.append((line, _entry("undefined", names[c])))
    if len(classes) > 2:
        area = classification_metrics(y, p, classes)["average_precision_macro"]
        if np.isfinite(area):
            entries.append((Line2D([], [], linestyle=""), f"{area:.3f}  macro mean"))
    entries += _rest(len(classes) - len(shown))
    axes.set(xlabel="recall (sensitivity)", ylabel="precision")
    _unit_square(axes)
    _legend_beside(axes, entries, "average precision (prevalence)")
    return figure


def reliability(
    label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str], *, title: str = "", note: str = ""
) -> Figure:
    """Plot accuracy against confidence in the 15 bins of the calibration error.

    The lower panel contains the number of images per bin. Confidence is the highest probability. A bin without images has no bar.
    """
    figure = new_figure((5.4, 6), title, note)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    _draw_reliability(upper, lower, label, probability, classes, "")
    return figure


def reliability_change(
    label: npt.ArrayLike, before: npt.ArrayLike, after: npt.ArrayLike, classes: Sequence[str], *, title: str = "", note: str = ""
) -> Figure:  # fmt: skip
    """Plot `reliability` before (left) and after (right) temperature scaling.

    `before` and `after` are probabilities (N, C) of the same images.
    """
    figure = new_figure((9.6, 6), title, note)
    panels = figure.subplots(2, 2, sharex=True, height_ratios=[3, 1])
    for column, (name, probability) in enumerate((("before", before), ("after", after))):
        _draw_reliability(panels[0, column], panels[1, column], label, probability, classes, f"{name}: ")
    return figure


def _draw_reliability(
    upper: Axes, lower: Axes, label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str], heading: str
) -> None:
    y, p = check_predictions(label, probability, classes)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == y
    bins = pd.DataFrame({"confidence": confidence, "right": right}).groupby(calibration_bin(confidence))
    mean, count = bins.mean().astype(float), bins.size()
    width = 1 / CALIBRATION_BINS
    centre = (mean.index.to_numpy() + 0.5) * width

    ece = classification_metrics(y, p, classes)["ece"]
    upper.set_title(f"{heading}expected calibration error {ece:.3f} ({CALIBRATION_BINS} bins)", fontsize=10)
    upper.bar(centre, mean["right"], width * 0.92, color=PALETTE[5], label="accuracy in the bin")
    upper.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1.2, label="perfect calibration")
    upper.plot(
        mean["confidence"], mean["right"], "o", color=PALETTE[0], markersize=4.5, label="at the bin's mean confidence"
    )
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(loc="upper left", frameon=False, fontsize=9)
    lower.bar(centre, count, width * 0.92, color=FAINT)
    for x, n in zip(centre, count, strict=True):
        lower.annotate(f"{n:,}", (x, n), (0, 1.5), textcoords="offset points", ha="center", fontsize=6.5, color=INK)
    lower.set(xlabel="confidence (highest probability)", ylabel="images", ylim=(0, count.max() * 1.2))
    lower.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    lower.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in (upper, lower):
        finish_axes(axes)


# From the file name without suffix to function(label, probability, classes, *, title, note).
FIGURES: dict[str, Callable[..., Figure]] = {
    "confusion_matrix": confusion_matrix,
    "roc": roc_curves,
    "precision_recall": precision_recall_curves,
    "reliability": reliability,
}


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    finish_axes(axes)


def _scored_classes(classes: Sequence[str]) -> list[tuple[int, tuple[str, LineStyleType]]]:
    """Return position and style of each class with a curve."""
    styled = list(enumerate(class_styles(classes)))
    return styled[1:] if len(classes) == 2 else styled


def _legend_names(classes: Sequence[str]) -> list[str]:
    """Return names of classes for a legend, in one line if there are many."""
    return [class_label(name) if len(classes) <= _FEW_CLASSES else _short(name) for name in classes]


def _short(name: str) -> str:
    """Return a class name of at most 32 letters, without its middle if longer."""
    return (name if len(name) <= 32 else f"{name[:20]}…{name[-11:]}").replace("$", r"\$")


def _shown_classes(label: npt.NDArray[np.int64], count: int) -> set[int]:
    """Return the classes with the most images, at most `MOST_CLASSES`."""
    images = np.bincount(label, minlength=count)
    return set(np.argsort(-images, kind="stable")[:MOST_CLASSES].tolist())


def _rest(count: int) -> list[tuple[Line2D, str]]:
    """Return the legend entry of the classes without an entry of their own."""
    return [(Line2D([], [], **_REST), f"{count} other classes")] if count else []


def _entry(number: str, name: str) -> str:
    """Return the text of a legend entry.

    The number comes first, since matplotlib hides texts that begin with _.
    """
    # U+2007 is as wide as a digit.
    indent = re.sub(r"\w", "\u2007", re.sub(r"\W", " ", number))
    return f"{number}  {name}".replace("\n", f"\n{indent}  ")


def _legend_beside(axes: Axes, entries: list[tuple[Line2D, str]], heading: str) -> None:
    handles, labels = zip(*entries, strict=True)
    axes.legend(
        handles, labels, title=heading, alignment="left", loc="upper left", bbox_to_anchor=(1.04, 1), borderaxespad=0,
        frameon=False, fontsize=9, title_fontsize=9,
    )  # fmt: skip


def _cells(axes: Axes, shade: npt.NDArray[np.float64], texts: list[list[str]]) -> None:
    """Draw cells shaded from 0 to 1, with readable texts."""
    axes.imshow(np.nan_to_num(shade), cmap=_BLUES, vmin=0, vmax=1)
    size = 10 if len(texts) <= 4 else 8.5
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            srgb = np.array(_BLUES(float(np.nan_to_num(shade[i, j])))[:3])
            linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
            # Relative luminance of WCAG 2. At 0.179 black and white have the same contrast, 4.6 to 1.
            colour = "black" if linear @ [0.2126, 0.7152, 0.0722] > 0.179 else "white"
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)
    axes.set_xticks(np.arange(0.5, len(texts) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(texts) - 1), minor=True)
    axes.grid(which="minor", color="#e6e6e6", linewidth=0.7)
    axes.tick_params(which="minor", length=0)
