"""Removal of specular reflections and of gel bubbles with bright rims.

Images are RGB uint8 (H, W, 3). Public functions raise the errors of `check_rgb`.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from skincancer.imaging.cleaning.steps import check_rgb, scaled
from skincancer.imaging.types import RGB, Mask

# Lengths are px of an image with a shorter side of 450 px, unless stated otherwise.
# Smallest intensity, and smallest difference to the mean of the surroundings, as shares of the range.
BRIGHT, BRIGHTER = 0.7, 0.098
# Side of the surroundings.
AROUND = 11
# Largest saturation (HSV): a reflection has the colour of the lamp, skin is pink.
SATURATION = 0.35
# Largest diameter of a bubble, and largest gap in its ring.
BUBBLE, GAP = 45, 5
# Side of the dilation over the faint edge of a reflection, and radius of the inpainting, px at any image size.
GROW, RADIUS = 3, 3
# Smallest shorter side of an image, px. Smaller images have no surroundings.
SMALLEST = 5
# Largest share of the image. More means an overexposed image, which is not changed.
MOST = 0.2


def fill_glare(image: RGB) -> tuple[RGB, Mask]:
    """Detect reflections and gel bubbles and inpaint them.

    A reflection pixel has an intensity above 0.7 that exceeds the mean of the surroundings by more than 0.098 (Barata C., Marques J. S.,
    Rozeira J. A system for the detection of pigment network in dermoscopy images using directional filters. IEEE Trans Biomed Eng 59,
    2744-2754 (2012)). In addition, the pixel must be nearly colourless. The inside of a small ring of reflections is a bubble. The
    inpainting is by Telea (2004).

    Returns:
        Repaired image, and mask of replaced pixels, bool (H, W). Nothing is replaced if the mask exceeds a fifth of the image.
    """
    check_rgb(image)
    nothing = np.zeros(image.shape[:2], np.bool_)
    if min(image.shape[:2]) < SMALLEST:
        return image.copy(), nothing
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    side = scaled(AROUND, image, SMALLEST)
    above = cv2.subtract(grey, cv2.blur(grey, (side, side)))
    _, saturation, _ = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    glare = ((grey > BRIGHT * 255) & (above > BRIGHTER * 255) & (saturation <= SATURATION * 255)).view(np.uint8)
    if not glare.any():
        return image.copy(), nothing
    grown = cv2.dilate(glare | _bubbles(glare, image), np.ones((GROW, GROW), np.uint8))
    if grown.mean() > MOST:
        return image.copy(), nothing
    return np.asarray(cv2.inpaint(image, grown, RADIUS, cv2.INPAINT_TELEA), np.uint8), grown.view(np.bool_)


def _bubbles(glare: npt.NDArray[np.uint8], image: RGB) -> npt.NDArray[np.uint8]:
    """Return the insides of small rings, uint8 (H, W), 0 or 1."""
    gap, largest = scaled(GAP, image, 3), scaled(BUBBLE, image, SMALLEST)
    ring = cv2.morphologyEx(glare, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap)))
    _, component, boxes, _ = cv2.connectedComponentsWithStats(1 - ring, connectivity=4)
    width, height = boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT]
    inside = (width <= largest) & (height <= largest)
    # Label 0 is the rings.
    inside[0] = False
    return inside[component].astype(np.uint8)
