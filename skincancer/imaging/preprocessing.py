"""Preprocess image files to squares, and resize maps back.

Worker processes of the store import this module first. Without cleaning it imports no OpenCV, so that they start fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from skincancer.imaging.cleaning.steps import FORMAT, CleaningError, check_clean, clean, cuts
from skincancer.imaging.crop import EMPTY, Crop, widen_box
from skincancer.imaging.decode import BadImage, ImageFile, read_image, read_truth
from skincancer.imaging.geometry import from_square, to_square
from skincancer.imaging.mask_operations import mask_extent, otsu_mask
from skincancer.imaging.types import RGB, Box


class View(NamedTuple):
    """Size of an original (px), and the box that a square shows."""

    width: int
    height: int
    box: Box


class Square(NamedTuple):
    """One preprocessed image.

    Attributes:
        pixels: uint8 (S, S, 3), RGB.
        mask: true mask, uint8 (S, S) in {0, 1}. None for crops and for images without a mask.
        view: box of the original that the square shows.
        source: mask source of a crop, `EMPTY` if the mask contains no lesion, "" for whole images.
    """

    pixels: RGB
    mask: npt.NDArray[np.uint8] | None
    view: View
    source: str = ""


@dataclass(frozen=True)
class Preprocessing:
    """Steps from an image file to a square: clean, crop, resize.

    Args:
        size: side of the square, px.
        resize: stretch, pad or crop, as in `imaging.geometry`.
        clean: names of cleaning steps.
        crop: crop to the lesion, None for whole images.
    """

    size: int
    resize: str
    clean: tuple[str, ...] = ()
    crop: Crop | None = None

    @classmethod
    def from_config(cls, data: Mapping[str, Any], masks: str | None = None) -> Preprocessing:
        """Read the data section of an experiment, with the keys of `DataConfig`.

        Args:
            data: data section.
            masks: name of the mask source of the crops, None for whole images.

        Raises:
            ConfigError: a cleaning step is unknown.
        """
        steps = tuple(data.get("clean", ()))
        check_clean(steps)
        crop = None if masks is None else Crop(masks, float(data["crop_margin"]))
        return cls(int(data["size"]), str(data["resize"]), steps, crop)

    @property
    def shows_boxes(self) -> bool:
        """Whether cropping or cleaning may remove a part of the original."""
        return self.crop is not None or cuts(self.clean)

    def recipe(self) -> dict[str, Any]:
        """Return the part of a store's key that describes the pixels."""
        crop = {"crop": asdict(self.crop)} if self.crop else {}
        return {"size": self.size, "resize": self.resize, **crop, **clean_recipe(self.clean)}

    def apply(self, file: ImageFile, mask: Path | Box | None = None) -> Square:
        """Preprocess one image and its mask.

        An image with an empty mask is not cropped.

        Args:
            file: image file.
            mask: file of the true mask, or box of a segmenter's mask of the original (None if the mask is empty).

        Raises:
            BadImage: a file cannot be used, mask and image differ in size, or a cleaning step failed.
        """
        original = read_image(file)
        source = self.crop.masks if self.crop else ""
        if source == "auto":
            source = "otsu" if mask is None else "truth"
        truth = read_truth(mask, original) if isinstance(mask, Path) and source in ("", "truth") else None
        cleaned, frame = clean_image(original, self.clean)
        if self.crop is None:
            inside = None if truth is None else self._resize(truth.crop(frame)) // 255
            return Square(self._resize(cleaned), inside, View(*original.size, frame))
        left, top = frame[:2]
        if source == "otsu":
            dark = mask_extent(otsu_mask(cleaned))
            extent = (dark[0] + left, dark[1] + top, dark[2] + left, dark[3] + top) if dark else None
        elif truth is not None:
            # The whole mask counts, also pixels that a cleaning step cut away.
            extent = mask_extent(np.asarray(truth) > 0)
        else:
            assert not isinstance(mask, Path)
            extent = mask
        box = widen_box(extent, frame, self.crop.margin) if extent else None
        crop = cleaned.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top)) if box else cleaned
        return Square(self._resize(crop), None, View(*original.size, box or frame), source if box else EMPTY)

    def restore(self, probability: npt.NDArray[np.float32], view: View) -> npt.NDArray[np.float32]:
        """Resize probabilities, float32 (S, S), to the original, float32 (height, width).

        Probabilities are 0 outside the box of the view.
        """
        left, top, right, bottom = view.box
        # Bilinear weights may sum to a little more than 1.
        inside = from_square(probability, right - left, bottom - top, self.resize).clip(0, 1)
        if inside.shape == (view.height, view.width):
            return inside
        original = np.zeros((view.height, view.width), np.float32)
        original[top:bottom, left:right] = inside
        return original

    def _resize(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        return np.asarray(to_square(image, self.size, self.resize))


def clean_recipe(steps: Sequence[str]) -> dict[str, Any]:
    """Return the part of a key that describes cleaning, {} without steps."""
    return {"clean": list(steps), "clean_format": FORMAT} if steps else {}


def clean_image(image: Image.Image, steps: Sequence[str]) -> tuple[Image.Image, Box]:
    """Return the cleaned image, and its box of the original.

    Raises:
        BadImage: a step failed.
    """
    if not steps:
        return image, (0, 0, image.width, image.height)
    try:
        pixels, box = clean(np.asarray(image), steps)
    except CleaningError as error:
        raise BadImage(str(error)) from error
    return Image.fromarray(pixels), box
