"""Specular reflections, and the bright rims of bubbles in the gel, found and filled."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from skincancer.imaging.cleaning.steps import check_rgb, scaled
from skincancer.imaging.types import RGB, Mask

BRIGHT = 0.7  # of the range, at least
BRIGHTER = 0.098  # of the range, than the mean around
AROUND = 11  # px, of an image whose shorter side is 450 px, as the others here
SATURATION = 0.35  # of HSV, at most: a reflection has the colour of the lamp, and skin is pink
BUBBLE = 45  # across: a larger thing in a bright ring is no bubble
GAP = 5  # of a ring that is closed all the same
GROW = 3  # px, whatever the size: the fading edge of a reflection
RADIUS = 3  # px that the filling looks around
SMALLEST = 5  # px of the shorter side: nothing smaller has surroundings
MOST = 0.2  # of an image: more is an overexposed image, and is left as it is


def fill_glare(image: RGB) -> tuple[RGB, Mask]:
    """Find reflections and fill them from around.

    A pixel is a reflection if its intensity is above 0.7 and by more than 0.098 above the mean of its surroundings (Barata C.,
    Marques J. S., Rozeira J. A system for the detection of pigment network in dermoscopy images using directional filters. IEEE
    Trans Biomed Eng 59, 2744-2754 (2012)), and here also nearly colourless. What a small ring of them encloses is a bubble. The filling
    is Telea's (2004).

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        The repaired image, and what was replaced, bool (H, W); nothing where that is more than a fifth of the image.

    Raises:
        TypeError, ValueError: as `check_rgb`.
    """
    check_rgb(image)
    nothing = np.zeros(image.shape[:2], np.bool_)
    if min(image.shape[:2]) < SMALLEST:
        return image.copy(), nothing
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    side = scaled(AROUND, image, SMALLEST)
    above = cv2.subtract(grey, cv2.blur(grey, (side, side)))
    _, saturation, _ = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    found = ((grey > BRIGHT * 255) & (above > BRIGHTER * 255) & (saturation <= SATURATION * 255)).view(np.uint8)
    if not found.any():
        return image.copy(), nothing
    grown = cv2.dilate(found | _bubbles(found, image), np.ones((GROW, GROW), np.uint8))
    if grown.mean() > MOST:
        return image.copy(), nothing
    return np.asarray(cv2.inpaint(image, grown, RADIUS, cv2.INPAINT_TELEA), np.uint8), grown.view(np.bool_)


def _bubbles(found: npt.NDArray[np.uint8], image: RGB) -> npt.NDArray[np.uint8]:
    """Return the insides of small rings, uint8 (H, W) in {0, 1}."""
    gap, largest = scaled(GAP, image, 3), scaled(BUBBLE, image, SMALLEST)
    ring = cv2.morphologyEx(found, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap)))
    _, component, boxes, _ = cv2.connectedComponentsWithStats(1 - ring, connectivity=4)
    width, height = boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT]
    inside = (width <= largest) & (height <= largest)
    inside[0] = False  # the rings themselves
    return inside[component].astype(np.uint8)
