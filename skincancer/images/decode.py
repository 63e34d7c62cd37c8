"""Image files to arrays. Imports Pillow and numpy alone: the store's worker processes start with this module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from skincancer.images.geometry import to_square


class BadImage(Exception):
    """A file that cannot be used; the text says why."""


def read_image(path: Path) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF rotation is applied; CMYK, grey and palette images are converted; an alpha channel is dropped.

    Raises:
        BadImage: missing, empty, truncated, no image, or more than 8 bits a channel.
    """
    image = _open(path)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise BadImage(f"has mode {image.mode} (more than 8 bits a channel); convert it to 8-bit RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_mask(path: Path) -> Image.Image:
    """Read a mask as an 8-bit image of 0 and 255; grey, palette and RGB masks are binarised at half of their range.

    Raises:
        BadImage: as `read_image`.
    """
    image = _open(path)
    if image.mode.startswith("I"):  # 16-bit PNG
        values = np.asarray(image, dtype=np.float32)
        return Image.fromarray(np.where(values > values.max() / 2, 255, 0).astype(np.uint8))
    # the brightest channel, since a luminance of pure red or blue would be below half
    grey = np.asarray(image) if image.mode == "L" else np.asarray(image.convert("RGB")).max(axis=2)
    coloured = image.mode in ("P", "RGB")  # a class colour may be dark, such as (128, 0, 0)
    threshold = grey.max() / 2 if coloured else 127 if grey.max() > 1 else 0  # some tools write 0 and 1
    return Image.fromarray(np.where(grey > threshold, 255, 0).astype(np.uint8))


def _open(path: Path) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise BadImage("is empty (0 bytes)")
        with Image.open(path) as image:
            image.load()
            # exif_transpose returns None only in place
            return ImageOps.exif_transpose(image) or image
    except FileNotFoundError as error:
        raise BadImage("does not exist") from error
    except UnidentifiedImageError as error:
        raise BadImage("is not an image") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if (
            isinstance(error, OSError) and error.errno
        ):  # permissions, network: not the file's content, so not to be kept
            raise
        raise BadImage(f"cannot be decoded: {error}") from error


def decode(
    image: Path, mask: Path | None, size: int, resize: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8] | None, int, int]:
    """Decode one image, and its mask, to the square.

    Returns:
        uint8 (S, S, 3) RGB; uint8 (S, S) in {0, 1} or None; the original's width and height, px.

    Raises:
        BadImage: unreadable, or a mask of another size than its image.
    """
    picture = read_image(image)
    square = np.asarray(to_square(picture, size, resize))
    if mask is None:
        return square, None, picture.width, picture.height
    try:
        truth = read_mask(mask)
    except BadImage as error:
        raise BadImage(f"has the mask {mask}, which {error}") from error
    if truth.size != picture.size:
        raise BadImage(f"is {picture.width}×{picture.height} px but its mask {mask} is {truth.width}×{truth.height} px")
    return square, np.asarray(to_square(truth, size, resize)) // 255, picture.width, picture.height
