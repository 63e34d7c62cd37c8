"""The ABCD rule of dermoscopy from an image and the lesion's mask: asymmetry, border, diameter, and the total dermoscopy score.

Stolz W. et al., ABCD rule of dermatoscopy, Eur J Dermatol 4:521-527 (1994); Nachbar F. et al., J Am Acad Dermatol 30:551-559
(1994). Its letters are judged by a physician's eye; every function says how it computes what the eye would judge. Colours are in
`colour`, differential structures in `structures`. Every function takes a mask that is not empty; what it cannot measure is NaN.
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

# of the score A (0 to 2 axes), by our choice: a drawn symmetrical lesion stays below both at the working size, and on real lesions
# each splits the images (Stolz leaves the judgement to the eye)
ASYMMETRIC_SHAPE = 0.1  # share of the lesion whose mirror image lies outside it
ASYMMETRIC_COLOUR = 8.0  # mean colour difference to the mirror image, CIE 1976
BOX_SIZES = 8  # of the fractal dimension
SEGMENTS = 8
BAND = 0.04  # width of a strip along the border, as a share of the diameter of a circle of the lesion's area
# share of the colour change across the border that the strips beside it show; an even gradient over all strips has 1/6
ABRUPT = 1 / 3
VISIBLE = 5.0  # colour difference of lesion and skin, CIE 1976, below which there is no border to be seen
DIRECTIONS = 180  # that a diameter is looked for in


class Axes(NamedTuple):
    """Centre (row, column) of a mask, and the unit vectors (row, column) of its major and minor axis."""

    centre: npt.NDArray[np.float64]
    major: npt.NDArray[np.float64]
    minor: npt.NDArray[np.float64]


def principal_axes(mask: Mask) -> Axes:
    """Return the principal axes of a mask, bool (H, W): eigenvectors of the covariance of its pixels' coordinates.

    A shape without a longest direction, such as a circle or a square, takes the image's axes.
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
    """Compare a lesion with its mirror image about an axis.

    Args:
        mask: bool (H, W).
        lab: CIELAB (H, W, 3).
        axis: unit vector (row, column).
        centre: a point of the axis (row, column).

    Returns:
        Of the shape: the share of the lesion whose mirror image lies outside it, 0 to 1. Of the colour: the mean difference (CIE
        1976) of pixels to their mirror images inside the lesion; NaN where there is none.
    """
    points = np.argwhere(mask)
    away = points - centre
    mirrored = np.rint(centre + 2 * (away @ axis)[:, None] * axis - away).astype(np.int64)
    there: Mask = np.asarray(((mirrored >= 0) & (mirrored < mask.shape)).all(axis=1))
    there[there] = mask[tuple(mirrored[there].T)]
    difference = np.linalg.norm(lab[tuple(points[there].T)] - lab[tuple(mirrored[there].T)], axis=1)
    return float(1 - there.mean()), float(difference.mean()) if there.any() else math.nan


def compactness(mask: Mask) -> float:
    """Return perimeter² / (4 π area): 1 of a circle, more the more irregular the border is; NaN of a few pixels without any outline.

    The perimeter is the length of the smoothed mask's outline: one counted along pixels depends on how the lesion is turned.
    """
    smooth = ndimage.gaussian_filter(np.pad(mask, 4).astype(np.float64), 1.0)
    perimeter = sum(float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum()) for line in find_contours(smooth, 0.5))
    return float(perimeter**2 / (4 * math.pi * mask.sum())) if perimeter else math.nan


