"""Texture of a lesion by scikit-image: grey-level co-occurrence, local binary patterns, oriented gradients. Masks are not empty."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.feature import graycomatrix, graycoprops, hog, local_binary_pattern

from skincancer.imaging.crop import crop_box

Mask = npt.NDArray[np.bool_]
Grey = npt.NDArray[np.uint8]

LEVELS = 32  # grey levels of the co-occurrence matrix, of 8 values each
DISTANCES = (1, 2, 4)  # px at the working size, along rows and columns; of diagonals both
ANGLES = tuple(number * math.pi / 4 for number in range(4))
PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
PATTERNS = ((8, 1), (16, 2))  # points and radius (px)
HOG_SIDE, HOG_CELLS, HOG_ORIENTATIONS = 64, 4, 8


def cooccurrence(levels: Grey, mask: Mask, distance: int, count: int) -> npt.NDArray[np.float64]:
    """Return the grey-level co-occurrence matrices of a lesion, of pairs of pixels that both are inside it.

    Haralick, Shanmugam and Dinstein, IEEE Trans SMC 3:610-621 (1973); symmetric, each angle's normalised by itself. A distance is
    theirs: the larger of those along rows and columns, so that the diagonal neighbours at 2 are (2, 2) away.

    Args:
        levels: uint8 (H, W), below `count`.
        mask: bool (H, W).
        distance: of the two pixels along rows or columns, or both, px.
        count: of grey levels.

    Returns:
        (count, count, 1, A), of the A angles of 0°, 45°, 90° and 135° in which there is a pair.
    """
    # what is outside gets a level of its own, whose pairs are dropped
    inside = np.where(mask, levels + 1, 0).astype(np.uint8)
    # scikit-image measures along the line and rounds: at 45° a distance of 2 would be (1, 1) once more
    lengths = (distance, distance * math.sqrt(2), distance, distance * math.sqrt(2))
    counts = [
        graycomatrix(inside, [length], [angle], levels=count + 1, symmetric=True)
        for length, angle in zip(lengths, ANGLES, strict=True)
    ]
    pairs = np.concatenate(counts, axis=-1)[1:, 1:].astype(np.float64)
    totals = pairs.sum(axis=(0, 1), keepdims=True)
    with_pairs = totals[0, 0, 0] > 0
    return pairs[..., with_pairs] / totals[..., with_pairs]


def glcm_features(
    grey: Grey, mask: Mask, distances: Sequence[int] = DISTANCES, count: int = LEVELS
) -> dict[str, float]:
    """Return the properties of the co-occurrence matrix at each distance, means over four angles; NaN where no pair is that far apart.

    Args:
        grey: uint8 (H, W).
        mask: bool (H, W).
        distances: px.
        count: of grey levels that the 256 values are brought to.
    """
    box = _box(mask)
    levels = (grey[box] // (256 // count)).astype(np.uint8)
    found: dict[str, float] = {}
    for distance in distances:
        matrices = cooccurrence(levels, mask[box], distance, count)
        for name in PROPERTIES:
            value = float(graycoprops(matrices, name).mean()) if matrices.shape[-1] else math.nan
            found[f"glcm_{name}_distance_{distance}"] = value
    return found


def lbp_features(grey: Grey, mask: Mask) -> dict[str, float]:
    """Return histograms of uniform, rotation-invariant local binary patterns of the lesion's pixels, as shares.

    Ojala, Pietikäinen and Mäenpää, IEEE Trans PAMI 24:971-987 (2002): 8 points at 1 px and 16 points at 2 px. The last bin of each
    holds what is not uniform.

    Args:
        grey: uint8 (H, W).
        mask: bool (H, W).
    """
    found: dict[str, float] = {}
    margin = max(radius for _, radius in PATTERNS) + 1
    # beyond the image's edge lies what is at it: scikit-image would take black
    grey, mask = np.pad(grey, margin, mode="edge"), np.pad(mask, margin)
    box = _box(mask, margin)
    for points, radius in PATTERNS:
        patterns = local_binary_pattern(grey[box], points, radius, method="uniform")[mask[box]].astype(np.int64)
        shares = np.bincount(patterns, minlength=points + 2) / len(patterns)
        found |= {f"lbp_radius_{radius}_pattern_{number}": float(share) for number, share in enumerate(shares)}
    return found


def _box(mask: Mask, margin: int = 0) -> tuple[slice, ...]:
    """Return the box of a mask, with a margin (px) where the image has it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return tuple(slice(max(span[0] - margin, 0), span[-1] + 1 + margin) for span in (rows, columns))


def hog_features(grey: Grey, mask: Mask) -> dict[str, float]:
    """Return the histogram of oriented gradients of the lesion's box (widened to a square, as far as the image goes), at 64 × 64 px.

    Dalal and Triggs, CVPR 2005: 4 × 4 cells of 8 orientations, normalised over the whole box.

    Args:
        grey: uint8 (H, W).
        mask: bool (H, W).
    """
    box = crop_box(mask, margin=0.0)
    assert box is not None, "the mask is not empty"
    patch = np.asarray(Image.fromarray(grey).crop(box).resize((HOG_SIDE, HOG_SIDE), Image.Resampling.BILINEAR))
    cell = HOG_SIDE // HOG_CELLS
    values = hog(
        patch, HOG_ORIENTATIONS, pixels_per_cell=(cell, cell), cells_per_block=(HOG_CELLS, HOG_CELLS), block_norm="L2-Hys",
        feature_vector=False,
    ).reshape(HOG_CELLS, HOG_CELLS, HOG_ORIENTATIONS)  # fmt: skip
    return {
        f"hog_row_{row}_column_{column}_orientation_{orientation}": float(value)
        for (row, column, orientation), value in np.ndenumerate(values)
    }
