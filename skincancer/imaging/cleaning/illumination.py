"""Colour constancy and contrast steps."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from skincancer.imaging.cleaning.steps import check_rgb
from skincancer.imaging.types import RGB


def shades_of_grey(image: RGB, power: float = 6) -> RGB:
    """Take the colour of the light out of an image: shades of grey.

    The light e has in each channel the Minkowski mean of the image, (mean of I^p)^(1/p); p = 6 (Finlayson G., Trezzi E. Shades of
    gray and colour constancy. Color and Imaging Conference 12, 37-41 (2004)). Each channel is divided by √3 e / ‖e‖, so that a grey
    light changes nothing, and what goes over 255 is cut there.

    Args:
        image: uint8 (H, W, 3), RGB.
        power: p; 1 is grey-world, infinity max-RGB.

    Returns:
        uint8 (H, W, 3); a channel that is black everywhere stays so.

    Raises:
        TypeError, ValueError: as `check_rgb`.
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
    """Take the light to be the mean of the image: `shades_of_grey` with p = 1.

    Buchsbaum G. A spatial processor model for object colour perception. J Franklin Inst 310, 1-26 (1980).
    """
    return shades_of_grey(image, 1)


def max_rgb(image: RGB) -> RGB:
    """Take the light to be the brightest value of each channel: `shades_of_grey` with p = ∞.

    Land E., McCann J. Lightness and retinex theory. J Opt Soc Am 61, 1-11 (1971).
    """
    return shades_of_grey(image, math.inf)


def _light(image: RGB, power: float) -> npt.NDArray[np.float64]:
    """Return the Minkowski mean of each channel, (3,), from their histograms."""
    counts = np.stack([np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)])
    if math.isinf(power):
        return np.array([np.flatnonzero(row)[-1] for row in counts], dtype=np.float64)
    share = counts / counts.sum(axis=1, keepdims=True)
    mean: npt.NDArray[np.float64] = 255 * (share @ (np.arange(256) / 255) ** power) ** (1 / power)
    return mean


GAIN = 5.0  # of the sigmoid over the range of the image's lightness: its slope in the middle is about 1.5
TAILS = (1, 99)  # percentiles of the lightness that stay where they are
CLIP, TILES = 2.0, 8
SMALLEST = 2 * TILES  # px of the shorter side: tiles of one pixel have no histogram


def adaptive_sigmoid(image: RGB) -> RGB:
    """Darken the lesion against the skin by a sigmoid of the lightness, its middle between the two.

    The curve is that of Braun G. J., Fairchild M. D. Image lightness rescaling using sigmoidal contrast enhancement functions. J
    Electron Imaging 8, 380-393 (1999); its middle is Otsu's threshold (IEEE Trans Syst Man Cybern 9, 62-66, 1979) of the image, as that
    of Venugopal V. et al. (Comput Methods Programs Biomed 222, 106935, 2022) is between lesion and skin, where theirs is predicted by
    a network. The 1st and the 99th percentile stay where they are.

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        uint8 (H, W, 3); an image of one lightness stays as it is.

    Raises:
        TypeError, ValueError: as `check_rgb`.
    """
    check_rgb(image)
    lab = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), np.uint8)
    curve = _curve(lab[..., 0])
    if curve is None:
        return image.copy()
    lab[..., 0] = curve[lab[..., 0]]
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _curve(lightness: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
    """Return what becomes of every lightness, uint8 (256,), never falling; None where there is nothing to part."""
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
    """Equalise the lightness tile by tile, with limited contrast: CLAHE.

    Zuiderveld K. Contrast limited adaptive histogram equalization. Graphics Gems IV, 474-485 (1994); 8 × 8 tiles, clip limit 2.

    Args:
        image: uint8 (H, W, 3), RGB.

    Returns:
        uint8 (H, W, 3); an image of one lightness, or of fewer pixels a side than twice the tiles, stays as it is.

    Raises:
        TypeError, ValueError: as `check_rgb`.
    """
    check_rgb(image)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    lightness = np.ascontiguousarray(lab[..., 0])
    if min(lightness.shape) < SMALLEST or lightness.min() == lightness.max():
        return image.copy()
    lab[..., 0] = cv2.createCLAHE(CLIP, (TILES, TILES)).apply(lightness)
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)
