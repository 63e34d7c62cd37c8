"""Hair removal with DullRazor, or with black-hat and inpainting.

Images are RGB uint8 (H, W, 3). Public functions raise the errors of `check_rgb`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from skincancer.imaging.cleaning.steps import check_rgb, scaled
from skincancer.imaging.types import RGB, Mask

# Grey image, (H, W).
Grey = npt.NDArray[np.uint8]

# Lengths are px of an image with a shorter side of 450 px, unless stated otherwise.
# Length of the lines of a closing. A line is longer than a hair is wide, so that the closing fills hairs in other directions.
LINE = 13
# Grey levels between a dark or light hair and the result of the closing or opening.
DARK, LIGHT = 14, 18
# Side of the neighbourhood, and smallest share of the strongest response there. The blurred edge of a hair has a smaller share.
PEAK, PEAK_SHARE = 11, 0.3
# Length of a straight piece of hair, and number of directions.
STRAIGHT, DIRECTIONS = 23, 16
# Smallest share of straight pieces in a component. Pigment networks and scales have a smaller share.
STRAIGHT_SHARE = 0.45
# Share of the image in candidates above which the second, stricter limit applies: networks that fill the image have straighter pieces.
MUCH, STRAIGHT_SHARE_OF_MUCH = 0.15, 0.65
# Smallest shorter side of an image, px.
SMALLEST = 9
# Side of the dilation over the edges of a hair, px at any image size.
GROW = 3
# Largest width of a hair with its neighbours.
WIDEST = 40
# Side of the median filter, px at any image size.
MEDIAN = 5
# Largest share of the image. More means a texture without hair, which is not changed.
MOST = 0.3

# Black-hat: side of the structuring element, threshold (grey levels), radius of the inpainting (px at any image size).
HAT, HAT_THRESHOLD, HAT_RADIUS = 17, 10, 1


class _Kind(NamedTuple):
    """Dark or light hair: morphological operation and smallest change in grey levels."""

    operation: int
    least: int


_KINDS = (_Kind(cv2.MORPH_CLOSE, DARK), _Kind(cv2.MORPH_OPEN, LIGHT))


def dull_razor(image: RGB) -> tuple[RGB, Mask]:
    """Remove dark and light hair with DullRazor.

    Lee T., Ng V., Gallagher R., Coldman A., McLean D. DullRazor: A software approach to hair removal from images. Comput Biol Med 27,
    533-543 (1997): a closing by lines in several directions in each colour band; long and thin changes are hair; a hair pixel is replaced
    by the bilinear mean of the pixels on both sides of the hair; a median filter smooths the replaced pixels. Differences to the paper:
    light hair is detected too, with openings; a line fills thin structures; long structures contain a piece that is straight, by a
    morphological opening in one of 16 directions.

    Returns:
        Repaired image, and mask of hair, bool (H, W). One pixel on each side of a hair is replaced too. Nothing is replaced if the mask
        exceeds three tenths of the image.
    """
    check_rgb(image)
    mask = find_hair(image)
    if not mask.any():
        return image.copy(), mask
    return _replace_across(image, _dilate(mask, GROW)), mask


def black_hat(image: RGB) -> tuple[RGB, Mask]:
    """Remove dark hair with black-hat of the grey image, threshold and inpainting.

    The method is widely used, without a specific paper. The inpainting is by Telea A. An image inpainting technique based on the fast
    marching method. J Graph Tools 9, 23-34 (2004).

    Returns:
        Repaired image, and mask of replaced pixels, bool (H, W). Nothing is replaced if the mask exceeds three tenths of the image.
    """
    check_rgb(image)
    if min(image.shape[:2]) < SMALLEST:
        return image.copy(), np.zeros(image.shape[:2], np.bool_)
    side = scaled(HAT, image, 3)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (side, side))
    hat = cv2.morphologyEx(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.MORPH_BLACKHAT, cross)
    mask = _unless_everywhere(hat > HAT_THRESHOLD)
    if not mask.any():
        return image.copy(), mask
    return np.asarray(cv2.inpaint(image, mask.view(np.uint8), HAT_RADIUS, cv2.INPAINT_TELEA), np.uint8), mask


def find_hair(image: RGB) -> Mask:
    """Return the hair mask of `dull_razor`, bool (H, W).

    The mask is empty if candidates exceed three tenths of the image.
    """
    check_rgb(image)
    if min(image.shape[:2]) < SMALLEST:
        return np.zeros(image.shape[:2], np.bool_)
    lines = _lines(scaled(LINE, image, 5), 4)
    filled = [_fill(image, lines, kind.operation) for kind in _KINDS]
    responses = [_response(image, result) for result in filled]
    power = [float(np.square(response[response > DARK], dtype=np.float32).sum()) for response in responses]
    first = int(power[1] > power[0])
    candidates = _candidates(responses[first], _KINDS[first].least, image)
    hair = _verify(candidates, image)
    # Skin between two dark hairs resembles a light hair, and the reverse. The second kind is therefore searched after filling the first.
    bare = image.copy()
    cv2.copyTo(filled[first], cv2.dilate(candidates, np.ones((GROW, GROW), np.uint8)), bare)
    other = _KINDS[1 - first]
    hair |= _verify(_candidates(_response(bare, _fill(bare, lines, other.operation)), other.least, image), image)
    return _unless_everywhere(hair)


def _fill(image: RGB, lines: Sequence[Grey], operation: int) -> RGB:
    """Return the strongest closing, or opening, over all lines."""
    join = cv2.max if operation == cv2.MORPH_CLOSE else cv2.min
    result = cv2.morphologyEx(image, operation, lines[0])
    for line in lines[1:]:
        join(result, cv2.morphologyEx(image, operation, line), dst=result)
    return np.asarray(result, np.uint8)


def _response(image: RGB, filled: RGB) -> Grey:
    """Return the largest change over the colour bands, uint8 (H, W)."""
    red, green, blue = cv2.split(cv2.absdiff(filled, image))
    return np.asarray(cv2.max(cv2.max(red, green), blue), np.uint8)


def _candidates(response: Grey, least: int, image: RGB) -> Grey:
    """Return strong responses relative to neighbours, uint8 (H, W), 0 or 1."""
    side = scaled(PEAK, image, 3)
    peak = cv2.dilate(response, np.ones((side, side), np.uint8))
    return (response > np.maximum(cv2.convertScaleAbs(peak, alpha=PEAK_SHARE), least)).view(np.uint8)


def _verify(candidates: Grey, image: RGB) -> Mask:
    """Keep long structures: components that consist mainly of straight pieces."""
    length = scaled(STRAIGHT, image, SMALLEST)
    straight = np.zeros_like(candidates)
    for line in _lines(length, DIRECTIONS):
        ends = cv2.erode(candidates, line)
        if cv2.countNonZero(ends):
            cv2.bitwise_or(straight, cv2.dilate(ends, line), dst=straight)
    reach = cv2.dilate(straight, np.ones((2 * length + 1, 2 * length + 1), np.uint8))
    near = np.asarray(cv2.bitwise_and(candidates, reach), np.uint8)
    # The dilation by one pixel joins pieces of a hair with a gap of two pixels.
    count, component = cv2.connectedComponents(cv2.dilate(near, np.ones((3, 3), np.uint8)))
    hair: Mask = near.view(np.bool_)
    labels = component[hair]
    area, long = np.bincount(labels, minlength=count), np.bincount(labels, weights=straight[hair], minlength=count)
    needed = STRAIGHT_SHARE if hair.mean() <= MUCH else STRAIGHT_SHARE_OF_MUCH
    hair[hair] = (long > needed * area)[labels]
    return hair


def _lines(length: int, directions: int) -> list[Grey]:
    """Return structuring elements with a centred line, uint8, 0 or 1.

    With up to four directions, diagonals have the width and height of the other lines.
    """
    half, lines = length // 2, []
    for number in range(directions):
        angle = math.pi * number / directions
        x, y = math.cos(angle), math.sin(angle)
        stretch = max(abs(x), abs(y)) if directions <= 4 else 1
        x, y = round(half * x / stretch), round(half * y / stretch)
        line = np.zeros((2 * abs(y) + 1, 2 * abs(x) + 1), np.uint8)
        cv2.line(line, (abs(x) - x, abs(y) - y), (abs(x) + x, abs(y) + y), 1)
        lines.append(line)
    return lines


def _dilate(mask: Mask, side: int) -> Mask:
    return cv2.dilate(mask.view(np.uint8), np.ones((side, side), np.uint8)).view(np.bool_)


def _unless_everywhere(mask: Mask) -> Mask:
    return mask if mask.mean() <= MOST else np.zeros_like(mask)


def _replace_across(image: RGB, mask: Mask) -> RGB:
    """Replace masked pixels by the bilinear mean of two free pixels.

    The two are the nearest free pixel and the first free pixel on the opposite side.
    """
    if mask.all():
        return image.copy()
    height, width = mask.shape
    covered = np.flatnonzero(mask)
    near = _nearest_free(mask, covered)
    y, x = np.divmod(covered, width)
    down, right = y - near // width, x - near % width
    distance = np.hypot(down, right).astype(np.float32)
    down, right = down / distance, right / distance
    far, across = near.copy(), np.full(len(covered), np.inf, np.float32)
    active, flat = np.arange(len(covered)), mask.ravel()
    for step in range(1, scaled(WIDEST, image, 9)):
        row = np.rint(y[active] + step * down[active]).astype(np.int64)
        column = np.rint(x[active] + step * right[active]).astype(np.int64)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        active, place = active[inside], (row * width + column)[inside]
        free = ~flat[place]
        far[active[free]], across[active[free]] = place[free], step
        active = active[~free]
        if not len(active):
            break
    # Weight of the opposite pixel, 0 if the image ends before a free pixel.
    share = (distance / (distance + across))[:, None]
    pixels = image.reshape(-1, 3)
    repaired = image.copy()
    repaired.reshape(-1, 3)[covered] = np.rint(pixels[near] * (1 - share) + pixels[far] * share)
    repaired[mask] = cv2.medianBlur(repaired, MEDIAN)[mask]
    return repaired


def _nearest_free(mask: Mask, covered: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the flat index of each covered pixel's nearest free pixel."""
    # Each free pixel has a separate label.
    _, labels = cv2.distanceTransformWithLabels(mask.view(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    free = np.flatnonzero(~mask)
    place = np.zeros(int(labels.max()) + 1, np.int64)
    place[labels.ravel()[free]] = free
    return place[labels.ravel()[covered]]
