"""Draw mask outlines over an image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb

from skincancer.imaging.mask_operations import surface
from skincancer.imaging.types import Mask

TRUTH_COLOUR, PREDICTION_COLOUR = "#56b4e9", "#ece133"  # of the palette of the figures
_PIXELS_PER_WIDTH = 400  # of the longer side: a line 2 px wide up to 800, 15 px at 6000


def draw_overlay(image: npt.NDArray[np.uint8], truth: Mask | None, prediction: Mask) -> npt.NDArray[np.uint8]:
    """Draw the contours into an image at its own size, the prediction 2 px wide, or more in images longer than 800 px.

    Args:
        image: uint8 (H, W, 3), RGB; it is not changed.
        truth: bool (H, W), or None where it is unknown.
        prediction: bool (H, W).

    Returns:
        uint8 (H, W, 3), the contours edged in black. An empty mask has no contour; that of one which
        reaches the edge of the image runs along the edge.

    Raises:
        ValueError: if shapes or dtypes are not as above.
    """
    check_image(image, *(mask for mask in (truth, prediction) if mask is not None))
    drawn = image.copy()
    width = max(2, round(max(image.shape[:2]) / _PIXELS_PER_WIDTH))
    lines = [] if truth is None else [(surface(truth), 2 * width, TRUTH_COLOUR)]
    lines.append((surface(prediction), width, PREDICTION_COLOUR))
    for line, line_width, _ in lines:  # all dark edges first: they must not hide the other contour
        _stamp(drawn, line, line_width + 2 * (width // 2), "black")
    for line, line_width, colour in lines:
        _stamp(drawn, line, line_width, colour)
    return drawn


def _stamp(image: npt.NDArray[np.uint8], line: Mask, width: int, colour: str) -> None:
    """Paint a disc of diameter `width` (px) at every True pixel of `line`, in place.

    By the pixels of the line alone: scipy's binary_dilation visits all, and takes minutes on a photograph of 24 million.
    """
    offset = np.arange(width) - (width - 1) / 2
    down, right = np.nonzero(offset[:, None] ** 2 + offset**2 <= (width / 2) ** 2)
    painted = np.zeros(
        (line.shape[0] + 2 * width, line.shape[1] + 2 * width), dtype=bool
    )  # discs may reach over the edge
    row, column = np.nonzero(line)
    centre = (row + width) * painted.shape[1] + column + width
    for step in ((down - width // 2) * painted.shape[1] + right - width // 2).tolist():
        painted.reshape(-1)[centre + step] = True
    image[painted[width:-width, width:-width]] = np.round(255 * np.array(to_rgb(colour)))


def check_image(image: npt.NDArray[np.uint8], *masks: Mask) -> None:
    """Check shapes and types of an image and its masks."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image must be uint8 (H, W, 3), given {image.dtype} {image.shape}")
    for mask in masks:
        if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
            raise ValueError(f"masks of this image must be bool {image.shape[:2]}, given {mask.dtype} {mask.shape}")
