"""Colours of a lesion: the six of dermoscopy, their spread in CIELAB, and histograms. Masks are not empty."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2lab

Mask = npt.NDArray[np.bool_]
Lab = npt.NDArray[np.float64]

# The six colours of Stolz's rule. He names them without numbers; these values, RGB in 0-255, are those that automatic scoring commonly
# takes (such as Cavalcanti and Scharcanski, Comput Med Imaging Graph 35:481-491, 2011).
SIX_COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (204, 51, 51),
    "light_brown": (153, 102, 0),
    "dark_brown": (51, 0, 0),
    "blue_grey": (51, 153, 153),
    "black": (0, 0, 0),
}
PRESENT = 0.05  # share of the lesion from which a colour counts as present; our choice: less is glare, hair or an edge
UNLIT = 15.0  # L of CIELAB (0-100) below which a pixel around the lesion is a vignette, a frame or a hair, and no skin
BINS = 8
CHANNELS = ("red", "green", "blue")
_REFERENCE = rgb2lab(np.array([list(SIX_COLOURS.values())], dtype=np.uint8))[0]


def six_colours(mask: Mask, lab: Lab) -> dict[str, float]:
    """Return the share of the lesion that each of the six colours has: every pixel is of the one nearest to it in CIELAB.

    The colours are taken as the image has them: under a reddish light a common brown nevus, and its skin, are nearer to red than to
    light brown (so `data.clean: [colour]` first, where lights differ). White counts only where it is lighter than the skin around
    (Stolz), the median of it; what is nearest to white and not lighter than the skin is none of the six. Pink counts as red.

    Args:
        mask: bool (H, W).
        lab: CIELAB (H, W, 3).
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
    """Return the pixels of the skin around the lesion, CIELAB (M, 3): the rest of the image but for what is near black.

    Args:
        mask: bool (H, W).
        lab: CIELAB (H, W, 3).
    """
    around = lab[~mask]
    return around[around[:, 0] >= UNLIT]


def colour_features(mask: Mask, lab: Lab) -> dict[str, float]:
    """Return C of the ABCD rule: the share of each of the six colours, whether it is present, their count, and variances in CIELAB.

    The count is 1 at least: a lesion as pale as the skin, in which none of the six is present, has that one colour.
    """
    shares = six_colours(mask, lab)
    found = {f"abcd_colour_{name}_share": share for name, share in shares.items()}
    found |= {f"abcd_colour_{name}_present": float(share >= PRESENT) for name, share in shares.items()}
    variance = lab[mask].var(axis=0)
    return found | {
        "abcd_colour_count": float(max(1, sum(share >= PRESENT for share in shares.values()))),
        **{f"abcd_colour_variance_{name}": float(value) for name, value in zip("lab", variance, strict=True)},
    }


def histogram_features(image: npt.NDArray[np.uint8], mask: Mask, lab: Lab) -> dict[str, float]:
    """Return the lesion's colours as numbers.

    Histograms of red, green and blue (8 bins of 32 values, as shares of the lesion); mean and standard deviation of L, a and b; and
    the mean's distance from that of the `skin` around, which lighting and skin type change less; NaN where there is none to be seen.

    Args:
        image: uint8 RGB (H, W, 3).
        mask: bool (H, W).
        lab: the image in CIELAB (H, W, 3).
    """
    pixels = image[mask]
    found: dict[str, float] = {}
    for number, channel in enumerate(CHANNELS):
        counts = np.bincount(pixels[:, number] // (256 // BINS), minlength=BINS) / len(pixels)
        found |= {f"colour_{channel}_bin_{bin}": float(share) for bin, share in enumerate(counts)}
    mean, spread = lab[mask].mean(axis=0), lab[mask].std(axis=0)
    around = skin(mask, lab)
    beside = around.mean(axis=0) if len(around) else np.full(3, math.nan)
    for number, name in enumerate("lab"):
        found |= {
            f"colour_{name}_mean": float(mean[number]),
            f"colour_{name}_std": float(spread[number]),
            f"colour_{name}_less_skin": float(mean[number] - beside[number]),
        }
    return found
