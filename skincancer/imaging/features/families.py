"""Hand-made features of one image and its lesion's mask, by family; names say what is measured and begin with their family.

Features are taken at a working size, so that texture and borders of photographs of any resolution are comparable.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Mask = npt.NDArray[np.bool_]

WORKING_SIDE = 256  # px, the longest side of every image
MASK_EMPTY = "mask_empty"
# in the table, and not learned from: pixels tell the resolution, by which sources and so their diagnoses differ; a scale is rarely known
NOT_LEARNED = ("abcd_diameter_px", "abcd_diameter_mm")


@dataclass(frozen=True)
class Lesion:
    """An image at the working size: uint8 RGB (H, W, 3), mask bool (H, W), grey uint8 (H, W), CIELAB float64 (H, W, 3).

    `scale` is px of it per px of the original, `mm_per_px` the size of a px of the original where that is known.
    """

    image: npt.NDArray[np.uint8]
    mask: Mask
    grey: npt.NDArray[np.uint8]
    lab: npt.NDArray[np.float64]
    scale: float = 1.0
    mm_per_px: float | None = None


def _abcd(lesion: Lesion) -> dict[str, float]:
    from skincancer.imaging.features.abcd import abcd_features

    return abcd_features(lesion.mask, lesion.lab, lesion.scale, lesion.mm_per_px)


def _colour(lesion: Lesion) -> dict[str, float]:
    from skincancer.imaging.features.colour import histogram_features

    return histogram_features(lesion.image, lesion.mask, lesion.lab)


def _glcm(lesion: Lesion) -> dict[str, float]:
    from skincancer.imaging.features.texture import glcm_features

    return glcm_features(lesion.grey, lesion.mask)


def _lbp(lesion: Lesion) -> dict[str, float]:
    from skincancer.imaging.features.texture import lbp_features

    return lbp_features(lesion.grey, lesion.mask)


def _hog(lesion: Lesion) -> dict[str, float]:
    from skincancer.imaging.features.texture import hog_features

    return hog_features(lesion.grey, lesion.mask)


# a family, and what measures it on a lesion whose mask is not empty; scikit-image is imported inside, as config needs the names alone
FAMILIES: dict[str, Callable[[Lesion], dict[str, float]]] = {
    "abcd": _abcd, "colour": _colour, "glcm": _glcm, "lbp": _lbp, "hog": _hog,
}  # fmt: skip


def bring_to_working_size(image: Image.Image, mask: Mask, mm_per_px: float | None = None) -> Lesion:
    """Scale an image and its mask until the longest side is `WORKING_SIDE`, its proportions kept.

    Args:
        image: RGB.
        mask: bool (H, W), of the image's size.
        mm_per_px: the size of a px of the image, where it is known.

    Raises:
        ValueError: the mask is of another size than the image.
    """
    if mask.dtype != np.bool_ or mask.shape != (image.height, image.width):
        raise ValueError(f"mask must be bool {(image.height, image.width)}, given {mask.dtype} {mask.shape}")
    scale = WORKING_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return prepare_lesion(pixels, np.asarray(small) >= 128, scale, mm_per_px)


def prepare_lesion(
    image: npt.NDArray[np.uint8], mask: Mask, scale: float = 1.0, mm_per_px: float | None = None
) -> Lesion:
    """Return an image as it is, with all that features are measured on.

    Args:
        image: uint8 RGB (H, W, 3).
        mask: bool (H, W).
        scale: px of it per px of the original.
        mm_per_px: the size of a px of the original, where it is known.

    Raises:
        ValueError: other types or shapes.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be uint8 (H, W, 3), given {image.dtype} {image.shape}")
    if mask.dtype != np.bool_ or mask.shape != image.shape[:2]:
        raise ValueError(f"mask must be bool {image.shape[:2]}, given {mask.dtype} {mask.shape}")
    from skimage.color import rgb2lab

    grey = np.asarray(Image.fromarray(image).convert("L"))
    return Lesion(image, mask, grey, rgb2lab(image), scale, mm_per_px)


def image_features(lesion: Lesion, families: Sequence[str] = tuple(FAMILIES)) -> dict[str, float]:
    """Return the features of an image: the same names in the same order for every image.

    Args:
        lesion: as `bring_to_working_size` or `prepare_lesion` makes it.
        families: of FAMILIES.

    Returns:
        `mask_empty`, 1 or 0, and a number a feature. What cannot be measured is NaN: everything where the mask is empty; parts of it
        where a lesion fills the image (there is no skin to compare with) or has too few pixels (for a distance of the co-occurrence
        matrix, or a border). Whoever learns from them fills in, from training images alone.
    """
    if not lesion.mask.any():
        return {MASK_EMPTY: 1.0, **dict.fromkeys(feature_names(families), math.nan)}
    found = {MASK_EMPTY: 0.0}
    for family in families:
        found |= {name: float(value) for name, value in FAMILIES[family](lesion).items()}
    return found


def feature_names(families: Sequence[str] = tuple(FAMILIES)) -> list[str]:
    """Return the names of the features of some families, without `mask_empty`."""
    return [name for family in families for name in _names(family)]


def learned_names(families: Sequence[str] = tuple(FAMILIES)) -> list[str]:
    """Return what classifiers take of some families, in order: `mask_empty`, and all features but `NOT_LEARNED`."""
    return [MASK_EMPTY, *(name for name in feature_names(families) if name not in NOT_LEARNED)]


@functools.cache
def _names(family: str) -> tuple[str, ...]:
    """Measure a drawn lesion for its names, so that they stand in one place alone."""
    mask = np.zeros((32, 32), dtype=bool)
    mask[8:24, 8:24] = True
    return tuple(FAMILIES[family](prepare_lesion(np.zeros((32, 32, 3), dtype=np.uint8), mask)))
