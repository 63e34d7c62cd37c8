"""The black frame of ISIC archive images, a border or the vignette of a dermoscope: which box of the image it leaves."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from skincancer.imaging.cleaning.steps import check_rgb
from skincancer.imaging.types import RGB, Box

SIDE = 256  # px: looked at on so small an image
BLACK = 0.25  # of the median brightness: darker pixels that hang together with a corner are frame …
DARKEST = 50  # … as far as they are darker than this
CORNER = 3  # px of the small image, in which a frame shows in a corner
LEFT_OVER = 0.1  # of a side: as much frame may stay
LEAST = 0.4  # of width and height: less is no frame, but a dark image, and is left whole


def frame_box(image: RGB) -> Box:
    """Find the box that a black frame leaves of an image.

    A threshold gives the field of view, as in Gessert N. et al. Skin lesion classification using ensembles of multi-resolution
    EfficientNets with meta data. MethodsX 7, 100864 (2020); they take the box of an ellipse, and here the edge with the largest share of
    frame is cut away, again and again, until every edge has less than a tenth.

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        Left, top, right, bottom, px; the whole image where there is no frame, or nothing but frame.

    Raises:
        TypeError, ValueError: as `check_rgb`.
    """
    check_rgb(image)
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    small_width, small_height = max(1, round(width * scale)), max(1, round(height * scale))
    brightest = image.max(axis=2)
    frame = _frame(
        brightest if scale == 1 else cv2.resize(brightest, (small_width, small_height), interpolation=cv2.INTER_AREA)
    )
    left, top, right, bottom = _cut(frame)
    if right - left < LEAST * small_width or bottom - top < LEAST * small_height:
        return 0, 0, width, height
    across, down = width / small_width, height / small_height
    if scale < 1:  # a pixel that is partly frame is hardly dark: one more
        left, top = left + (left > 0), top + (top > 0)
        right, bottom = right - (right < small_width), bottom - (bottom < small_height)
    return math.ceil(left * across), math.ceil(top * down), int(right * across), int(bottom * down)


def _frame(brightest: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return what is dark and hangs together with a corner, bool (H, W): a dark lesion may reach an edge, a frame takes the corners."""
    lit = brightest[brightest > DARKEST // 2]
    limit = min(DARKEST, BLACK * float(np.median(lit))) if len(lit) else 0
    _, component = cv2.connectedComponents((brightest < limit).astype(np.uint8), connectivity=4)
    ends = (slice(None, CORNER), slice(-CORNER, None))
    framing = {number for rows in ends for columns in ends for number in component[rows, columns].flat} - {0}
    return np.isin(component, list(framing))


def _cut(frame: npt.NDArray[np.bool_]) -> Box:
    left, top, right, bottom = 0, 0, frame.shape[1], frame.shape[0]
    while right - left > 1 and bottom - top > 1:
        shares = (
            frame[top:bottom, left].mean(), frame[top, left:right].mean(),
            frame[top:bottom, right - 1].mean(), frame[bottom - 1, left:right].mean(),
        )  # fmt: skip
        worst = int(np.argmax(shares))
        if shares[worst] < LEFT_OVER:
            break
        left, top, right, bottom = left + (worst == 0), top + (worst == 1), right - (worst == 2), bottom - (worst == 3)
    return left, top, right, bottom
