"""Figures of a segmentation run.

The contour of the truth is sky blue and wide, the contour of the prediction yellow and narrow on top. People with the common colour vision
deficiencies can distinguish the two colours, both are visible on skin and lesions, and both are visible where the contours agree.
`title` is printed above a figure, `note` in small type below.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from PIL import Image

from skincancer.imaging.overlay import PREDICTION_COLOUR, TRUTH_COLOUR, check_image
from skincancer.imaging.types import Mask
from skincancer.metrics.segmentation import ACCEPTABLE_JACCARD
from skincancer.visualization.style import INK, PALETTE, finish_axes, new_figure

ROWS = ("best", "median", "worst")

# Longer side of an image on the sheet: inches, and pixels (more would be invisible, and slow for large images).
_CELL, _CELL_PIXELS = 2.3, 480
# Line widths, points.
_WIDTHS = {TRUTH_COLOUR: 2.6, PREDICTION_COLOUR: 1.2}


@dataclass(frozen=True)
class Case:
    """One image of an overlay sheet.

    Attributes:
        image_id: name of the image.
        image: RGB uint8 (H, W, 3).
        truth: bool (H, W).
        prediction: bool (H, W).
        jaccard: Jaccard index of the two masks.
    """

    image_id: str
    image: npt.NDArray[np.uint8]
    truth: Mask
    prediction: Mask
    jaccard: float


def choose_cases(jaccard: npt.ArrayLike, n: int) -> dict[str, list[int]]:
    """Choose the best, median and worst images for an overlay sheet.

    Args:
        jaccard: (N,) Jaccard index of each image, without NaN.
        n: number of images in each row, at least 1.

    Returns:
        Positions in `jaccard` by the names in `ROWS`, at most n each and none twice: best (best first), median (better first), worst (worst
        first). Ties keep the order of `jaccard`. With fewer than 3 n images each row has a third; the first remaining image is added to
        the best, the second to the worst.

    Raises:
        ValueError: n is below 1, or `jaccard` is empty, has another shape or contains NaN.
    """
    values = np.asarray(jaccard, dtype=np.float64)
    _check_jaccard(values)
    if n < 1:
        raise ValueError(f"n is {n}; expected 1 or more")
    ranked = np.argsort(-values, kind="stable").tolist()
    count = len(ranked)
    third, left_over = divmod(count, 3)
    n_best, n_median, n_worst = min(n, third + (left_over > 0)), min(n, third), min(n, third + (left_over > 1))
    middle = max(n_best, (count - n_median) // 2)
    chosen = ranked[:n_best], ranked[middle : middle + n_median], ranked[::-1][:n_worst]
    return dict(zip(ROWS, chosen, strict=True))


def overlay_sheet(cases: Mapping[str, Sequence[Case]], *, title: str = "", note: str = "") -> Figure:
    """Draw images with the contours of truth and prediction.

    Args:
        cases: images of each row by row name (best, median, worst); a row without images is left out.
        title: title above the figure.
        note: small text below the figure.

    Returns:
        The figure, with every image at its aspect ratio above its id and Jaccard index.

    Raises:
        ValueError: there is no image, or an image or mask violates the shapes of `Case`.
    """
    rows = {name: row for name, row in cases.items() if row}
    if not rows:
        raise ValueError("cases has no image; expected at least one")
    columns = max(map(len, rows.values()))
    tallest = [max(_display_height(case) for case in row) for row in rows.values()]
    size = max(4.5, columns * (_CELL + 0.15) + 0.5), sum(tallest) + 0.62 * len(rows) + 0.9
    figure = new_figure(size, title, note)
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=tallest)
    for (name, row), axes_row in zip(rows.items(), grid, strict=True):
        axes_row[0].set_ylabel(name, fontsize=11)
        for number, axes in enumerate(axes_row):
            if number < len(row):
                _draw_case(axes, row[number])
            else:
                axes.set_axis_off()
    figure.align_ylabels(grid[:, 0])
    handles = [
        Line2D([], [], color=colour, linewidth=width, path_effects=_halo(width)) for colour, width in _WIDTHS.items()
    ]
    grid[0, 0].legend(
        handles, ["truth", "prediction"], loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9
    )
    return figure


def jaccard_histogram(jaccard: npt.ArrayLike, *, title: str = "", note: str = "") -> Figure:
    """Plot a histogram of the Jaccard index per image.

    The bins are 0.05 wide. Lines mark the mean and the acceptable Jaccard index of 0.65.

    Args:
        jaccard: (N,) in [0, 1], without NaN.
        title: title above the figure.
        note: small text below the figure.

    Raises:
        ValueError: `jaccard` is empty, has another shape, or contains NaN or values outside [0, 1].
    """
    values = np.asarray(jaccard, dtype=np.float64)
    _check_jaccard(values)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"jaccard ranges from {values.min():.4g} to {values.max():.4g}; expected values in [0, 1]")
    edges = np.arange(21) / 20
    count, _ = np.histogram(values, edges)
    below = edges[:-1] < ACCEPTABLE_JACCARD
    n_below = int((values < ACCEPTABLE_JACCARD).sum())

    figure = new_figure((6.4, 4), title, note)
    axes = figure.subplots()
    axes.set_title(f"{len(values):,} images", fontsize=10)
    for bins, colour, label in (
        (below, PALETTE[1], f"below {ACCEPTABLE_JACCARD}: {n_below:,} ({n_below / len(values):.1%})"),
        (
            ~below,
            PALETTE[0],
            f"{ACCEPTABLE_JACCARD} and above: {len(values) - n_below:,} ({1 - n_below / len(values):.1%})",
        ),
    ):
        axes.bar(edges[:-1][bins], count[bins], width=0.046, align="edge", color=colour, label=label)
    axes.axvline(ACCEPTABLE_JACCARD, color=INK, linestyle=":", linewidth=1.4)
    axes.axvline(float(values.mean()), color=INK, linestyle="--", linewidth=1.4, label=f"mean {values.mean():.3f}")
    axes.set(xlabel="Jaccard index of an image", ylabel="images", xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    finish_axes(axes)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def _draw_case(axes: Axes, case: Case) -> None:
    check_image(case.image, case.truth, case.prediction)
    height, width = case.image.shape[:2]
    scale = min(1.0, _CELL_PIXELS / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    axes.imshow(np.asarray(Image.fromarray(case.image).resize(size, Image.Resampling.BOX)))
    for mask, (colour, points) in zip((case.truth, case.prediction), _WIDTHS.items(), strict=True):
        if not mask.any():
            continue
        share = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
        # A background margin closes the contour of a mask that reaches the edge.
        padded = np.pad(np.asarray(share, dtype=np.float64) / 255, 1)
        contour = axes.contour(
            np.arange(-1, size[0] + 1),
            np.arange(-1, size[1] + 1),
            padded,
            levels=[0.5],
            colors=colour,
            linewidths=points,
        )
        # With clipping, half of the width of a line along the edge would be cut off.
        contour.set(path_effects=_halo(points), clip_on=False)
    axes.set(xlim=(-0.5, size[0] - 0.5), ylim=(size[1] - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    name = "\n".join(textwrap.wrap(case.image_id, 30)).replace("$", r"\$")
    axes.set_xlabel(f"{name}\n{case.jaccard:.3f}", fontsize=8)


def _halo(points: float) -> list[patheffects.AbstractPathEffect]:
    return [patheffects.withStroke(linewidth=points + 0.8, foreground="black")]


def _display_height(case: Case) -> float:
    height, width = case.image.shape[:2]
    return max(0.3, _CELL * height / max(height, width))


def _check_jaccard(values: npt.NDArray[np.float64]) -> None:
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError(
            f"jaccard has shape {values.shape} and {np.isnan(values).sum()} NaN; expected (N,) with at least one image and no NaN. "
            "Leave out images without a mask."
        )
