"""Hair found and shaved off: DullRazor, and the black-hat recipe that is common now. All lengths scale with the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from skincancer.imaging.cleaning.steps import check_rgb, scaled
from skincancer.imaging.types import RGB, Mask

Grey = npt.NDArray[np.uint8]  # (H, W)

# lengths are px of an image whose shorter side is 450 px
LINE = 13  # wider than a hair, so that a closing along it fills any hair that does not run its way
DARK, LIGHT = 14, 18  # grey levels between a hair and what a closing, or an opening, puts in its place
PEAK, PART = (
    11,
    0.3,
)  # of the strongest response nearby, which a pixel needs a part of: the blurred edge of a hair is no hair
STRAIGHT, DIRECTIONS = 23, 16  # a hair is straight for so long, in one of so many directions
STRAIGHT_SHARE = 0.45  # of what hangs together; in a pigment network, or in scales, it is less …
MUCH, STRAIGHT_SHARE_OF_MUCH = (
    0.15,
    0.65,
)  # … but may come near where they fill the image: candidates that do have to be straighter
SMALLEST = 9  # px of the shorter side: in less than a straight piece of hair is long, nothing is found
GROW = 3  # px, whatever the size: the sides of a hair are replaced with it
WIDEST = 40  # what is looked across
MEDIAN = 5  # px, whatever the size
MOST = 0.3  # of an image: more is a texture that covers it, and is left as it is

HAT, HAT_THRESHOLD, HAT_RADIUS = 17, 10, 1


class _Kind(NamedTuple):
    """Hair of one kind: the operation that fills it, and how many grey levels that has to change."""

    operation: int
    least: int


_KINDS = (_Kind(cv2.MORPH_CLOSE, DARK), _Kind(cv2.MORPH_OPEN, LIGHT))


def dull_razor(image: RGB) -> tuple[RGB, Mask]:
    """Shave off dark and light hair.

    Lee T., Ng V., Gallagher R., Coldman A., McLean D. DullRazor: A software approach to hair removal from images. Comput Biol Med 27,
    533-543 (1997): in each colour band a closing by lines in several directions; what it changes is hair where it is long and thin;
    a pixel of hair becomes the bilinear mean of what lies on both sides of it; a median smooths what was replaced. Other than there,
    light hair is found too, by openings; thin is what a line fills, and long is what is straight by a morphological opening in one of
    16 directions, and what hangs together with that.

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        The repaired image, and the hair, bool (H, W); one pixel on each side of it was replaced with it. Where more than three tenths
        of the image look like hair, nothing is replaced.

    Raises:
        TypeError, ValueError: as `check_rgb`.
    """
    check_rgb(image)
    mask = find_hair(image)
    if not mask.any():
        return image.copy(), mask
    return _replace_across(image, _dilate(mask, GROW)), mask


def black_hat(image: RGB) -> tuple[RGB, Mask]:
    """Shave off dark hair as many recipes do: black-hat of the grey image, a threshold, inpainting.

    The recipe is in wide use and has no paper of its own; the inpainting is of Telea A. An image inpainting technique based on the fast
    marching method. J Graph Tools 9, 23-34 (2004).

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        The repaired image, and what was replaced, bool (H, W); nothing where that is more than three tenths of the image.

    Raises:
        TypeError, ValueError: as `check_rgb`.
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
    """Find dark and light hair: the first half of `dull_razor`.

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        bool (H, W); empty where more than three tenths of the image look like hair.

    Raises:
        TypeError, ValueError: as `check_rgb`.
    """
    check_rgb(image)
    if min(image.shape[:2]) < SMALLEST:
        return np.zeros(image.shape[:2], np.bool_)
    lines = _lines(scaled(LINE, image, 5), 4)
    filled = [_fill(image, lines, kind.operation) for kind in _KINDS]
    responses = [_response(image, one) for one in filled]
    power = [float(np.square(response[response > DARK], dtype=np.float32).sum()) for response in responses]
    first = int(power[1] > power[0])
    candidates = _candidates(responses[first], _KINDS[first].least, image)
    found = _verify(candidates, image)
    # skin between two hairs of one kind looks like a hair of the other, so these are looked for where the first have been filled
    bare = image.copy()
    cv2.copyTo(filled[first], cv2.dilate(candidates, np.ones((GROW, GROW), np.uint8)), bare)
    other = _KINDS[1 - first]
    found |= _verify(_candidates(_response(bare, _fill(bare, lines, other.operation)), other.least, image), image)
    return _unless_everywhere(found)


