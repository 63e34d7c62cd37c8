"""Crop box without the black frame or vignette of a dermoscope.

Images are RGB uint8 (H, W, 3). Public functions raise the errors of `check_rgb`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from skincancer.imaging.cleaning.steps import check_rgb
from skincancer.imaging.types import RGB, Box

# Longer side of the image for the search, px.
SIDE = 256
# Brightness limits of frame pixels: share of the median brightness, and grey value.
BLACK, DARKEST = 0.25, 50
# Side of the corners in which a frame must be present, px at SIDE.
CORNER = 3
# Share of frame pixels below which an edge is not cut.
LEFT_OVER = 0.1
# Smallest remaining share of width and height. A smaller box means a dark image without a frame, which is not cropped.
LEAST = 0.4


def frame_box(image: RGB) -> Box:
    """Return the box (left, top, right, bottom) inside the black frame, px.

    A threshold separates the field of view, as in Gessert N. et al. Skin lesion classification using ensembles of multi-resolution
    EfficientNets with meta data. MethodsX 7, 100864 (2020). Gessert et al. use the box of an ellipse; this function repeatedly removes the
    edge with the largest share of frame pixels until the share is below a tenth for all edges. The box is the whole image if there is no
    frame, or if the image is dark everywhere.
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
    # Pixels of the small image that are partly frame are not dark, so one more row or column is removed.
    if scale < 1:
        left, top = left + (left > 0), top + (top > 0)
        right, bottom = right - (right < small_width), bottom - (bottom < small_height)
    return math.ceil(left * across), math.ceil(top * down), int(right * across), int(bottom * down)


def _frame(brightest: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return the dark components that touch an image corner, bool (H, W).

    Edges do not count, because a dark lesion may touch an edge.
    """
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
