"""Differential structures of a pigmented lesion, D of the ABCD rule of dermoscopy: network, structureless areas, dots, globules, streaks.

Nachbar F. et al., J Am Acad Dermatol 30:551-559 (1994), say which are counted and from when on; a physician's eye finds them. No
annotated structures were at hand to check these detectors against, so each is an estimate by a definition that can be read here, on
luminance (L of CIELAB, 0-100) alone, and every threshold is by our choice, by eye on HAM10000. Sizes are px of an image whose longer
side has about 256 px and shows 10 to 20 mm; a network finer than 3 px is not seen, and hairs that are not cleaned away can pass for
streaks and dots.
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

GRAIN = 0.8  # px, what is smoothed away
EDGE = 3  # px from the border inwards that are the border's
FINE = 1  # decimals of luminance that count
REACH = 7  # px, the largest radius of a spot
DIRECTIONS = 16
SPOT = 6.0  # contrast of dots and globules
HOLE = 1.0  # contrast of the holes of a network
ROUND = 2.5  # ratio of the largest to the smallest radius of a spot
DOT = 2.5  # px, radius below which a spot is a dot; larger ones are globules
NEAR, NEIGHBOURS, MESH = 12, 3, 5  # px and count of holes beside one that is in a network, and px that it stands for
# contrast of a structureless area, px of the square that it is taken in, and px of what is a slope
FLAT, WINDOW, SLOPE = 1.0, 9, 3.0
LINE, LINE_WIDTH = 4.0, 7  # contrast of streaks, and px that are wider
LONG, SLIM, RADIAL = 6.0, 2.5, 30.0  # px of length, length to width, degrees to the shortest way outwards
# of the diameter of a circle of the lesion's area: how far from the border, and how long a streak is at most
BAND, FAR = 0.12, 0.35
# what the rule counts (Nachbar): structureless areas above a tenth of the lesion, more than two dots and streaks, one globule. A network
# has no such number there.
NETWORK_SHARE, STRUCTURELESS_SHARE, DOTS, GLOBULES, STREAKS = 0.1, 0.1, 3, 1, 3


class Structures(NamedTuple):
    """What was found: network and structureless areas, bool (H, W); (row, column) of dots, globules (N, 2) and of each streak's pixels."""

    network: Mask
    structureless: Mask
    dots: Points
    globules: Points
    streaks: list[Points]


def find_structures(mask: Mask, lab: npt.NDArray[np.float64]) -> Structures:
    """Find the differential structures of a lesion.

    Args:
        mask: bool (H, W), not empty.
        lab: the image in CIELAB (H, W, 3).
    """
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
    """Find dark round spots: minima from which it gets lighter, within `REACH`, in all directions (of 16 one may fail).

    Args:
        light: (H, W).
        where: bool (H, W), where minima count.
        contrast: by which it has to get lighter.

    Returns:
        (row, column) of each (N, 2), and its radius (N,), px: the mean, over the directions, of where half of that is reached.
    """
    light = light.round(FINE)  # or an even area would have many minima
    low, count = ndimage.label(light == ndimage.minimum_filter(light, 3, mode="nearest"), np.ones((3, 3)))
    middle = ndimage.center_of_mass(low > 0, low, range(1, count + 1))
    points = np.rint(middle).astype(np.int64).reshape(-1, 2)
    at_home = low[tuple(points.T)] == np.arange(1, count + 1)  # a ring's middle is none of it
    points = points[where[tuple(points.T)] & at_home]
    turn = np.arange(DIRECTIONS) * 2 * math.pi / DIRECTIONS
    along = np.stack([np.sin(turn), np.cos(turn)], axis=-1)[:, None] * np.arange(1, REACH + 1)[:, None]
    at = points[:, None, None] + along  # (N, directions, REACH, 2)
    values = ndimage.map_coordinates(light, at.reshape(-1, 2).T, order=1, mode="nearest").reshape(at.shape[:-1])
    rise = values - light[tuple(points.T)][:, None, None]
    level = np.sort(rise.max(axis=2), axis=1)[:, 1]
    half = rise >= np.maximum(level / 2, 1e-6)[:, None, None]
    first = np.sort(np.where(half.any(axis=2), half.argmax(axis=2) + 1, REACH + 1), axis=1)
    found = (level >= contrast) & (first[:, -2] <= ROUND * first[:, 1])
    return points[found], first.mean(axis=1)[found]


