"""Differential structures of a lesion: network, structureless areas, dots, globules, streaks.

The structures are D of the ABCD rule of dermoscopy. Nachbar F. et al., J Am Acad Dermatol 30:551-559 (1994), define the structures and
their minimum amounts for a physician. These detectors use luminance (L of CIELAB, 0-100) alone and have not been validated with annotated
structures; all thresholds are our choice, from visual inspection of HAM10000. Sizes are px of an image with a longer side of about 256 px,
10 to 20 mm. A network finer than 3 px is not detected, and hairs can be mistaken for streaks and dots. `mask` is bool (H, W) and not empty,
`lab` is the image in CIELAB (H, W, 3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import label, regionprops
from skimage.morphology import disk

Mask = npt.NDArray[np.bool_]
Luminance = npt.NDArray[np.float64]
Points = npt.NDArray[np.int64]

# Standard deviation of the smoothing against grain, px.
GRAIN = 0.8
# Width of the margin inside the border without spots, px.
EDGE = 3
# Decimals of luminance in the search for minima.
FINE = 1
# Largest radius of a spot, px.
REACH = 7
DIRECTIONS = 16
# Contrast of dots and globules, and of the holes of a network.
SPOT, HOLE = 6.0, 1.0
# Largest ratio of the largest to the smallest radius of a spot.
ROUND = 2.5
# Radius limit of dots, px; larger spots are globules.
DOT = 2.5
# A hole with NEIGHBOURS other holes within NEAR px belongs to a network, and covers MESH px around its centre.
NEAR, NEIGHBOURS, MESH = 12, 3, 5
# Structureless areas: contrast, side of the square window (px), standard deviation of the smoothed slope (px).
FLAT, WINDOW, SLOPE = 1.0, 9, 3.0
# Streaks: contrast and largest width (px).
LINE, LINE_WIDTH = 4.0, 7
# Streaks: smallest length (px), ratio of length to width, and largest angle to the outward direction (degrees).
LONG, SLIM, RADIAL = 6.0, 2.5, 30.0
# Streaks: largest distance from the border and largest length, as shares of the diameter of a circle with the area of the lesion.
BAND, FAR = 0.12, 0.35
# Minimum amounts of the rule (Nachbar): a tenth of the lesion for structureless areas, three dots or streaks, one globule. The rule has no
# number for a network.
NETWORK_SHARE, STRUCTURELESS_SHARE, DOTS, GLOBULES, STREAKS = 0.1, 0.1, 3, 1, 3


class Structures(NamedTuple):
    """Differential structures of a lesion.

    Attributes:
        network: mask of the network, bool (H, W).
        structureless: mask of structureless areas, bool (H, W).
        dots: (row, column) of the centre of each dot, (N, 2).
        globules: (row, column) of the centre of each globule, (N, 2).
        streaks: (row, column) of the pixels of each streak.
    """

    network: Mask
    structureless: Mask
    dots: Points
    globules: Points
    streaks: list[Points]


def find_structures(mask: Mask, lab: npt.NDArray[np.float64]) -> Structures:
    """Find the differential structures of a lesion."""
    light = ndimage.gaussian_filter(lab[..., 0], GRAIN, mode="nearest")
    inside = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    inner: Mask = inside > EDGE
    spots, radius = find_spots(light, inner, SPOT)
    holes, _ = find_spots(-light, inner, HOLE)
    return Structures(
        _network(holes, mask), _structureless(light, mask), spots[radius < DOT], spots[radius >= DOT],
        _streaks(light, mask, inside),
    )  # fmt: skip


def find_spots(light: Luminance, where: Mask, contrast: float) -> tuple[Points, npt.NDArray[np.float64]]:
    """Find dark round spots: minima surrounded by lighter pixels.

    The luminance has to rise by `contrast` within `REACH` px in at least 15 of 16 directions.

    Args:
        light: luminance (H, W).
        where: bool (H, W), area that is searched for minima.
        contrast: smallest rise of the luminance.

    Returns:
        (row, column) of each spot (N, 2), and its radius (N,), px: the mean distance, over the directions, of half of the rise.
    """
    # Without rounding, a uniform area would have many minima.
    light = light.round(FINE)
    low, count = ndimage.label(light == ndimage.minimum_filter(light, 3, mode="nearest"), np.ones((3, 3)))
    middle = ndimage.center_of_mass(low > 0, low, range(1, count + 1))
    points = np.rint(middle).astype(np.int64).reshape(-1, 2)
    # The centre of a ring-shaped minimum is not part of the minimum.
    in_minimum = low[tuple(points.T)] == np.arange(1, count + 1)
    points = points[where[tuple(points.T)] & in_minimum]
    turn = np.arange(DIRECTIONS) * 2 * math.pi / DIRECTIONS
    along = np.stack([np.sin(turn), np.cos(turn)], axis=-1)[:, None] * np.arange(1, REACH + 1)[:, None]
    at = points[:, None, None] + along  # (N, directions, REACH, 2)
    values = ndimage.map_coordinates(light, at.reshape(-1, 2).T, order=1, mode="nearest").reshape(at.shape[:-1])
    rise = values - light[tuple(points.T)][:, None, None]
    level = np.sort(rise.max(axis=2), axis=1)[:, 1]
    half = rise >= np.maximum(level / 2, 1e-6)[:, None, None]
    first = np.sort(np.where(half.any(axis=2), half.argmax(axis=2) + 1, REACH + 1), axis=1)
    is_spot = (level >= contrast) & (first[:, -2] <= ROUND * first[:, 1])
    return points[is_spot], first.mean(axis=1)[is_spot]


def _network(holes: Points, mask: Mask) -> Mask:
    """Return the mask of a network, from holes that are close together.

    Similar to the cycles of Sadeghi et al., Comput Med Imaging Graph 35:137-143 (2011).
    """
    net = np.zeros_like(mask)
    if len(holes) <= NEIGHBOURS:
        return net
    neighbours = KDTree(holes).query_ball_point(holes, NEAR, return_length=True) - 1
    net[tuple(holes[neighbours >= NEIGHBOURS].T)] = True
    if net.any():
        net = np.asarray(ndimage.distance_transform_edt(~net)) <= MESH
    return net & mask


def _structureless(light: Luminance, mask: Mask) -> Mask:
    """Return areas with little luminance detail, without narrow areas."""
    flat = light - ndimage.gaussian_filter(light, SLOPE, mode="nearest")
    # The running sums of the filter can be −1e-16.
    power = ndimage.uniform_filter(flat**2, WINDOW, mode="nearest").clip(min=0)
    return np.asarray(ndimage.binary_opening((np.sqrt(power) < FLAT) & mask, iterations=3))


def _streaks(light: Luminance, mask: Mask, inside: npt.NDArray[np.float64]) -> list[Points]:
    """Return the pixels of each short, dark line that points outwards."""
    diameter = math.sqrt(4 * mask.sum() / math.pi)
    signed = inside if mask.all() else inside - np.asarray(ndimage.distance_transform_edt(~mask))
    thin = cv2.morphologyEx(light.astype(np.float32), cv2.MORPH_BLACKHAT, disk(LINE_WIDTH // 2))
    lines = label((thin > LINE) & (signed <= BAND * diameter))
    outwards = np.stack(np.gradient(ndimage.gaussian_filter(signed, 2, mode="nearest")), axis=-1)
    streaks = []
    for line in regionprops(lines):
        if line.area < LONG:
            continue
        length, width = line.axis_major_length, max(line.axis_minor_length, 1.0)
        depth = signed[tuple(line.coords.T)]
        if not max(LONG, SLIM * width) <= length <= FAR * diameter or depth.max() < 1 or depth.min() < -BAND * diameter:
            # Among others, lines that continue outside the lesion are excluded, since these are hairs.
            continue
        outward = outwards[tuple(np.rint(line.centroid).astype(np.int64))]
        direction = np.array([math.cos(line.orientation), math.sin(line.orientation)])
        if abs(direction @ outward) >= math.cos(math.radians(RADIAL)) * np.linalg.norm(outward) > 0:
            streaks.append(line.coords)
    return streaks


def structure_features(mask: Mask, lab: npt.NDArray[np.float64]) -> dict[str, float]:
    """Compute D of the ABCD rule: amounts and number of structures.

    The number is from 1 to 5, as in the rule: at least 1, even without any structure.
    """
    structures = find_structures(mask, lab)
    amounts = {
        "network_share": (structures.network.sum() / mask.sum(), NETWORK_SHARE),
        "structureless_share": (structures.structureless.sum() / mask.sum(), STRUCTURELESS_SHARE),
        "dots": (len(structures.dots), DOTS),
        "globules": (len(structures.globules), GLOBULES),
        "streaks": (len(structures.streaks), STREAKS),
    }
    present = {name.removesuffix("_share"): float(amount >= least) for name, (amount, least) in amounts.items()}
    return {
        **{f"abcd_structure_{name}": float(amount) for name, (amount, _) in amounts.items()},
        **{f"abcd_structure_{name}_present": value for name, value in present.items()},
        "abcd_structure_count": max(1.0, sum(present.values())),
    }