def _fill(image: RGB, lines: Sequence[Grey], operation: int) -> RGB:
    """Close, or open, by each line, and return what fills most."""
    join = cv2.max if operation == cv2.MORPH_CLOSE else cv2.min
    result = cv2.morphologyEx(image, operation, lines[0])
    for line in lines[1:]:
        join(result, cv2.morphologyEx(image, operation, line), dst=result)
    return np.asarray(result, np.uint8)


def _response(image: RGB, filled: RGB) -> Grey:
    """Return by how much the band that changed most did, uint8 (H, W)."""
    red, green, blue = cv2.split(cv2.absdiff(filled, image))
    return np.asarray(cv2.max(cv2.max(red, green), blue), np.uint8)


def _candidates(response: Grey, least: int, image: RGB) -> Grey:
    """Return where a response is strong by itself and beside its neighbours, uint8 (H, W) in {0, 1}."""
    side = scaled(PEAK, image, 3)
    peak = cv2.dilate(response, np.ones((side, side), np.uint8))
    return (response > np.maximum(cv2.convertScaleAbs(peak, alpha=PART), least)).view(np.uint8)


def _verify(candidates: Grey, image: RGB) -> Mask:
    """Keep what is long: straight pieces, and what hangs together with them as long as most of it is straight."""
    length = scaled(STRAIGHT, image, SMALLEST)
    straight = np.zeros_like(candidates)
    for line in _lines(length, DIRECTIONS):
        ends = cv2.erode(candidates, line)
        if cv2.countNonZero(ends):
            cv2.bitwise_or(straight, cv2.dilate(ends, line), dst=straight)
    reach = cv2.dilate(straight, np.ones((2 * length + 1, 2 * length + 1), np.uint8))
    near = np.asarray(cv2.bitwise_and(candidates, reach), np.uint8)
    # labelled with a pixel around, so that a gap of two does not end a hair
    count, component = cv2.connectedComponents(cv2.dilate(near, np.ones((3, 3), np.uint8)))
    found: Mask = near.view(np.bool_)
    labels = component[found]
    area, long = np.bincount(labels, minlength=count), np.bincount(labels, weights=straight[found], minlength=count)
    needed = STRAIGHT_SHARE if found.mean() <= MUCH else STRAIGHT_SHARE_OF_MUCH
    found[found] = (long > needed * area)[labels]
    return found


def _lines(length: int, directions: int) -> list[Grey]:
    """Draw lines through the middle of small images, uint8 in {0, 1}; of four directions the diagonals are as high as they are wide."""
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
    """Replace masked pixels by the bilinear mean of the nearest free one and of the first free one on the opposite side."""
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
    going, flat = np.arange(len(covered)), mask.ravel()
    for step in range(1, scaled(WIDEST, image, 9)):
        row = np.rint(y[going] + step * down[going]).astype(np.int64)
        column = np.rint(x[going] + step * right[going]).astype(np.int64)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        going, place = going[inside], (row * width + column)[inside]
        free = ~flat[place]
        far[going[free]], across[going[free]] = place[free], step
        going = going[~free]
        if not len(going):
            break
    share = (distance / (distance + across))[:, None]  # of the far one; 0 where there is none before the edge
    pixels = image.reshape(-1, 3)
    repaired = image.copy()
    repaired.reshape(-1, 3)[covered] = np.rint(pixels[near] * (1 - share) + pixels[far] * share)
    repaired[mask] = cv2.medianBlur(repaired, MEDIAN)[mask]
    return repaired


def _nearest_free(mask: Mask, covered: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for every covered pixel the nearest one outside the mask; both are places counted along the rows."""
    _, labels = cv2.distanceTransformWithLabels(
        mask.view(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )  # each free pixel has a label of its own
    free = np.flatnonzero(~mask)
    place = np.zeros(int(labels.max()) + 1, np.int64)
    place[labels.ravel()[free]] = free
    return place[labels.ravel()[covered]]
