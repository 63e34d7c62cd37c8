"""What can be done to an image before it is cut and resized (`data.clean`): the table of steps, and doing them in order.

The names are checked long before an image is read, so OpenCV is imported only with the first image that is cleaned.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from skincancer.errors import ConfigError, nearest
from skincancer.imaging.types import RGB, Box, Mask

FORMAT = 2  # raised whenever a step gives other pixels


class CleaningError(Exception):
    """A step failed on an image; the text says which, and how."""


@dataclass(frozen=True)
class Step:
    """One step of cleaning.

    Attributes:
        function: `module:function` on an RGB image.
        gives: image; repair, an image and the mask of what was found; or box, what is kept of the image.
        description: one line.
        source: whom it is from.
    """

    function: str
    gives: Literal["image", "repair", "box"]
    description: str
    source: str


_HERE = "skincancer.imaging.cleaning"
STEPS: dict[str, Step] = {
    "hair": Step(f"{_HERE}.hair:dull_razor", "repair", "dark and light hair shaved off (DullRazor)", "Lee et al. 1997"),
    "hair_blackhat": Step(
        f"{_HERE}.hair:black_hat", "repair", "dark hair shaved off by black-hat, threshold and inpainting", "inpainting of Telea 2004"
    ),
    "glare": Step(f"{_HERE}.glare:fill_glare", "repair", "reflections and gel bubbles filled", "Barata et al. 2012"),
    "colour": Step(
        f"{_HERE}.illumination:shades_of_grey", "image", "colour of the light taken out: shades of grey, p = 6", "Finlayson and Trezzi 2004"
    ),
    "colour_grey_world": Step(f"{_HERE}.illumination:grey_world", "image", "the same by grey-world, p = 1", "Buchsbaum 1980"),
    "colour_max_rgb": Step(f"{_HERE}.illumination:max_rgb", "image", "the same by max-RGB, p = ∞", "Land and McCann 1971"),
    "contrast": Step(
        f"{_HERE}.illumination:adaptive_sigmoid", "image", "lesion darkened against the skin by a sigmoid",
        "Braun and Fairchild 1999, Otsu 1979"
    ),
    "contrast_clahe": Step(f"{_HERE}.illumination:clahe", "image", "lightness equalised in tiles (CLAHE)", "Zuiderveld 1994"),
    "frame": Step(f"{_HERE}.frame:frame_box", "box", "black border or vignette cut away", "after Gessert et al. 2020"),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """What one step did: the image after it; the box of the original that it shows; what was found in the image before it."""

    name: str
    image: RGB
    box: Box
    found: Mask | None


def check_clean(names: Sequence[str]) -> None:
    """Check a list of steps.

    Raises:
        ConfigError: an unknown one, or one twice.
    """
    for number, name in enumerate(names):
        if name not in STEPS:
            raise ConfigError(
                f"data.clean names {name!r}, which is no step of cleaning.{nearest(name, STEPS)} Steps: {', '.join(STEPS)}."
            )
        if name in names[:number]:
            raise ConfigError(f"data.clean names {name!r} twice; give each step once, in the order to do them.")


def cuts(names: Sequence[str]) -> bool:
    """Say whether steps cut something off, so that an image shows a box of its original."""
    return any(STEPS[name].gives == "box" for name in names)


def describe_clean(names: Sequence[str]) -> str:
    """Return the steps in their order, such as hair+colour; none where there is none."""
    return "+".join(names) or "none"


def acts_on(image: RGB, name: str) -> bool:
    """Say whether a step finds something in an image, or where it looks for nothing, changes it."""
    (stage,) = clean_stages(image, [name])
    return bool(stage.found.any()) if stage.found is not None else not np.array_equal(stage.image, image)


def clean_stages(image: RGB, names: Sequence[str]) -> Iterator[Stage]:
    """Do steps in order.

    Args:
        image: uint8 (H, W, 3), RGB.
        names: of `STEPS`.

    Yields:
        What each step did.

    Raises:
        CleaningError: a step failed.
        TypeError, ValueError: as `check_rgb`.
    """
    check_rgb(image)
    box = (0, 0, image.shape[1], image.shape[0])
    for name in names:
        step, found = STEPS[name], None
        try:
            result = _load(step.function)(image)
        except MemoryError:
            raise
        except Exception as error:  # whatever a library makes of an image: it is told, and costs that image alone
            raise CleaningError(f"cannot be cleaned: {name} failed: {type(error).__name__}: {error}") from error
        if step.gives == "box":
            left, top, right, bottom = result
            found = np.ones(image.shape[:2], np.bool_)
            found[top:bottom, left:right] = False
            image = np.ascontiguousarray(image[top:bottom, left:right])
            box = (box[0] + left, box[1] + top, box[0] + right, box[1] + bottom)
        elif step.gives == "repair":
            image, found = result
        else:
            image = result
        yield Stage(name, image, box, found)


@functools.cache
def _load(function: str) -> Callable[[RGB], Any]:
    import cv2

    cv2.setNumThreads(
        1
    )  # images are cleaned beside each other already, by the store's processes and in predict's threads
    module, _, name = function.partition(":")
    return cast(Callable[[RGB], Any], getattr(importlib.import_module(module), name))


def clean(image: RGB, names: Sequence[str]) -> tuple[RGB, Box]:
    """Do steps in order; return the image, and the box of the original that it shows: all of it but for `frame`.

    Args, Raises: as `clean_stages`.
    """
    box = (0, 0, image.shape[1], image.shape[0])
    for stage in clean_stages(image, names):
        image, box = stage.image, stage.box
    return image, box


def check_rgb(image: npt.NDArray[Any]) -> None:
    """Refuse what is no RGB image of 8 bits.

    Raises:
        TypeError: it is not uint8.
        ValueError: its shape is not (H, W, 3), or it holds no pixel.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"the image is {image.dtype}; it must be uint8, 0 to 255.")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"the image has shape {image.shape}; it must be RGB, (H, W, 3), of one pixel or more.")


def scaled(length: float, image: RGB, least: int) -> int:
    """Return an odd length, px, in the measure of the image.

    Args:
        length: px of an image whose shorter side is 450 px, as those of HAM10000 are.
        image: (H, W, 3).
        least: what it never falls below; odd.
    """
    return max(least, 2 * round((length * min(image.shape[:2]) / 450 - 1) / 2) + 1)
