"""Mask operations: post-processing, extent, Otsu masks, surfaces."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from skincancer.imaging.types import Box, Mask

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


def clean_mask(mask: Mask, largest: bool, fill: bool) -> Mask:
    """Keep the largest component of a mask and then fill its holes.

    Args:
        mask: bool (H, W), unchanged.
        largest: keep only the component with the most pixels (8-connected, holes not counted). Of equally large components the first is
            kept, by row and then by column of its first pixel.
        fill: fill holes, which are background components (4-connected) that do not touch the edge of the image.

    Returns:
        New mask, bool (H, W). An empty mask stays empty.

    Raises:
        ValueError: the mask is not bool (H, W).
    """
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}; expected bool (H, W). Threshold probabilities first.")
    cleaned = mask.copy()
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return cleaned
    # All holes are inside the bounding box.
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
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
    # Label 0 is the background.
    size[0] = 0
    # The first pixel in scan order decides, because scipy does not guarantee an order of the labels.
    first = component[(size == size.max())[component]][0]
    kept: Mask = component == first
    return kept


# Longer side for Otsu's threshold, px. Full size, up to 6,000 px, would not improve the threshold or the crop box.
OTSU_SIDE = 512


def mask_extent(mask: Mask) -> Box | None:
    """Return the bounding box of a mask (H, W), None if empty."""
    columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def otsu_mask(image: Image.Image) -> Mask:
    """Estimate the lesion mask of an RGB image with Otsu's threshold (1979).

    The mask is the largest dark component of the smoothed grey image, with holes filled. Components that touch a corner are left out,
    because the frame of a dermoscope is dark there, unless all components touch a corner.

    Returns:
        bool (H, W), empty for an image of one colour.
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
    """Return the inner boundary pixels of a mask, bool (H, W).

    One of the four neighbours of a boundary pixel is outside the mask or outside the image.
    """
    inner = mask.copy()
    inner[0], inner[-1], inner[:, 0], inner[:, -1] = False, False, False, False
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner
