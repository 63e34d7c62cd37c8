"""What may be done to a predicted mask after the threshold. Masks are bool (H, W), True in the lesion."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]

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
