"""Figures of a segmentation run, and the contours that are drawn into images.

Truth is sky blue and wide, the prediction yellow and narrow on top of it: people with the common colour deficiencies tell
the two apart, both stand out on skin and on lesions, and where they agree both are seen. As in `figures`, `title` stands
above and `note` small at the bottom; `figures.save` writes a figure.
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

_CELL = 2.3  # inches, the longer side of an image on the sheet
_CELL_PIXELS = 480  # more would not be seen on the sheet, and slows the drawing of large images
_WIDTHS = {TRUTH_COLOUR: 2.6, PREDICTION_COLOUR: 1.2}  # points


@dataclass(frozen=True)
class Case:
    """One image of an overlay sheet.

    Attributes:
        image_id: Its name.
        image: uint8 (H, W, 3), RGB.
        truth: bool (H, W).
        prediction: bool (H, W).
        jaccard: Of the two masks.
    """

    image_id: str
    image: npt.NDArray[np.uint8]
    truth: Mask
    prediction: Mask
    jaccard: float


def choose_cases(jaccard: npt.ArrayLike, n: int) -> dict[str, list[int]]:
    """Choose the images for an overlay sheet: none twice, and the rows as even as there are images.

    Args:
        jaccard: (N,) of each image, without NaN.
        n: images in each row, at least 1.

    Returns:
        Positions in `jaccard` under the names in `ROWS`: the best (best first), those around the median (better first),
        the worst (worst first); at most n each. Of equals the first comes first. Of fewer than 3 n images a row has a
        third; what is left over goes to the best, then to the worst.

    Raises:
        ValueError: if n is under 1, or `jaccard` is empty, has another shape or holds NaN.
    """
    values = np.asarray(jaccard, dtype=np.float64)
    _check_jaccard(values)
    if n < 1:
        raise ValueError(f"n must be at least 1, given {n}")
    ranked = np.argsort(-values, kind="stable").tolist()
    count = len(ranked)
    third, left_over = divmod(count, 3)
    n_best, n_median, n_worst = min(n, third + (left_over > 0)), min(n, third), min(n, third + (left_over > 1))
    middle = max(n_best, (count - n_median) // 2)
    chosen = ranked[:n_best], ranked[middle : middle + n_median], ranked[::-1][:n_worst]
    return dict(zip(ROWS, chosen, strict=True))


def overlay_sheet(cases: Mapping[str, Sequence[Case]], *, title: str = "", note: str = "") -> Figure:
    """Draw images with the contours of truth and prediction, in rows such as best, median and worst.

    Args:
        cases: row name → its images, left to right; a row without images is left out.
        title: above the figure.
        note: small, at the bottom.

    Returns:
        The figure: every image at its own aspect ratio, its id and jaccard under it.

    Raises:
        ValueError: if there is no image, or an image or mask is not as `Case` says.
    """
    rows = {name: row for name, row in cases.items() if row}
    if not rows:
        raise ValueError("there is no image to draw; give at least one case")
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
    """Draw the per-image jaccard in bins of 0.05, its mean, and the share of images below 0.65.

    Args:
        jaccard: (N,) in [0, 1], without NaN.
        title: above the figure.
        note: small, at the bottom.

    Raises:
        ValueError: if `jaccard` is empty, has another shape, or holds NaN or values outside [0, 1].
    """
    values = np.asarray(jaccard, dtype=np.float64)
    _check_jaccard(values)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"jaccard must lie in [0, 1], given {values.min():.4g} … {values.max():.4g}")
    edges = np.arange(21) / 20
    count, _ = np.histogram(values, edges)
    below = edges[:-1] < ACCEPTABLE_JACCARD
    n_below = int((values < ACCEPTABLE_JACCARD).sum())

    figure = new_figure((6.4, 4), title, note)
    axes = figure.subplots()
    axes.set_title(f"{len(values):,} images", fontsize=10)
    for part, colour, label in (
        (below, PALETTE[1], f"below {ACCEPTABLE_JACCARD}: {n_below:,} ({n_below / len(values):.1%})"),
        (
            ~below,
            PALETTE[0],
            f"{ACCEPTABLE_JACCARD} and above: {len(values) - n_below:,} ({1 - n_below / len(values):.1%})",
        ),
    ):
        axes.bar(edges[:-1][part], count[part], width=0.046, align="edge", color=colour, label=label)
    axes.axvline(ACCEPTABLE_JACCARD, color=INK, linestyle=":", linewidth=1.4)
    axes.axvline(float(values.mean()), color=INK, linestyle="--", linewidth=1.4, label=f"mean {values.mean():.3f}")
    axes.set(xlabel="jaccard of an image", ylabel="images", xlim=(0, 1))
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
        # Background all round closes the contour of a mask that reaches the edge.
        padded = np.pad(np.asarray(share, dtype=np.float64) / 255, 1)
        contour = axes.contour(
            np.arange(-1, size[0] + 1),
            np.arange(-1, size[1] + 1),
            padded,
            levels=[0.5],
            colors=colour,
            linewidths=points,
        )
        contour.set(path_effects=_halo(points), clip_on=False)  # else half of a line along the edge is cut off
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
            f"jaccard must have shape (N,) with at least one image and no NaN, given {values.shape} with "
            f"{np.isnan(values).sum()} NaN; leave out images without a mask"
        )
