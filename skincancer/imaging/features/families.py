"""Hand-crafted features of a lesion, by family.

The name of a feature begins with its family. Features are computed at a working size, so that texture and borders of images of any
resolution are comparable.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.color import rgb2lab

from skincancer.imaging.features.abcd import abcd_features
from skincancer.imaging.features.colour import histogram_features
from skincancer.imaging.features.texture import glcm_features, hog_features, lbp_features

Mask = npt.NDArray[np.bool_]

# Longer side of every image, px.
WORKING_SIDE = 256
MASK_EMPTY = "mask_empty"
# Features in the table that classifiers do not use. The diameter in pixels depends on the resolution, which differs between sources and so
# between diagnoses; the scale in mm is rarely known.
NOT_LEARNED = ("abcd_diameter_px", "abcd_diameter_mm")


@dataclass(frozen=True)
class Lesion:
    """Image and mask of a lesion, with all that the features need.

    Attributes:
        image: RGB uint8 (H, W, 3).
        mask: bool (H, W).
        grey: uint8 (H, W).
        lab: CIELAB float64 (H, W, 3).
        scale: pixels of the image per pixel of the original.
        mm_per_px: size of a pixel of the original, mm; None if unknown.
    """

    image: npt.NDArray[np.uint8]
    mask: Mask
    grey: npt.NDArray[np.uint8]
    lab: npt.NDArray[np.float64]
    scale: float = 1.0
    mm_per_px: float | None = None


# Features of a lesion with a mask that is not empty. `schema.FAMILIES` has the names alone, for the check of an experiment.
FAMILIES: dict[str, Callable[[Lesion], dict[str, float]]] = {
    "abcd": lambda lesion: abcd_features(lesion.mask, lesion.lab, lesion.scale, lesion.mm_per_px),
    "colour": lambda lesion: histogram_features(lesion.image, lesion.mask, lesion.lab),
    "glcm": lambda lesion: glcm_features(lesion.grey, lesion.mask),
    "lbp": lambda lesion: lbp_features(lesion.grey, lesion.mask),
    "hog": lambda lesion: hog_features(lesion.grey, lesion.mask),
}


def bring_to_working_size(image: Image.Image, mask: Mask, mm_per_px: float | None = None) -> Lesion:
    """Resize an RGB image and its mask to `WORKING_SIDE` (longer side).

    Args:
        image: RGB image.
        mask: bool (H, W), with the size of the image.
        mm_per_px: size of a pixel of the image, mm; None if unknown.

    Raises:
        ValueError: the mask is not bool or has another size.
    """
    if mask.dtype != np.bool_ or mask.shape != (image.height, image.width):
        raise ValueError(f"mask is {mask.dtype} {mask.shape}; expected bool {(image.height, image.width)}")
    scale = WORKING_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return prepare_lesion(pixels, np.asarray(small) >= 128, scale, mm_per_px)


def prepare_lesion(
    image: npt.NDArray[np.uint8], mask: Mask, scale: float = 1.0, mm_per_px: float | None = None
) -> Lesion:
    """Compute grey and CIELAB values of an image, without resizing.

    Args:
        image: RGB uint8 (H, W, 3).
        mask: bool (H, W).
        scale: pixels of the image per pixel of the original.
        mm_per_px: size of a pixel of the original, mm; None if unknown.

    Raises:
        ValueError: image or mask has another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}; expected bool {image.shape[:2]}")
    grey = np.asarray(Image.fromarray(image).convert("L"))
    return Lesion(image, mask, grey, rgb2lab(image), scale, mm_per_px)


def image_features(lesion: Lesion, families: Sequence[str] = tuple(FAMILIES)) -> dict[str, float]:
    """Compute the features of a lesion, always in the same order.

    Args:
        lesion: result of `bring_to_working_size` or `prepare_lesion`.
        families: names in `FAMILIES`.

    Returns:
        `mask_empty` (1 or 0), and one number per feature. Unmeasurable features are NaN: all features if the mask is empty, some features
        if the lesion fills the image (no skin for comparison) or has too few pixels (for a distance of the co-occurrence matrix, or a
        border). Classifiers impute NaN from training images.
    """
    if not lesion.mask.any():
        return {MASK_EMPTY: 1.0, **dict.fromkeys(feature_names(families), math.nan)}
    features = {MASK_EMPTY: 0.0}
    for family in families:
        features |= {name: float(value) for name, value in FAMILIES[family](lesion).items()}
    return features


def feature_names(families: Sequence[str] = tuple(FAMILIES)) -> list[str]:
    """Return the feature names of families, without `mask_empty`."""
    return [name for family in families for name in _names(family)]


def learned_names(families: Sequence[str] = tuple(FAMILIES)) -> list[str]:
    """Return the input features of classifiers: `mask_empty` and all except `NOT_LEARNED`."""
    return [MASK_EMPTY, *(name for name in feature_names(families) if name not in NOT_LEARNED)]


@functools.cache
def _names(family: str) -> tuple[str, ...]:
    """Return the feature names of a family, from a synthetic lesion."""
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:24, 8:24] = True
    return tuple(FAMILIES[family](prepare_lesion(np.zeros((32, 32, 3), dtype=np.uint8), mask)))
