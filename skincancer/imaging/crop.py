"""Crop boxes: the box of a lesion mask with a margin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from skincancer.imaging.decode import BadImage, read_truth
from skincancer.imaging.mask_operations import mask_extent, otsu_mask
from skincancer.imaging.types import Box, Mask

EMPTY = "empty"  # Replaces the name of the mask source if the mask contains no lesion.
FROM_FILES = ("truth", "auto")  # Mask sources that read files of true masks.
SMALLEST_SHARE = 1 / 8  # Shortest side of a crop, as a share of the shorter side of the image.


@dataclass(frozen=True)
class Crop:
    """Crop of each image to its lesion.

    Args:
        masks: mask source: truth, otsu, auto (truth, and otsu for images without a true mask), or the name of a segmenter.
        margin: margin on each side, as a share of the longer side of the mask's box.
    """

    masks: str
    margin: float


def crop_box(mask: Mask, margin: float) -> Box | None:
    """Return the box of a mask with a margin, None if empty.

    Args:
        mask: lesion mask, bool (H, W).
        margin: margin as in `widen_box`.
    """
    extent = mask_extent(mask)
    return widen_box(extent, (0, 0, mask.shape[1], mask.shape[0]), margin) if extent else None


def widen_box(extent: Box, frame: Box, margin: float) -> Box | None:
    """Return the square box of a lesion, None outside the frame.

    A square keeps the shape of the lesion. A square across an edge of the frame is moved inside, and a square longer than a side of
    the frame is cut to that side. The side is at least an eighth of the frame's shorter side, because an enlarged stray spot of a
    segmenter would show nothing.

    Args:
        extent: box of the lesion. Pixels outside the frame do not count.
        frame: visible part of the image, or the whole image.
        margin: margin on each side, as a share of the longer side of the extent.
    """
    ends = [(max(extent[side], frame[side]), min(extent[side + 2], frame[side + 2])) for side in (0, 1)]
    if any(high <= low for low, high in ends):
        return None
    room = [frame[2] - frame[0], frame[3] - frame[1]]
    side = max(round(max(high - low for low, high in ends) * (1 + 2 * margin)), round(min(room) * SMALLEST_SHARE))
    starts, lengths = [], []
    for (low, high), first, extents in zip(ends, frame, room, strict=False):
        length = min(side, extents)
        starts.append(first + min(max((low + high - 2 * first - length) // 2, 0), extents - length))
        lengths.append(length)
    return starts[0], starts[1], starts[0] + lengths[0], starts[1] + lengths[1]


def find_mask(
    original: Image.Image, cleaned: Image.Image, box: Box, mask: Path | Mask | None, source: str
) -> tuple[Mask, str]:
    """Return the lesion mask of a cleaned image, and its mask source.

    Args:
        box: box of the original that the cleaned image shows.
        mask: file of the true mask, or a segmenter's mask, of the original.
        source: mask source as in `Crop`.

    Raises:
        BadImage: the mask cannot be read, has another size than the original, or the segmenter predicted none.
    """
    if source == "auto":
        source = "otsu" if mask is None else "truth"
    if source == "otsu":
        return otsu_mask(cleaned), source
    if mask is None:
        raise BadImage("cannot be cleaned as the segmenter's images were, so it has no mask")
    whole = np.asarray(read_truth(mask, original)) > 0 if isinstance(mask, Path) else mask
    left, top, right, bottom = box
    return whole[top:bottom, left:right], source
