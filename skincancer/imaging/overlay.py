"""Mask outlines on images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgb

from skincancer.imaging.mask_operations import surface
from skincancer.imaging.types import Mask

TRUTH_COLOUR, PREDICTION_COLOUR = "#56b4e9", "#ece133"
# Pixels of the longer side per pixel of line width: lines are 2 px wide up to 800 px, and 15 px wide at 6000 px.
_PIXELS_PER_WIDTH = 400


def draw_overlay(image: npt.NDArray[np.uint8], truth: Mask | None, prediction: Mask) -> npt.NDArray[np.uint8]:
    """Return an image with the contours of truth and prediction.

    Args:
        image: RGB uint8 (H, W, 3), unchanged.
        truth: bool (H, W), or None if unknown.
        prediction: bool (H, W).

    Returns:
        uint8 (H, W, 3) with contours edged in black. An empty mask has no contour. The contour of a mask that reaches the edge of the image
        runs along the edge.

    Raises:
        ValueError: an array has another shape or dtype.
    """
    check_image(image, *(mask for mask in (truth, prediction) if mask is not None))
    overlay = image.copy()
    width = max(2, round(max(image.shape[:2]) / _PIXELS_PER_WIDTH))
    lines = [] if truth is None else [(surface(truth), 2 * width, TRUTH_COLOUR)]
    lines.append((surface(prediction), width, PREDICTION_COLOUR))
    # All dark edges are drawn first, so that they do not hide the other contour.
    for line, line_width, _ in lines:
        _stamp(overlay, line, line_width + 2 * (width // 2), "black")
    for line, line_width, colour in lines:
        _stamp(overlay, line, line_width, colour)
    return overlay


def _stamp(image: npt.NDArray[np.uint8], line: Mask, width: int, colour: str) -> None:
    """Paint a disc of diameter `width` (px) at every True pixel.

    Only pixels of the line are visited. scipy's binary_dilation visits all pixels, and takes minutes for an image of 24 million pixels.
    """
    offset = np.arange(width) - (width - 1) / 2
    down, right = np.nonzero(offset[:, None] ** 2 + offset**2 <= (width / 2) ** 2)
    # Discs may extend beyond the edge of the image.
    painted = np.zeros((line.shape[0] + 2 * width, line.shape[1] + 2 * width), dtype=bool)
    row, column = np.nonzero(line)
    centre = (row + width) * painted.shape[1] + column + width
    for step in ((down - width // 2) * painted.shape[1] + right - width // 2).tolist():
        painted.reshape(-1)[centre + step] = True
    image[painted[width:-width, width:-width]] = np.round(255 * np.array(to_rgb(colour)))


def check_image(image: npt.NDArray[np.uint8], *masks: Mask) -> None:
    """Check shapes and dtypes of an image and its masks."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    for mask in masks:
        if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
            raise ValueError(
                f"mask is {mask.dtype} {mask.shape}; expected bool {image.shape[:2]}, the size of the image"
            )
