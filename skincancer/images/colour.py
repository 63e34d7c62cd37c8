"""Colour constancy: the colour of the light is estimated from the image, and taken out of it."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from skincancer.images.cleaning import RGB, check_rgb


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
