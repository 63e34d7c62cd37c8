"""Read image and mask files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

ImageFile = Path | bytes  # where a file lies, or what it holds

MASK_COLOURS = 1 << 16  # a picture of more is no mask
CLASS_NUMBERS = 16  # three values up to this are numbers of classes, however rare one is

# Pillow warns from 89 megapixels on, which photographs and scans have, and refuses from twice as many, which we tell as a bad file
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class BadImage(Exception):
    """A file that cannot be used; the text says why."""


def read_image(path: ImageFile) -> Image.Image:
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
    """Read a mask as an 8-bit image of 0 and 255: dark is outside the lesion, one brighter value or colour inside.

    1-bit, grey, palette, RGB, 16-bit and float masks are taken; transparent pixels count as black. Values are seen relative to
    the brightest one of the file, so 0/1 and 0/255 are alike, and what is above 128/255 of it is lesion (as in
    isic-challenge-scoring). A mask of zeros is empty; one of any other single value is full. Between the two values a
    file may hold others as long as they are rare: antialiased edges, traces of compression.

    Raises:
        BadImage: as `read_image`; or more values, or colours, than two.
    """
    image = _open(path)
    if image.mode == "1":
        return image.convert("L")
    grey = _grey(image)
    brightest = grey.max()
    if not brightest:
        return Image.fromarray(np.zeros(grey.shape, np.uint8))
    if grey.dtype != np.uint8 or brightest != 255:
        grey = np.rint(grey * (np.float32(255) / brightest)).astype(np.uint8)
    scaled = Image.fromarray(grey)
    third = _third_value(np.array(scaled.histogram()), float(brightest))
    if third:
        values = [value * float(brightest) / 255 for value in third[:5]]
        shown = ", ".join(f"{round(value)}" if brightest > 1 else f"{value:.2g}" for value in values)
        raise BadImage(
            f"holds more than a lesion of {brightest:.4g} on 0: also {shown}; write the lesion as 255 and the rest as 0"
        )
    return scaled.point([255 if value > 128 else 0 for value in range(256)])


def _grey(image: Image.Image) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Reduce a mask to one channel of values ≥ 0: of a colour its brightest component, so that (128, 0, 0) counts as 128."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        if not (np.isfinite(values).all() and values.min() >= 0):
            raise BadImage("holds values below 0 or not finite; write the lesion as 255 and the rest as 0")
        return values
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode == "L":
        return np.asarray(image)
    image = image.convert("RGB")
    counted = image.getcolors(MASK_COLOURS)
    if counted is None or not _one_colour(np.array([colour for _, colour in counted], dtype=np.float64)):
        raise BadImage("holds more colours than black and one other; write the lesion as 255 and the rest as 0")
    red, green, blue = image.split()
    return np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue))


def _one_colour(colours: npt.NDArray[np.float64]) -> bool:
    """Say whether colours (N, 3) are shades of one, of which white is one: all near its line from black."""
    brightness = colours.max(axis=1)
    lesion = colours[brightness.argmax()]
    distance = np.abs(colours * brightness.max() - brightness[:, None] * lesion).max()
    return bool(distance <= brightness.max() ** 2 / 8)  # an eighth of the range, both sides times the brightest


def _third_value(histogram: npt.NDArray[np.int64], brightest: float) -> list[int]:
    """Return the values of 0–255 that are neither background nor lesion, the most frequent first.

    In the middle of the range they are those that fill, with their neighbours, more than a hundredth of the image: edges and
    noise spread thinner. Of the dark ones they are those that fill as much where no light one is by: noise is at both ends,
    while a table of classes holds 0, 1 and 255.
    """
    used = np.flatnonzero(histogram)
    if len(used) == 1 or (len(used) == 2 and used[0] <= 128):
        return []
    if len(used) > 2 and 1 < brightest <= CLASS_NUMBERS:
        third = used[1:-1]
    else:
        much = histogram.sum() / 100
        neighbours = np.add.reduceat(histogram, range(0, 256, 16))
        middle = used[(used >= 64) & (used < 192)]
        dark = used[1:][used[1:] < 64]
        third = middle[neighbours[middle // 16] > much]
        if not histogram[192:255].any():
            third = np.append(third, dark[histogram[dark] > much])
    return [int(value) for value in third[np.argsort(-histogram[third], kind="stable")]]


def _open(path: ImageFile) -> Image.Image:
    try:
        if not (len(path) if isinstance(path, bytes) else path.stat().st_size):
            raise BadImage("is empty (0 bytes)")
        with Image.open(_stream(path)) as image:
            image.load()
            # exif_transpose returns None only in place
            return ImageOps.exif_transpose(image) or image
    except FileNotFoundError as error:
        raise BadImage("does not exist") from error
    except UnidentifiedImageError as error:
        raise BadImage("is not an image") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"is too large: {error}; scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if (
            isinstance(error, OSError) and error.errno
        ):  # permissions, network: not the file's content, so not to be kept
            raise
        raise BadImage(f"cannot be decoded: {error}") from error


def _stream(file: ImageFile) -> Path | io.BytesIO:
    return io.BytesIO(file) if isinstance(file, bytes) else file


def count_pixels(file: ImageFile) -> int:
    """Return how many pixels an image has, from its header; 0 if that cannot be read, which decoding will explain."""
    try:
        with Image.open(_stream(file)) as image:
            return image.width * image.height
    except Exception:  # whatever a foreign file makes Pillow trip over
        return 0


def read_truth(mask: Path, picture: Image.Image) -> Image.Image:
    """Read the mask of a picture, as `read_mask`.

    Raises:
        BadImage: unreadable, or of another size than its picture.
    """
    try:
        truth = read_mask(mask)
    except BadImage as error:
        raise BadImage(f"has the mask {mask}, which {error}") from error
    if truth.size != picture.size:
        raise BadImage(f"is {picture.width}×{picture.height} px but its mask {mask} is {truth.width}×{truth.height} px")
    return truth
