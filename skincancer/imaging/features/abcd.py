"""ABCD rule of dermoscopy: asymmetry, border, diameter and total dermoscopy score.

Stolz W. et al., ABCD rule of dermatoscopy, Eur J Dermatol 4:521-527 (1994); Nachbar F. et al., J Am Acad Dermatol 30:551-559 (1994). The
rule is a visual assessment by a physician; the docstrings describe how the functions approximate the assessment. Colours are in
`colour`, differential structures in `structures`. `mask` is bool (H, W) and not empty, `lab` is the image in CIELAB (H, W, 3).
Unmeasurable values are NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import find_contours

from skincancer.imaging.features.colour import colour_features
from skincancer.imaging.features.structures import structure_features

Mask = npt.NDArray[np.bool_]
Lab = npt.NDArray[np.float64]

# Thresholds of asymmetry per axis for the score A, by our choice, since Stolz leaves the assessment to the physician. A synthetic symmetric
# lesion stays below both at the working size, and both divide real lesions into two groups.
# Share of the lesion with a mirror image outside the lesion.
ASYMMETRIC_SHAPE = 0.1
# Mean colour difference to the mirror image, CIE 1976.
ASYMMETRIC_COLOUR = 8.0
# Number of box sizes of the fractal dimension.
BOX_SIZES = 8
# Number of border segments.
SEGMENTS = 8
# Width of a strip along the border, as a share of the diameter of a circle with the area of the lesion.
BAND = 0.04
# Share of the colour change that lies in the two strips next to the border. A uniform gradient over all strips has 1/6.
ABRUPT = 1 / 3
# Colour difference of lesion and skin, CIE 1976, below which the border is invisible.
VISIBLE = 5.0
# Number of directions of the search for the largest diameter.
DIRECTIONS = 180


class Axes(NamedTuple):
    """Centre (row, column) and unit vectors (row, column) of the principal axes."""

    centre: npt.NDArray[np.float64]
    major: npt.NDArray[np.float64]
    minor: npt.NDArray[np.float64]


def principal_axes(mask: Mask) -> Axes:
    """Compute the principal axes of a mask, bool (H, W).

    The axes are eigenvectors of the covariance of the pixel coordinates. A shape without a longest direction, such as a circle or a square,
    has the axes of the image.
    """
    points = np.argwhere(mask).astype(np.float64)
    centre = points.mean(axis=0)
    covariance = np.cov(points.T, bias=True) if len(points) > 1 else np.zeros((2, 2))
    values, vectors = np.linalg.eigh(covariance)
    if values[1] - values[0] <= 1e-6 * max(values[1], 1e-12):
        return Axes(centre, np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    return Axes(centre, vectors[:, 1], vectors[:, 0])


def asymmetry(
    mask: Mask, lab: Lab, axis: npt.NDArray[np.float64], centre: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Compute the asymmetry of shape and colour about an axis.

    Args:
        mask: bool (H, W).
        lab: CIELAB (H, W, 3).
        axis: unit vector (row, column).
        centre: point on the axis (row, column).

    Returns:
        Shape: share of the lesion with a mirror image outside the lesion, 0 to 1. Colour: mean difference (CIE 1976) between pixels and
        their mirror images inside the lesion, NaN without any.
    """
    points = np.argwhere(mask)
    away = points - centre
    mirrored = np.rint(centre + 2 * (away @ axis)[:, None] * axis - away).astype(np.int64)
    inside: Mask = np.asarray(((mirrored >= 0) & (mirrored < mask.shape)).all(axis=1))
    inside[inside] = mask[tuple(mirrored[inside].T)]
    difference = np.linalg.norm(lab[tuple(points[inside].T)] - lab[tuple(mirrored[inside].T)], axis=1)
    return float(1 - inside.mean()), float(difference.mean()) if inside.any() else math.nan


def compactness(mask: Mask) -> float:
    """Return perimeter² / (4 π area), 1 for a circle.

    Irregular borders have larger values, and masks of a few pixels without an outline NaN. The perimeter is the length of the outline of
    the smoothed mask, because a perimeter counted in pixels depends on the rotation of the lesion.
    """
    smooth = ndimage.gaussian_filter(np.pad(mask, 4).astype(np.float64), 1.0)
    perimeter = sum(float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum()) for line in find_contours(smooth, 0.5))
    return float(perimeter**2 / (4 * math.pi * mask.sum())) if perimeter else math.nan


