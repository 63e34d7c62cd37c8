"""Resize images to the square input of a network, and back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from skincancer.imaging.types import Box


class Mapping(NamedTuple):
    """Box of the original, and the matching box of the square."""

    source: Box
    target: Box


def mapping(width: int, height: int, size: int, resize: str) -> Mapping:
    """Return the boxes (px) by which an image is resized to a square.

    Args:
        resize: stretch (whole image, aspect ratio lost), pad (whole image, black bars) or crop (central square).

    Raises:
        ValueError: `resize` has another value.
    """
    whole, square = (0, 0, width, height), (0, 0, size, size)
    if resize == "stretch":
        return Mapping(whole, square)
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return Mapping((left, top, left + side, top + side), square)
    if resize == "pad":
        scale = size / max(width, height)
        inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (size - inner_width) // 2, (size - inner_height) // 2
        return Mapping(whole, (left, top, left + inner_width, top + inner_height))
    raise ValueError(f"resize is {resize!r}; expected stretch, pad or crop")


def to_square(image: Image.Image, size: int, resize: str) -> Image.Image:
    """Resize an image to size × size px.

    RGB is resized by antialiased bilinear interpolation, every other mode (masks) by the nearest pixel.
    """
    source, target = mapping(image.width, image.height, size, resize)
    method = Image.Resampling.BILINEAR if image.mode == "RGB" else Image.Resampling.NEAREST
    inner = image.resize((target[2] - target[0], target[3] - target[1]), method, box=source)
    if inner.size == (size, size):
        return inner
    square = Image.new(image.mode, (size, size))
    square.paste(inner, target[:2])
    return square


def from_square(values: npt.NDArray[np.float32], width: int, height: int, resize: str) -> npt.NDArray[np.float32]:
    """Resize values of a square to the size of the original.

    Values are float32 (S, S), the result is float32 (height, width). Interpolation is bilinear. Outside the central square of
    `resize: crop`, the result is 0.
    """
    source, target = mapping(width, height, values.shape[0], resize)
    inner = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    box = (source[2] - source[0], source[3] - source[1])
    # Crop first, because the filter of Pillow would read the black bars beyond `box`.
    back = np.asarray(inner.crop(target).resize(box, Image.Resampling.BILINEAR), dtype=np.float32)
    original = np.zeros((height, width), dtype=np.float32)
    original[source[1] : source[3], source[0] : source[2]] = back
    return original
