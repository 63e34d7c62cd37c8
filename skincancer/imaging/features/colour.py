"""Colour features of a lesion: six dermoscopic colours, CIELAB variance, histograms.

`mask` is bool (H, W) and not empty, `image` is RGB uint8 (H, W, 3), `lab` is the image in CIELAB (H, W, 3).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2lab

Mask = npt.NDArray[np.bool_]
Lab = npt.NDArray[np.float64]

# The six colours of the ABCD rule, RGB in 0-255. Stolz gives no numbers; these values are common in automatic scoring (such as Cavalcanti
# and Scharcanski, Comput Med Imaging Graph 35:481-491, 2011).
SIX_COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (204, 51, 51),
    "light_brown": (153, 102, 0),
    "dark_brown": (51, 0, 0),
    "blue_grey": (51, 153, 153),
    "black": (0, 0, 0),
}
# Smallest share of the lesion of a present colour, by our choice: a smaller share is glare, hair or an edge.
PRESENT = 0.05
# L of CIELAB (0-100) below which a pixel around the lesion is vignette, frame or hair, and not skin.
UNLIT = 15.0
BINS = 8
CHANNELS = ("red", "green", "blue")
_REFERENCE = rgb2lab(np.array([list(SIX_COLOURS.values())], dtype=np.uint8))[0]


def six_colours(mask: Mask, lab: Lab) -> dict[str, float]:
    """Return the share of the lesion of each of the six colours.

    Every pixel has the nearest colour in CIELAB. The illumination is not corrected: under reddish light a common brown nevus and its skin
    are nearer to red than to light brown, so use `data.clean: [colour]` for data with different illumination. White pixels must be lighter
    than the median of the surrounding skin (Stolz); other pixels near white have none of the six colours. Pink counts as red.
    """
    pixels = lab[mask]
    distance = np.stack([((pixels - reference) ** 2).sum(axis=1) for reference in _REFERENCE])
    nearest = distance.argmin(axis=0)
    around = skin(mask, lab)
    if len(around):
        nearest = nearest[(nearest > 0) | (pixels[:, 0] > np.median(around[:, 0]))]
    shares = np.bincount(nearest, minlength=len(SIX_COLOURS)) / len(pixels)
    return dict(zip(SIX_COLOURS, shares.tolist(), strict=True))


def skin(mask: Mask, lab: Lab) -> Lab:
    """Return the skin pixels around the lesion, CIELAB (M, 3).

    The skin is the image outside the mask (H, W), except for pixels near black.
    """
    around = lab[~mask]
    return around[around[:, 0] >= UNLIT]


def colour_features(mask: Mask, lab: Lab) -> dict[str, float]:
    """Compute C of the ABCD rule: shares and number of colours.

    The features also contain CIELAB variances. The number is at least 1: a lesion as pale as the skin, without any of the six colours, has
    one colour.
    """
    shares = six_colours(mask, lab)
    features = {f"abcd_colour_{name}_share": share for name, share in shares.items()}
    features |= {f"abcd_colour_{name}_present": float(share >= PRESENT) for name, share in shares.items()}
    variance = lab[mask].var(axis=0)
    return features | {
        "abcd_colour_count": float(max(1, sum(share >= PRESENT for share in shares.values()))),
        **{f"abcd_colour_variance_{name}": float(value) for name, value in zip("lab", variance, strict=True)},
    }


def histogram_features(image: npt.NDArray[np.uint8], mask: Mask, lab: Lab) -> dict[str, float]:
    """Compute colour histograms and CIELAB statistics of a lesion.

    Histograms of red, green and blue (8 bins of 32 values, as shares of the lesion); mean and standard deviation of L, a and b; and the
    difference to the mean of the `skin`, which depends less on illumination and skin type. NaN without visible skin.
    """
    pixels = image[mask]
    features: dict[str, float] = {}
    for number, channel in enumerate(CHANNELS):
        counts = np.bincount(pixels[:, number] // (256 // BINS), minlength=BINS) / len(pixels)
        features |= {f"colour_{channel}_bin_{bin}": float(share) for bin, share in enumerate(counts)}
    mean, spread = lab[mask].mean(axis=0), lab[mask].std(axis=0)
    around = skin(mask, lab)
    skin_mean = around.mean(axis=0) if len(around) else np.full(3, math.nan)
    for number, name in enumerate("lab"):
        features |= {
            f"colour_{name}_mean": float(mean[number]),
            f"colour_{name}_std": float(spread[number]),
            f"colour_{name}_less_skin": float(mean[number] - skin_mean[number]),
        }
    return features