def fractal_dimension(mask: Mask) -> float:
    """Return the box-counting dimension of the border, about 1 if smooth.

    This estimate ranges from 0.93 to 1.02 for smooth lines, and is larger for irregular borders. Box sides range from 2 px to a quarter of
    the extent of the lesion. The counts are means over grids with offsets of a quarter of a box, since the effect of the offset would
    exceed the effect of the border. NaN for lesions below 16 px.
    """
    border = np.argwhere(_border(mask))
    border -= border.min(axis=0)
    extent = int(border.max()) + 1
    if extent < 16:
        return math.nan
    sizes = np.unique(np.rint(np.geomspace(2, extent / 4, BOX_SIZES)).astype(np.int64))
    counts = []
    for size in sizes:
        starts = np.unique(np.arange(4) * size // 4)
        rows, columns = ((border[:, axis, None] + starts) // size for axis in (0, 1))
        boxes = rows[:, :, None] * (extent + 1) + columns[:, None, :]  # (points, starts, starts)
        counts.append(np.mean([len(np.unique(grid)) for grid in boxes.reshape(len(border), -1).T]))
    return float(-np.polyfit(np.log(sizes), np.log(counts), 1)[0])


def _border(mask: Mask) -> Mask:
    """Return the pixels of a mask with one of four neighbours outside.

    Pixels beyond the image are outside.
    """
    return mask & ~ndimage.binary_erosion(np.pad(mask, 1))[1:-1, 1:-1]


def abruptness(mask: Mask, lab: Lab, axes: Axes) -> npt.NDArray[np.float64]:
    """Compute the abruptness of the border in eight segments of 45°.

    Stolz scores segments with a sharp cut-off of the pigment pattern. The abruptness is the colour difference of the two strips next to the
    border, divided by the colour difference of lesion and skin further away (two to four strip widths), at most 1. A sharp edge has 1. A
    long gradient, and a border between similar colours, are near 0.

    Returns:
        (8,), counted from the major axis. NaN for a segment without one of the strips: beyond the edge of the image, or in a narrow lesion.
    """
    width = max(1.5, BAND * math.sqrt(4 * mask.sum() / math.pi))
    # The edge of the image is no border of the lesion.
    distance = np.where(mask, -_distance(mask), _distance(~mask))
    rows, columns = np.indices(mask.shape)
    away = np.stack([rows - axes.centre[0], columns - axes.centre[1]], axis=-1)
    angle = np.arctan2(away @ axes.minor, away @ axes.major)
    segment = (np.floor(angle / (2 * math.pi / SEGMENTS)).astype(np.int64)) % SEGMENTS
    strips = {
        "in": (-width, 0), "out": (0, width), "deep": (-4 * width, -2 * width), "far": (2 * width, 4 * width),
    }  # fmt: skip
    means = {
        name: _segment_means(lab, segment, (distance > low) & (distance <= high))
        for name, (low, high) in strips.items()
    }
    whole = np.linalg.norm(means["deep"] - means["far"], axis=1)
    near = np.linalg.norm(means["in"] - means["out"], axis=1)
    ratio = np.where(whole >= VISIBLE, np.minimum(near / np.maximum(whole, VISIBLE), 1.0), 0.0)
    return np.where(np.isfinite(whole + near), ratio, np.nan)


def _distance(mask: Mask) -> npt.NDArray[np.float64]:
    """Return the distance of each True pixel to the border, px.

    The border is half a pixel before the nearest False pixel. Without False pixels the distance is inf.
    """
    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(mask)) - 0.5


def _segment_means(lab: Lab, segment: npt.NDArray[np.int64], where: Mask) -> npt.NDArray[np.float64]:
    """Return the mean colour of each segment, (8, 3).

    Only pixels in the mask `where` (H, W) count. NaN for segments without pixels.
    """
    pixels, numbers = lab[where], segment[where]
    counts = np.bincount(numbers, minlength=SEGMENTS).astype(np.float64)
    sums = np.stack([np.bincount(numbers, pixels[:, channel], SEGMENTS) for channel in range(3)], axis=1)
    return np.divide(sums, counts[:, None], out=np.full((SEGMENTS, 3), np.nan), where=counts[:, None] > 0)


def largest_diameter(mask: Mask) -> float:
    """Return the maximal Feret diameter of a mask, px."""
    points = np.argwhere(_border(mask))
    angle = np.arange(DIRECTIONS) * math.pi / DIRECTIONS
    along = points @ np.stack([np.sin(angle), np.cos(angle)])
    return float(np.ptp(along, axis=0).max() + 1)


def total_dermoscopy_score(a: float, b: float, c: float, d: float = 0.0) -> float:
    """Compute the total dermoscopy score (Nachbar et al. 1994).

    The score is 1.3 A + 0.1 B + 0.5 C + 0.5 D.

    Args:
        a: number of axes with asymmetry, 0 to 2.
        b: number of segments with an abrupt border, 0 to 8.
        c: number of colours, 1 to 6.
        d: number of differential structures, 1 to 5. With 0 (left out) the cut-offs of the rule (4.75 and 5.45) do not apply.
    """
    return 1.3 * a + 0.1 * b + 0.5 * c + 0.5 * d


def abcd_features(mask: Mask, lab: Lab, scale: float = 1.0, mm_per_px: float | None = None) -> dict[str, float]:
    """Compute the features of the ABCD rule.

    A: asymmetry of shape and of smoothed colour about each principal axis; the score is the number of axes with a value above its
    threshold. B: compactness, fractal dimension, mean abruptness, and number of abrupt segments among the measurable ones, scaled to eight.
    C: `colour.colour_features`. D of the clinical rule is the diameter, D of the dermoscopic rule is `structures.structure_features`, an
    estimate that has not been validated with annotated structures. Therefore there are two scores: `abcd_tds`, 1 to 8.9, with the
    cut-offs of the rule (which assume the D of a physician), and `abcd_tds_without_d`, 0.5 to 6.4, without cut-offs.

    Args:
        mask: bool (H, W), not empty.
        lab: CIELAB (H, W, 3).
        scale: pixels of the image per pixel of the original, for the diameter in pixels of the original.
        mm_per_px: size of a pixel of the original, mm; None makes the diameter in mm NaN.
    """
    axes = principal_axes(mask)
    # Hair and noise are asymmetric in any lesion, so the colour is smoothed.
    blur = min(mask.shape) / 100
    smooth = np.stack([ndimage.gaussian_filter(lab[..., channel], blur) for channel in range(3)], axis=-1)
    features: dict[str, float] = {}
    score = 0
    for name, axis in (("major", axes.major), ("minor", axes.minor)):
        shape, colour = asymmetry(mask, smooth, axis, axes.centre)
        features |= {f"abcd_asymmetry_shape_{name}": shape, f"abcd_asymmetry_colour_{name}": colour}
        score += shape > ASYMMETRIC_SHAPE or colour > ASYMMETRIC_COLOUR
    segments = abruptness(mask, lab, axes)
    measured = segments[np.isfinite(segments)]
    abrupt = SEGMENTS * float((measured >= ABRUPT).mean()) if len(measured) else math.nan
    diameter = largest_diameter(mask)
    colours, structures = colour_features(mask, lab), structure_features(mask, lab)
    count, present = colours["abcd_colour_count"], structures["abcd_structure_count"]
    return features | {
        "abcd_asymmetry_score": score,
        "abcd_border_compactness": compactness(mask),
        "abcd_border_fractal_dimension": fractal_dimension(mask),
        "abcd_border_abruptness": float(measured.mean()) if len(measured) else math.nan,
        "abcd_border_abrupt_segments": abrupt,
        **colours,
        **structures,
        "abcd_diameter_px": diameter / scale,
        "abcd_diameter_mm": math.nan if mm_per_px is None else diameter / scale * mm_per_px,
        "abcd_diameter_by_longer_side": diameter / max(mask.shape),
        "abcd_tds": total_dermoscopy_score(score, abrupt, count, present),
        "abcd_tds_without_d": total_dermoscopy_score(score, abrupt, count),
    }
