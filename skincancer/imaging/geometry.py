"""How an image becomes the square that a network takes, and the way back: the only place that knows either."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image


class Mapping(NamedTuple):
    """Which box of the original (left, top, right, bottom; px) lands on which box of the square."""

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]


def mapping(width: int, height: int, size: int, resize: str) -> Mapping:
    """Return how an image of width × height maps onto a square of `size`.

    Args:
        width: of the original, px.
        height: of the original, px.
        size: side of the square, px.
        resize: stretch (all of it, aspect ratio lost), pad (all of it, black bars), crop (the centre square).

    Raises:
        ValueError: another `resize`.
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
    raise ValueError(f"resize is {resize!r}; allowed: stretch, pad, crop")


def to_square(image: Image.Image, size: int, resize: str) -> Image.Image:
    """Bring an image (any mode) to size × size: RGB with antialiased bilinear filtering, anything else (masks) nearest."""
    source, target = mapping(image.width, image.height, size, resize)
    method = Image.Resampling.BILINEAR if image.mode == "RGB" else Image.Resampling.NEAREST
    inner = image.resize((target[2] - target[0], target[3] - target[1]), method, box=source)
    if inner.size == (size, size):
        return inner
    square = Image.new(image.mode, (size, size))
    square.paste(inner, target[:2])
    return square


def from_square(values: npt.NDArray[np.float32], width: int, height: int, resize: str) -> npt.NDArray[np.float32]:
    """Bring values on the square back to the original: bilinear; 0 where `crop` never saw the image.

    Args:
        values: float32 (S, S), such as probabilities of a mask.
        width: of the original, px.
        height: of the original, px.
        resize: as it was on the way in.

    Returns:
        float32 (height, width).
    """
    source, target = mapping(width, height, values.shape[0], resize)
    inner = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    box = (source[2] - source[0], source[3] - source[1])
    # cropped first: Pillow's filter would look beyond `box`, into the bars
    back = np.asarray(inner.crop(target).resize(box, Image.Resampling.BILINEAR), dtype=np.float32)
    original = np.zeros((height, width), dtype=np.float32)
    original[source[1] : source[3], source[0] : source[2]] = back
    return original