def fractal_dimension(mask: Mask) -> float:
    """Return the box-counting dimension of a mask's border: about 1 of a smooth line, more of a ragged one.

    As it is estimated here smooth lines have 0.93 to 1.02. Boxes have sides from 2 px to a quarter of the lesion's extent; the counts are
    means over grids that begin at each quarter of a box, as where a grid begins would weigh more than how ragged the border is. NaN of
    lesions of less than 16 px.
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
        counts.append(np.mean([len(np.unique(one)) for one in boxes.reshape(len(border), -1).T]))
    return float(-np.polyfit(np.log(sizes), np.log(counts), 1)[0])


def _border(mask: Mask) -> Mask:
    """Return the pixels of a mask that have a neighbour, by a side, outside it; beyond the image is outside."""
    return mask & ~ndimage.binary_erosion(np.pad(mask, 1))[1:-1, 1:-1]


def abruptness(mask: Mask, lab: Lab, axes: Axes) -> npt.NDArray[np.float64]:
    """Return how abruptly the lesion ends in each of eight segments of 45° about its centre, counted from its major axis.

    Stolz scores a segment in which the pigment pattern is cut off sharply. Here it is the colour difference of the strips on both
    sides of the border, as a share of that between lesion and skin further away from it (two to four widths of a strip), at most 1: a
    sharp edge has 1, a long gradient near 0, and so has a border where lesion and skin look alike.

    Returns:
        (8,); NaN of a segment in which a strip is missing: beyond the image's edge, or where the lesion is too narrow.
    """
    width = max(1.5, BAND * math.sqrt(4 * mask.sum() / math.pi))
    # the frame ends what is known; it is no border of the lesion
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
    found = np.where(whole >= VISIBLE, np.minimum(near / np.maximum(whole, VISIBLE), 1.0), 0.0)
    return np.where(np.isfinite(whole + near), found, np.nan)


def _distance(mask: Mask) -> npt.NDArray[np.float64]:
    """Return the distance of each True pixel to the nearest False one less half a pixel, so that 0 is the line between; inf without any."""
    if mask.all():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(mask)) - 0.5


def _segment_means(lab: Lab, segment: npt.NDArray[np.int64], where: Mask) -> npt.NDArray[np.float64]:
    """Return the mean colour of each segment (8, 3) over the pixels `where`; NaN of one without any."""
    pixels, numbers = lab[where], segment[where]
    counts = np.bincount(numbers, minlength=SEGMENTS).astype(np.float64)
    sums = np.stack([np.bincount(numbers, pixels[:, channel], SEGMENTS) for channel in range(3)], axis=1)
    return np.divide(sums, counts[:, None], out=np.full((SEGMENTS, 3), np.nan), where=counts[:, None] > 0)


def largest_diameter(mask: Mask) -> float:
    """Return the largest extent of a mask in any direction (the maximal Feret diameter), px."""
    points = np.argwhere(_border(mask))
    angle = np.arange(DIRECTIONS) * math.pi / DIRECTIONS
    along = points @ np.stack([np.sin(angle), np.cos(angle)])
    return float(np.ptp(along, axis=0).max() + 1)


def total_dermoscopy_score(a: float, b: float, c: float, d: float = 0.0) -> float:
    """Return 1.3 A + 0.1 B + 0.5 C + 0.5 D (Nachbar et al. 1994).

    Args:
        a: axes about which the lesion is asymmetric, 0 to 2.
        b: segments whose border is abrupt, 0 to 8.
        c: colours present, 1 to 6.
        d: differential structures present, 1 to 5; 0 leaves them out, and with them the rule's cut-offs (4.75 and 5.45).
    """
    return 1.3 * a + 0.1 * b + 0.5 * c + 0.5 * d


def abcd_features(mask: Mask, lab: Lab, scale: float = 1.0, mm_per_px: float | None = None) -> dict[str, float]:
    """Return the features of the ABCD rule.

    A: of each principal axis the asymmetry of shape and of (smoothed) colour; the score counts the axes about which either exceeds
    its threshold. B: compactness, fractal dimension, mean abruptness, and the abrupt segments: of those that can be seen, scaled to
    eight. C: `colours.colour_features`. D of the clinical rule is the diameter, D of the dermoscopic rule
    `structures.structure_features`, an estimate that could not be checked against annotated structures. So there are two scores:
    `abcd_tds`, 1 to 8.9, for which the rule's cut-offs were made, though for a physician's D; and `abcd_tds_without_d`, 0.5 to 6.4, for
    which there are none.

    Args:
        mask: bool (H, W), not empty.
        lab: the image in CIELAB (H, W, 3).
        scale: of the image to its original, for the diameter in px of the original.
        mm_per_px: of the original; where it is not given, the diameter in mm is NaN.
    """
    axes = principal_axes(mask)
    blur = min(mask.shape) / 100  # hair and noise are asymmetric in any lesion
    smooth = np.stack([ndimage.gaussian_filter(lab[..., channel], blur) for channel in range(3)], axis=-1)
    found: dict[str, float] = {}
    score = 0
    for name, axis in (("major", axes.major), ("minor", axes.minor)):
        shape, colour = asymmetry(mask, smooth, axis, axes.centre)
        found |= {f"abcd_asymmetry_shape_{name}": shape, f"abcd_asymmetry_colour_{name}": colour}
        score += shape > ASYMMETRIC_SHAPE or colour > ASYMMETRIC_COLOUR
    segments = abruptness(mask, lab, axes)
    seen = segments[np.isfinite(segments)]
    abrupt = SEGMENTS * float((seen >= ABRUPT).mean()) if len(seen) else math.nan
    diameter = largest_diameter(mask)
    colours, structures = colour_features(mask, lab), structure_features(mask, lab)
    count, present = colours["abcd_colour_count"], structures["abcd_structure_count"]
    return found | {
        "abcd_asymmetry_score": score,
        "abcd_border_compactness": compactness(mask),
        "abcd_border_fractal_dimension": fractal_dimension(mask),
        "abcd_border_abruptness": float(seen.mean()) if len(seen) else math.nan,
        "abcd_border_abrupt_segments": abrupt,
        **colours,
        **structures,
        "abcd_diameter_px": diameter / scale,
        "abcd_diameter_mm": math.nan if mm_per_px is None else diameter / scale * mm_per_px,
        "abcd_diameter_by_longer_side": diameter / max(mask.shape),
        "abcd_tds": total_dermoscopy_score(score, abrupt, count, present),
        "abcd_tds_without_d": total_dermoscopy_score(score, abrupt, count),
    }
