"""Discs painted on skin, and their ABCD features."""

import numpy as np
from skimage.color import rgb2lab

from skincancer.imaging.features.abcd import abcd_features

ROWS, COLUMNS = np.mgrid[:256, :256]
SKIN, LESION = (220, 180, 160), (120, 80, 60)


def disc(radius=60, row=128, column=128):
    return (ROWS - row) ** 2 + (COLUMNS - column) ** 2 <= radius**2


def painted(mask, lesion=LESION, skin=SKIN):
    image = np.full((*mask.shape, 3), skin, dtype=np.uint8)
    image[mask] = lesion
    return image


def abcd(image, mask, scale=1.0):
    return abcd_features(mask, rgb2lab(image), scale)
