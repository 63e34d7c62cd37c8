"""Cleaning steps before cropping and resizing (`data.clean`).

The config checks the names of the steps, so OpenCV is imported only with the first cleaned image.
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

# Increase if the pixels of a step change.
FORMAT = 2


class CleaningError(Exception):
    """A failed step, with name and cause in the message."""


@dataclass(frozen=True)
class Step:
    """A cleaning step.

    Attributes:
        function: `module:function` of an RGB image.
        gives: result of the function: image; repair (image and mask of the removed artefacts); or box (kept area of the image).
        description: description in one line.
        source: authors and year of the method.
    """

    function: str
    gives: Literal["image", "repair", "box"]
    description: str
    source: str


_HERE = "skincancer.imaging.cleaning"
STEPS: dict[str, Step] = {
    "hair": Step(f"{_HERE}.hair:dull_razor", "repair", "dark and light hair removed (DullRazor)", "Lee et al. 1997"),
    "hair_blackhat": Step(
        f"{_HERE}.hair:black_hat", "repair", "dark hair removed by black-hat, threshold and inpainting", "inpainting of Telea 2004"
    ),
    "glare": Step(f"{_HERE}.glare:fill_glare", "repair", "reflections and gel bubbles filled", "Barata et al. 2012"),
    "colour": Step(
        f"{_HERE}.illumination:shades_of_grey", "image", "colour of the light removed: shades of grey, p = 6", "Finlayson and Trezzi 2004"
    ),
    "colour_grey_world": Step(f"{_HERE}.illumination:grey_world", "image", "the same by grey-world, p = 1", "Buchsbaum 1980"),
    "colour_max_rgb": Step(f"{_HERE}.illumination:max_rgb", "image", "the same by max-RGB, p = ∞", "Land and McCann 1971"),
    "contrast": Step(
        f"{_HERE}.illumination:adaptive_sigmoid", "image", "lesion darkened against the skin by a sigmoid",
        "Braun and Fairchild 1999, Otsu 1979"
    ),
    "contrast_clahe": Step(f"{_HERE}.illumination:clahe", "image", "lightness equalised in tiles (CLAHE)", "Zuiderveld 1994"),
    "frame": Step(f"{_HERE}.frame:frame_box", "box", "black border or vignette cropped", "after Gessert et al. 2020"),
}  # fmt: skip


@dataclass(frozen=True)
class StepResult:
    """Result of a cleaning step.

    Attributes:
        name: name of the step.
        image: image after the step.
        box: area of the original in the image.
        found: mask of the artefacts in the image before the step, None for a step without a mask.
    """

    name: str
    image: RGB
    box: Box
    found: Mask | None


def check_clean(names: Sequence[str]) -> None:
    """Check the names of steps.

    Raises:
        ConfigError: a step is unknown or listed twice.
    """
    for number, name in enumerate(names):
        if name not in STEPS:
            raise ConfigError(
                f"data.clean contains {name!r}, which is no cleaning step.{nearest(name, STEPS)} Use {', '.join(STEPS)}."
            )
        if name in names[:number]:
            raise ConfigError(
                f"data.clean contains {name!r} twice; expected each step at most once. Remove one of the two."
            )


def cuts(names: Sequence[str]) -> bool:
    """Return whether a step crops the image."""
    return any(STEPS[name].gives == "box" for name in names)


def describe_clean(names: Sequence[str]) -> str:
    """Return the steps as text, such as hair+colour, or none."""
    return "+".join(names) or "none"


def acts_on(image: RGB, name: str) -> bool:
    """Return whether a step finds artefacts in, or changes, an image."""
    (result,) = clean_stages(image, [name])
    return bool(result.found.any()) if result.found is not None else not np.array_equal(result.image, image)


def clean_stages(image: RGB, names: Sequence[str]) -> Iterator[StepResult]:
    """Apply steps in order, and yield the result of each step.

    Args:
        image: RGB uint8 (H, W, 3).
        names: names in `STEPS`.

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
        except Exception as error:
            # A library may raise any error for an unusual image; the error affects only this image.
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
        yield StepResult(name, image, box, found)


@functools.cache
def _load(function: str) -> Callable[[RGB], Any]:
    import cv2

    # Images are already cleaned in parallel, by the processes of the store and the threads of predict.
    cv2.setNumThreads(1)
    module, _, name = function.partition(":")
    return cast(Callable[[RGB], Any], getattr(importlib.import_module(module), name))


def clean(image: RGB, names: Sequence[str]) -> tuple[RGB, Box]:
    """Apply steps, and return the image and its original box.

    Only `frame` makes the box smaller than the original. Arguments and errors are those of `clean_stages`.
    """
    box = (0, 0, image.shape[1], image.shape[0])
    for result in clean_stages(image, names):
        image, box = result.image, result.box
    return image, box


def check_rgb(image: npt.NDArray[Any]) -> None:
    """Check that an image is RGB with 8 bits per channel.

    Raises:
        TypeError: the image is not uint8.
        ValueError: the shape is not (H, W, 3), or the image has no pixels.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"the image is {image.dtype}; expected uint8, 0 to 255.")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"the image has shape {image.shape}; expected RGB, (H, W, 3), with one pixel or more.")


def scaled(length: float, image: RGB, least: int) -> int:
    """Scale a length to an image, as an odd number of px.

    Args:
        length: px of an image with a shorter side of 450 px, as in HAM10000.
        image: image (H, W, 3).
        least: smallest result, odd.
    """
    return max(least, 2 * round((length * min(image.shape[:2]) / 450 - 1) / 2) + 1)