def _network(holes: Points, mask: Mask) -> Mask:
    """Return what holes take that lie close together, as the cycles of Sadeghi et al. do (Comput Med Imaging Graph 35:137-143, 2011)."""
    net = np.zeros_like(mask)
    if len(holes) <= NEIGHBOURS:
        return net
    beside = KDTree(holes).query_ball_point(holes, NEAR, return_length=True) - 1
    net[tuple(holes[beside >= NEIGHBOURS].T)] = True
    if net.any():
        net = np.asarray(ndimage.distance_transform_edt(~net)) <= MESH
    return net & mask


def _structureless(light: Luminance, mask: Mask) -> Mask:
    """Return areas whose luminance hardly differs from its own slope, without slivers."""
    flat = light - ndimage.gaussian_filter(light, SLOPE, mode="nearest")
    power = ndimage.uniform_filter(flat**2, WINDOW, mode="nearest").clip(min=0)  # its running sums leave −1e-16
    return np.asarray(ndimage.binary_opening((np.sqrt(power) < FLAT) & mask, iterations=3))


def _streaks(light: Luminance, mask: Mask, inside: npt.NDArray[np.float64]) -> list[Points]:
    """Return the pixels of each short dark line about the border that points outwards and begins in the lesion."""
    diameter = math.sqrt(4 * mask.sum() / math.pi)
    signed = inside if mask.all() else inside - np.asarray(ndimage.distance_transform_edt(~mask))
    thin = cv2.morphologyEx(light.astype(np.float32), cv2.MORPH_BLACKHAT, disk(LINE_WIDTH // 2))
    lines = label((thin > LINE) & (signed <= BAND * diameter))
    outwards = np.stack(np.gradient(ndimage.gaussian_filter(signed, 2, mode="nearest")), axis=-1)
    found = []
    for line in regionprops(lines):
        if line.area < LONG:
            continue
        length, width = line.axis_major_length, max(line.axis_minor_length, 1.0)
        depth = signed[tuple(line.coords.T)]
        if not max(LONG, SLIM * width) <= length <= FAR * diameter or depth.max() < 1 or depth.min() < -BAND * diameter:
            continue  # among others what goes on outside: a hair
        way = outwards[tuple(np.rint(line.centroid).astype(np.int64))]
        direction = np.array([math.cos(line.orientation), math.sin(line.orientation)])
        if abs(direction @ way) >= math.cos(math.radians(RADIAL)) * np.linalg.norm(way) > 0:
            found.append(line.coords)
    return found


def structure_features(mask: Mask, lab: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return D of the ABCD rule: how much there is of each of the five structures, whether it counts as present, and their count.

    The count is 1 at least, as the rule's is from 1 to 5.

    Args:
        mask: bool (H, W), not empty.
        lab: the image in CIELAB (H, W, 3).
    """
    found = find_structures(mask, lab)
    amounts = {
        "network_share": (found.network.sum() / mask.sum(), NETWORK_SHARE),
        "structureless_share": (found.structureless.sum() / mask.sum(), STRUCTURELESS_SHARE),
        "dots": (len(found.dots), DOTS),
        "globules": (len(found.globules), GLOBULES),
        "streaks": (len(found.streaks), STREAKS),
    }
    present = {name.removesuffix("_share"): float(amount >= least) for name, (amount, least) in amounts.items()}
    return {
        **{f"abcd_structure_{name}": float(amount) for name, (amount, _) in amounts.items()},
        **{f"abcd_structure_{name}_present": value for name, value in present.items()},
        "abcd_structure_count": max(1.0, sum(present.values())),
    }
