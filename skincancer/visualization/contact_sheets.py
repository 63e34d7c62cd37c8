"""Contact sheets of augmentation, cleaning, crops and differential structures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from skincancer.imaging.augmentation import Augment
from skincancer.imaging.augmentation_policies import describe
from skincancer.imaging.cleaning.steps import clean_stages
from skincancer.imaging.features.abcd import abcd_features
from skincancer.imaging.features.families import Lesion
from skincancer.imaging.features.structures import find_structures
from skincancer.imaging.types import Box
from skincancer.schema.data import AugmentConfig

# Height of one image, inches.
_CELL = 1.7
_TITLE_LENGTH = 22
STRUCTURE_COLOURS = {
    "network": "blue",
    "structureless": "lime",
    "dots": "red",
    "globules": "yellow",
    "streaks": "magenta",
}


def augment_sheet(
    images: NDArray[np.uint8],
    config: AugmentConfig,
    path: Path,
    titles: Sequence[str],
    copies: int = 5,
    masks: NDArray[np.generic] | None = None,
    seed: int = 0,
) -> Path:
    """Write a PNG with images next to augmented versions.

    The header contains the policy and the active transforms.

    Args:
        images: uint8 (N, H, W, 3), one row of the sheet per image.
        config: augmentation to show.
        path: PNG file; its folder is created.
        titles: N row titles, such as image ids; long titles are shortened in the middle.
        copies: number of augmented versions per image.
        masks: (N, H, W), 0 outside the lesion; drawn as contours.
        seed: seed of the augmentation.

    Raises:
        ConfigError: `config` is invalid.
        TypeError: `images` is not uint8.
        ValueError: shapes or counts are inconsistent, or there is no image.
    """
    _check_arrays(images, titles, copies, masks)
    image = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    mask = None if masks is None else torch.from_numpy(np.asarray(masks) != 0).unsqueeze(1).float()
    repeated = None if mask is None else mask.repeat_interleave(copies, 0)
    augmented, augmented_mask = Augment(config)(image.repeat_interleave(copies, 0), repeated, seed)

    rows, height, width = images.shape[:3]
    cell_width = _CELL * width / height
    inches = 1.9 + (copies + 1) * cell_width
    header = textwrap.wrap(describe(config), int(inches * 11))
    top = 0.2 * len(header) + 0.35
    figure = Figure(figsize=(inches, rows * _CELL + top), dpi=100)
    FigureCanvasAgg(figure)
    figure.text(0.1 / inches, 1 - 0.08 / figure.get_figheight(), "\n".join(header), va="top", parse_math=False)
    grid = figure.add_gridspec(
        rows,
        copies + 1,
        left=1.8 / inches,
        right=1 - 0.05 / inches,
        top=1 - top / figure.get_figheight(),
        bottom=0.01,
        wspace=0.03,
        hspace=0.03,
    )
    for row in range(rows):
        for column in range(copies + 1):
            axes = figure.add_subplot(grid[row, column])
            if column == 0:
                _draw(axes, image[row], None if mask is None else mask[row, 0])
                axes.set_ylabel(
                    _shorten(titles[row]), rotation=0, ha="right", va="center", fontsize=9, parse_math=False
                )
            else:
                at = row * copies + column - 1
                _draw(axes, augmented[at], None if augmented_mask is None else augmented_mask[at, 0])
            if row == 0:
                axes.set_title("original" if column == 0 else f"{column}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def crop_sheet(
    originals: Sequence[NDArray[np.uint8]],
    boxes: Sequence[Box],
    squares: NDArray[np.uint8],
    path: Path,
    titles: Sequence[str],
) -> Path:
    """Write a PNG with images, crop boxes and network inputs.

    Args:
        originals: N images, uint8 (H, W, 3), of any size.
        boxes: N crop boxes.
        squares: N network inputs from the store, uint8 (N, S, S, 3).
        path: PNG file; its folder is created.
        titles: N row titles.

    Raises:
        TypeError, ValueError: `squares` or `titles` are invalid, as for `augment_sheet`.
    """
    _check_arrays(squares, titles, 1, None)
    rows = len(squares)
    figure = Figure(figsize=(1.9 + 2.6 * _CELL, rows * _CELL + 0.35), dpi=100)
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    grid = figure.add_gridspec(
        rows, 2, width_ratios=[1.5, 1], left=1.8 / width, right=0.99, top=1 - 0.3 / height, bottom=0.01, wspace=0.03, hspace=0.05
    )  # fmt: skip
    for row, (original, box) in enumerate(zip(originals, boxes, strict=True)):
        whole, cut = (figure.add_subplot(grid[row, column]) for column in (0, 1))
        for axes, image in ((whole, original), (cut, squares[row])):
            axes.imshow(image)
            axes.set_xticks([])
            axes.set_yticks([])
        left, top, right, bottom = box
        outline = Rectangle(
            (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color="#00e5ff", linewidth=1.5
        )
        whole.add_patch(outline)
        whole.set_ylabel(_shorten(titles[row]), rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
        if row == 0:
            whole.set_title("original", fontsize=9)
            cut.set_title("network input", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def clean_sheet(
    originals: Sequence[NDArray[np.uint8]], steps: Sequence[str], path: Path, titles: Sequence[str]
) -> Path:
    """Write a PNG with each image before, during and after cleaning.

    The columns between contain the mask of the artefacts that a step removed, or the result of a step without a mask.

    Args:
        originals: N images, uint8 (H, W, 3), of any size.
        steps: names in `STEPS` of `cleaning.steps`, in order; one or more.
        path: PNG file; its folder is created.
        titles: N row titles.

    Raises:
        ValueError: counts are inconsistent, or there is no image or step.
    """
    if not originals or not steps or len(titles) != len(originals):
        raise ValueError(
            f"{len(originals)} images, {len(titles)} titles, {len(steps)} steps; expected one title per image and one step or more."
        )
    aspect = max(image.shape[1] / image.shape[0] for image in originals)
    rows, columns = len(originals), len(steps) + 2
    figure = Figure(figsize=(1.9 + columns * _CELL * aspect, rows * _CELL + 0.35), dpi=130)
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    grid = figure.add_gridspec(
        rows, columns, left=1.8 / width, right=1 - 0.05 / width, top=1 - 0.3 / height, bottom=0.01, wspace=0.03, hspace=0.05
    )  # fmt: skip
    for row, original in enumerate(originals):
        before, cells = original, [("original", original)]
        for result in clean_stages(original, steps):
            if result.found is None:
                cells.append((result.name, result.image))
            else:
                cells.append((f"found by {result.name}", _mark(before, result.found)))
            before = result.image
        for column, (heading, image) in enumerate([*cells, ("result", before)]):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            if column == 0:
                axes.set_ylabel(
                    _shorten(titles[row]), rotation=0, ha="right", va="center", fontsize=9, parse_math=False
                )
            if row == 0:
                axes.set_title(heading, fontsize=9, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def structure_sheet(lesions: Sequence[Lesion], path: Path, titles: Sequence[str]) -> Path:
    """Write a PNG with lesions, mask outlines and differential structures.

    The masks must not be empty.
    """
    aspect = max(lesion.image.shape[1] / lesion.image.shape[0] for lesion in lesions)
    rows, side = len(lesions), 2 * _CELL
    figure = Figure(figsize=(2.1 + 2 * side * aspect, rows * side + 0.5), dpi=110)
    FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()
    grid = figure.add_gridspec(
        rows, 2, left=2 / width, right=1 - 0.05 / width, top=1 - 0.45 / height, bottom=0.01, wspace=0.03, hspace=0.03
    )
    for row, (lesion, title) in enumerate(zip(lesions, titles, strict=True)):
        structures, features = find_structures(lesion.mask, lesion.lab), abcd_features(lesion.mask, lesion.lab)
        whole, marked = (figure.add_subplot(grid[row, column]) for column in (0, 1))
        image = lesion.image.copy()
        for area, colour in ((structures.structureless, "structureless"), (structures.network, "network")):
            image[area] = (0.55 * image[area] + 0.45 * np.array(to_rgb(STRUCTURE_COLOURS[colour])) * 255).astype(
                np.uint8
            )
        whole.imshow(lesion.image)
        if not lesion.mask.all():
            whole.contour(lesion.mask, levels=[0.5], colors="#00e5ff", linewidths=1.0)
        marked.imshow(image)
        spots = {"dots": (structures.dots, 3), "globules": (structures.globules, 6)}
        for name, (points, size) in spots.items():
            marked.plot(
                points[:, 1], points[:, 0], "o", markersize=size, fillstyle="none", color=STRUCTURE_COLOURS[name]
            )
        for streak in structures.streaks:
            marked.plot(streak[:, 1], streak[:, 0], "s", markersize=1, color=STRUCTURE_COLOURS["streaks"])
        for axes in (whole, marked):
            axes.set(xticks=[], yticks=[])
        scores = f"TDS {features['abcd_tds']:.2f}, D {features['abcd_structure_count']:.0f}"
        label = f"{_shorten(title)}\n{scores}"
        whole.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, parse_math=False)
        if row == 0:
            whole.set_title("lesion", fontsize=9)
            names = [f"{name} {colour}" for name, colour in STRUCTURE_COLOURS.items()]
            marked.set_title(f"{', '.join(names[:2])}\n{', '.join(names[2:])}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return path


def _mark(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    marked = image.copy()
    marked[mask] = (0, 229, 255)
    return marked


def _draw(axes: Axes, image: torch.Tensor, mask: torch.Tensor | None) -> None:
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    # An empty or full mask has no contour.
    if mask is not None and mask.min() < mask.max():
        axes.contour(mask.numpy(), levels=[0.5], colors="#00e5ff", linewidths=1.0)
    axes.set_xticks([])
    axes.set_yticks([])


def _shorten(title: str) -> str:
    if len(title) <= _TITLE_LENGTH:
        return title
    kept = _TITLE_LENGTH - 1
    return f"{title[: kept - kept // 2]}…{title[-(kept // 2) :]}"


def _check_arrays(
    images: NDArray[np.uint8], titles: Sequence[str], copies: int, masks: NDArray[np.generic] | None
) -> None:
    if images.dtype != np.uint8:
        raise TypeError(f"images is {images.dtype}; expected uint8 (N, H, W, 3), as in the store.")
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0 or copies < 1:
        raise ValueError(f"images has shape {images.shape}, copies is {copies}; expected (N, H, W, 3) and 1 or more.")
    if len(titles) != len(images):
        raise ValueError(f"titles has {len(titles)} entries for {len(images)} images; expected one title per image.")
    if masks is not None and masks.shape != images.shape[:3]:
        raise ValueError(f"masks has shape {masks.shape}; expected {images.shape[:3]} for images {images.shape}.")
