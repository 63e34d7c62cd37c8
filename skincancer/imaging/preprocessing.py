"""Preprocessing: image files to squares, and maps back to the original size.

The store's worker processes start with this module: it imports Pillow, numpy and scipy, and OpenCV only when an image is cleaned.
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
from skincancer.imaging.crop import EMPTY, Crop, widen
from skincancer.imaging.decode import BadImage, ImageFile, read_image, read_truth
from skincancer.imaging.geometry import from_square, to_square
from skincancer.imaging.mask_operations import mask_extent, otsu_mask
from skincancer.imaging.types import RGB, Box


class View(NamedTuple):
    """Part of an original image that a square shows.

    Attributes:
        width: of the original, px.
        height: of the original, px.
        box: part of the original, px.
    """

    width: int
    height: int
    box: Box


class Square(NamedTuple):
    """One preprocessed image.

    Attributes:
        pixels: uint8 (S, S, 3), RGB.
        mask: true mask, uint8 (S, S) in {0, 1}; None of crops and of images without a mask.
        view: part of the original that the square shows.
        source: mask source of a crop, `EMPTY` if the mask contains no lesion; "" of whole images.
    """

    pixels: RGB
    mask: npt.NDArray[np.uint8] | None
    view: View
    source: str = ""


@dataclass(frozen=True)
class Preprocessing:
    """Steps from an image file to a square, in this order: clean, crop, resize.

    Args:
        size: side of the square, px.
        resize: stretch, pad or crop.
        clean: names of cleaning steps.
        crop: cut each image to its lesion; None to keep whole images.
    """

    size: int
    resize: str
    clean: tuple[str, ...] = ()
    crop: Crop | None = None

    @classmethod
    def from_config(cls, data: Mapping[str, Any], masks: str | None = None) -> Preprocessing:
        """Read the data section of an experiment.

        Args:
            data: the section, with the keys of `DataConfig`.
            masks: name of the mask source that crops the images; None to keep whole images.

        Raises:
            ConfigError: a cleaning step is unknown.
        """
        steps = tuple(data.get("clean", ()))
        check_clean(steps)
        crop = None if masks is None else Crop(masks, float(data["crop_margin"]))
        return cls(int(data["size"]), str(data["resize"]), steps, crop)

    @property
    def shows_boxes(self) -> bool:
        """Whether a square may show a part of the original only, apart from `resize`."""
        return self.crop is not None or cuts(self.clean)

    def recipe(self) -> dict[str, Any]:
        """Return the part of a store's key that describes the pixels."""
        crop = {"crop": asdict(self.crop)} if self.crop else {}
        return {"size": self.size, "resize": self.resize, **crop, **clean_recipe(self.clean)}

    def apply(self, file: ImageFile, mask: Path | Box | None = None) -> Square:
        """Preprocess one image, and its mask alike.

        An image with an empty mask is not cropped.

        Args:
            file: of the image.
            mask: file of the true mask, or the extent of a segmenter's mask of the original, None if that mask is empty.

        Raises:
            BadImage: a file cannot be used, the mask has another size than its image, or a cleaning step failed.
        """
        original = read_image(file)
        source = self.crop.masks if self.crop else ""
        if source == "auto":
            source = "otsu" if mask is None else "truth"
        truth = read_truth(mask, original) if isinstance(mask, Path) and source in ("", "truth") else None
        picture, frame = clean_picture(original, self.clean)
        if self.crop is None:
            inside = None if truth is None else self._resized(truth.crop(frame)) // 255
            return Square(self._resized(picture), inside, View(*original.size, frame))
        left, top = frame[:2]
        if source == "otsu":
            dark = mask_extent(otsu_mask(picture))
            extent = (dark[0] + left, dark[1] + top, dark[2] + left, dark[3] + top) if dark else None
        elif truth is not None:
            # The whole mask counts, also pixels that a cleaning step cut away.
            extent = mask_extent(np.asarray(truth) > 0)
        else:
            assert not isinstance(mask, Path)
            extent = mask
        box = widen(extent, frame, self.crop.margin) if extent else None
        shown = picture.crop((box[0] - left, box[1] - top, box[2] - left, box[3] - top)) if box else picture
        return Square(self._resized(shown), None, View(*original.size, box or frame), source if box else EMPTY)

    def restore(self, probability: npt.NDArray[np.float32], view: View) -> npt.NDArray[np.float32]:
        """Bring probabilities float32 (S, S) to the original size, float32 (height, width).

        Outside the box of the view, they are 0.
        """
        left, top, right, bottom = view.box
        # Bilinear weights may sum to a little more than 1.
        inside = from_square(probability, right - left, bottom - top, self.resize).clip(0, 1)
        if inside.shape == (view.height, view.width):
            return inside
        original = np.zeros((view.height, view.width), np.float32)
        original[top:bottom, left:right] = inside
        return original

    def _resized(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        return np.asarray(to_square(image, self.size, self.resize))


def clean_recipe(steps: Sequence[str]) -> dict[str, Any]:
    """Return the part of a key that describes cleaning, {} without steps."""
    return {"clean": list(steps), "clean_format": FORMAT} if steps else {}


def clean_picture(picture: Image.Image, steps: Sequence[str]) -> tuple[Image.Image, Box]:
    """Return a cleaned image, and the box of the original that it shows.

    Raises:
        BadImage: a step failed.
    """
    if not steps:
        return picture, (0, 0, picture.width, picture.height)
    try:
        pixels, box = clean(np.asarray(picture), steps)
    except CleaningError as error:
        raise BadImage(str(error)) from error
    return Image.fromarray(pixels), box
