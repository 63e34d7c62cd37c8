"""Mask operations: post-processing, extent, Otsu masks, surfaces."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from skincancer.imaging.types import Box, Mask

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def clean_mask(mask: Mask, largest: bool, fill: bool) -> Mask:
    """Keep the largest component of a mask, fill its holes, or both, in this order; an empty mask stays empty.

    Args:
        mask: bool (H, W); it is not changed.
        largest: keep only the component with the most pixels, holes not counted; pixels that touch at a corner are one
            component. Of equally large ones the first is kept, by row and then by column of its first pixel.
        fill: fill holes: background that no path of side-by-side pixels connects with the edge of the image.

    Returns:
        bool (H, W), a new array.

    Raises:
        ValueError: if the mask is not bool (H, W).
    """
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"mask must be bool (H, W), given {mask.dtype} {mask.shape}; threshold probabilities first")
    cleaned = mask.copy()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return cleaned
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # no hole lies outside it
    if largest:
        cleaned[box] = _largest_component(cleaned[box])
    if fill:
        cleaned[box] = ndimage.binary_fill_holes(cleaned[box])
    return cleaned


def _largest_component(mask: Mask) -> Mask:
    component, count = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)
    if count == 1:
        return mask
    size = np.bincount(component.ravel())
    size[0] = 0  # the background
    # of the pixels in components of that size, the first in scan order: scipy promises no order of the numbers
    first = component[(size == size.max())[component]][0]
    kept: Mask = component == first
    return kept


OTSU_SIDE = 512  # px: a threshold and a box need no more, and photographs have 6,000


def mask_extent(mask: Mask) -> Box | None:
    """Return the smallest box that holds a mask, bool (H, W); None if it is empty."""
    columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def otsu_mask(image: Image.Image) -> Mask:
    """Guess the lesion as what is dark: Otsu's threshold (1979) on the smoothed grey image, its largest component, holes filled.

    Components that touch a corner are left out, since a dermoscope's frame is dark there, unless there is nothing else.

    Args:
        image: RGB.

    Returns:
        bool (H, W); empty for an image of one colour.
    """
    small = image.convert("L")
    small.thumbnail((OTSU_SIDE, OTSU_SIDE))
    grey = ndimage.gaussian_filter(np.asarray(small, dtype=np.float32), sigma=min(small.size) / 100)
    if grey.max() - grey.min() < 1:
        return np.zeros((image.height, image.width), dtype=bool)
    dark = grey < threshold_otsu(grey)
    component, _ = ndimage.label(dark)
    inside = dark & ~np.isin(component, component[[0, 0, -1, -1], [0, -1, 0, -1]])
    mask = clean_mask(inside if inside.any() else dark, largest=True, fill=True)
    return np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))


def surface(mask: Mask) -> Mask:
    """Return the pixels of a mask (H, W) that have one of their four neighbours outside it or outside the image."""
    inner = mask.copy()
    inner[0], inner[-1], inner[:, 0], inner[:, -1] = False, False, False, False
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner
