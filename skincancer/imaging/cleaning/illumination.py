"""Colour constancy and contrast enhancement.

Images are RGB uint8 (H, W, 3). Public functions raise the errors of `check_rgb`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from skincancer.imaging.cleaning.steps import check_rgb
from skincancer.imaging.types import RGB


def shades_of_grey(image: RGB, power: float = 6) -> RGB:
    """Remove the colour of the light with shades of grey.

    The estimate e of the light is the Minkowski mean of each channel, (mean of I^p)^(1/p), with p = 6 (Finlayson G., Trezzi E. Shades of
    gray and colour constancy. Color and Imaging Conference 12, 37-41 (2004)). Each channel is divided by √3 e / ‖e‖, so that grey light
    changes nothing, and the result is clipped to 255.

    Args:
        image: RGB uint8 (H, W, 3).
        power: p; 1 is grey-world, infinity is max-RGB.

    Returns:
        RGB uint8 (H, W, 3). A black channel does not change.
    """
    check_rgb(image)
    light = _light(image, power)
    length = float(np.linalg.norm(light))
    levels = np.arange(256)
    result = np.empty_like(image)
    for channel, strength in enumerate(light):
        gain = length / (math.sqrt(3) * strength) if strength else 1.0
        result[..., channel] = np.rint(levels * gain).clip(0, 255).astype(np.uint8)[image[..., channel]]
    return result


def grey_world(image: RGB) -> RGB:
    """Remove the colour of the light with grey-world (p = 1).

    Buchsbaum G. A spatial processor model for object colour perception. J Franklin Inst 310, 1-26 (1980).
    """
    return shades_of_grey(image, 1)


def max_rgb(image: RGB) -> RGB:
    """Remove the colour of the light with max-RGB (p = ∞).

    Land E., McCann J. Lightness and retinex theory. J Opt Soc Am 61, 1-11 (1971).
    """
    return shades_of_grey(image, math.inf)


def _light(image: RGB, power: float) -> npt.NDArray[np.float64]:
    """Return the Minkowski mean of each channel, (3,), from the histograms."""
    counts = np.stack([np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)])
    if math.isinf(power):
        return np.array([np.flatnonzero(row)[-1] for row in counts], dtype=np.float64)
    share = counts / counts.sum(axis=1, keepdims=True)
    mean: npt.NDArray[np.float64] = 255 * (share @ (np.arange(256) / 255) ** power) ** (1 / power)
    return mean


# Gain of the sigmoid over the range of the lightness. The slope in the middle is about 1.5.
GAIN = 5.0
# Percentiles of the lightness that do not change.
TAILS = (1, 99)
# CLAHE: clip limit, tiles per side.
CLIP, TILES = 2.0, 8
# Smallest shorter side for CLAHE, px. Tiles of one pixel have no histogram.
SMALLEST = 2 * TILES


def adaptive_sigmoid(image: RGB) -> RGB:
    """Increase the contrast of lesion and skin with a sigmoid.

    The curve is by Braun G. J., Fairchild M. D. Image lightness rescaling using sigmoidal contrast enhancement functions. J Electron
    Imaging 8, 380-393 (1999). Its midpoint is Otsu's threshold of the image (IEEE Trans Syst Man Cybern 9, 62-66, 1979). In Venugopal V. et
    al. (Comput Methods Programs Biomed 222, 106935, 2022) the midpoint is also between lesion and skin, but predicted by a network. The 1st
    and the 99th percentile do not change.

    Returns:
        RGB uint8 (H, W, 3). An image of one lightness does not change.
    """
    check_rgb(image)
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
    curve = _curve(lab[..., 0])
    if curve is None:
        return image.copy()
    lab[..., 0] = curve[lab[..., 0]]
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _curve(lightness: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
    """Return the new lightness of each lightness, uint8 (256,), monotonic.

    None if the range of the lightness is too small.
    """
    low, high = (float(value) for value in np.percentile(lightness, TAILS))
    if high - low < 2:
        return None
    middle, _ = cv2.threshold(np.ascontiguousarray(lightness), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    middle = min(max(float(middle), low), high)

    def sigmoid(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(1 / (1 + np.exp(-GAIN * (values - middle) / (high - low))))

    levels = np.arange(256, dtype=np.float64)
    bottom, top = sigmoid(np.array([low, high]))
    curved = low + (high - low) * (sigmoid(levels) - bottom) / (top - bottom)
    return np.rint(np.where((levels < low) | (levels > high), levels, curved)).astype(np.uint8)


def clahe(image: RGB) -> RGB:
    """Equalise the lightness with CLAHE (8 × 8 tiles, clip limit 2).

    Zuiderveld K. Contrast limited adaptive histogram equalization. Graphics Gems IV, 474-485 (1994).

    Returns:
        RGB uint8 (H, W, 3). An image of one lightness, or with a shorter side below 16 px, does not change.
    """
    check_rgb(image)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lightness = np.ascontiguousarray(lab[..., 0])
    if min(lightness.shape) < SMALLEST or lightness.min() == lightness.max():
        return image.copy()
    lab[..., 0] = cv2.createCLAHE(CLIP, (TILES, TILES)).apply(lightness)
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)
