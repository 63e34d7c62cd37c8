"""Texture features: grey-level co-occurrence, local binary patterns, oriented gradients.

`mask` is bool (H, W) and not empty, `grey` is uint8 (H, W).
"""

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

# Grey levels of the co-occurrence matrix, of 8 values each.
LEVELS = 32
# Distances along rows, columns or both (diagonals), px at the working size.
DISTANCES = (1, 2, 4)
ANGLES = tuple(number * math.pi / 4 for number in range(4))
PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
# Number of points and radius (px) of the local binary patterns.
PATTERNS = ((8, 1), (16, 2))
HOG_SIDE, HOG_CELLS, HOG_ORIENTATIONS = 64, 4, 8


def cooccurrence(levels: Grey, mask: Mask, distance: int, count: int) -> npt.NDArray[np.float64]:
    """Compute the grey-level co-occurrence matrices of pixel pairs inside a lesion.

    Haralick, Shanmugam and Dinstein, IEEE Trans SMC 3:610-621 (1973). The matrices are symmetric, and the matrix of each angle sums to 1.
    As in the paper, the distance is the larger of the distances along rows and columns: at distance 2, diagonal pairs differ by (2, 2).

    Args:
        levels: grey levels uint8 (H, W), below `count`.
        mask: bool (H, W).
        distance: distance of the two pixels, px.
        count: number of grey levels.

    Returns:
        (count, count, 1, A), for the A of the angles 0°, 45°, 90° and 135° with at least one pair.
    """
    # Pixels outside get a separate level, and their pairs are dropped below.
    inside = np.where(mask, levels + 1, 0).astype(np.uint8)
    # scikit-image measures the Euclidean distance and rounds, so at 45° a distance of 2 would be (1, 1) again.
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
    """Compute the properties of the co-occurrence matrix at each distance.

    The properties are means over four angles, and NaN without pairs at a distance.

    Args:
        grey: uint8 (H, W).
        mask: bool (H, W).
        distances: distances, px.
        count: number of grey levels after quantisation.
    """
    box = _box(mask)
    levels = (grey[box] // (256 // count)).astype(np.uint8)
    features: dict[str, float] = {}
    for distance in distances:
        matrices = cooccurrence(levels, mask[box], distance, count)
        for name in PROPERTIES:
            value = float(graycoprops(matrices, name).mean()) if matrices.shape[-1] else math.nan
            features[f"glcm_{name}_distance_{distance}"] = value
    return features


def lbp_features(grey: Grey, mask: Mask) -> dict[str, float]:
    """Compute histograms of uniform, rotation-invariant local binary patterns, as shares.

    Ojala, Pietikäinen and Mäenpää, IEEE Trans PAMI 24:971-987 (2002), with 8 points at 1 px and 16 points at 2 px. The last bin of each
    histogram contains all patterns that are not uniform.
    """
    features: dict[str, float] = {}
    margin = max(radius for _, radius in PATTERNS) + 1
    # The edge pixels are repeated beyond the image, where scikit-image would assume black.
    grey, mask = np.pad(grey, margin, mode="edge"), np.pad(mask, margin)
    box = _box(mask, margin)
    for points, radius in PATTERNS:
        patterns = local_binary_pattern(grey[box], points, radius, method="uniform")[mask[box]].astype(np.int64)
        shares = np.bincount(patterns, minlength=points + 2) / len(patterns)
        features |= {f"lbp_radius_{radius}_pattern_{number}": float(share) for number, share in enumerate(shares)}
    return features


def _box(mask: Mask, margin: int = 0) -> tuple[slice, ...]:
    """Return the bounding box of a mask, with a margin (px)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return tuple(slice(max(span[0] - margin, 0), span[-1] + 1 + margin) for span in (rows, columns))


def hog_features(grey: Grey, mask: Mask) -> dict[str, float]:
    """Compute the histogram of oriented gradients at 64 × 64 px.

    Dalal and Triggs, CVPR 2005: 4 × 4 cells of 8 orientations, normalised over the bounding box, which is widened to a square within the
    image.
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
