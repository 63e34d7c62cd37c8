"""Read image and mask files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

ImageFile = Path | bytes  # path or content of a file
MASK_COLOURS = 1 << 16  # An image with more colours is not a mask.
CLASS_NUMBERS = 16  # Three or more values up to this one are class numbers, however rare one of them is.
# Cameras and scanners exceed the 89 megapixels at which Pillow warns. `BadImage` reports images of twice as many.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class BadImage(Exception):
    """Reason why a file cannot be used."""


def read_image(path: ImageFile) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF rotation is applied. CMYK, grey and palette images are converted. An alpha channel is dropped.

    Raises:
        BadImage: the file is missing, empty, truncated, no image, or has more than 8 bits per channel.
    """
    image = _open(path)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise BadImage(f"has mode {image.mode} (more than 8 bits per channel); convert it to 8-bit RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def read_mask(path: Path) -> Image.Image:
    """Read a mask as an 8-bit image: lesion 255, background 0.

    1-bit, grey, palette, RGB, 16-bit and float masks are accepted. Transparent pixels count as black. Values are relative to the
    brightest value of the file: 0/1 and 0/255 are the same mask, and values above 128/255 of the brightest are lesion (as in
    isic-challenge-scoring). A mask of zeros is empty, a mask of any other single value is full. Other values between the two are
    accepted if rare, as antialiased edges and traces of compression are.

    Raises:
        BadImage: as `read_image`, or the mask has more than two values or colours.
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
    if third := _third_values(np.array(scaled.histogram()), float(brightest)):
        values = [value * float(brightest) / 255 for value in third[:5]]
        shown = ", ".join(f"{round(value)}" if brightest > 1 else f"{value:.2g}" for value in values)
        raise BadImage(
            f"contains more values than 0 and {brightest:.4g}: also {shown}; write the lesion as 255 and the rest as 0"
        )
    return scaled.point([255 if value > 128 else 0 for value in range(256)])


def _grey(image: Image.Image) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Reduce a mask to one channel of values ≥ 0.

    A colour becomes its brightest component: (128, 0, 0) counts as 128.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        if not (np.isfinite(values).all() and values.min() >= 0):
            raise BadImage("contains values that are below 0 or not finite; write the lesion as 255 and the rest as 0")
        return values
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode == "L":
        return np.asarray(image)
    image = image.convert("RGB")
    counts = image.getcolors(MASK_COLOURS)
    if counts is None or not _shades_of_one(np.array([colour for _, colour in counts], dtype=np.float64)):
        raise BadImage("contains more colours than black and one other; write the lesion as 255 and the rest as 0")
    red, green, blue = image.split()
    return np.asarray(ImageChops.lighter(ImageChops.lighter(red, green), blue))


def _shades_of_one(colours: npt.NDArray[np.float64]) -> bool:
    """Return whether colours (N, 3) are shades of the brightest one."""
    brightness = colours.max(axis=1)
    lesion = colours[brightness.argmax()]
    distance = np.abs(colours * brightness.max() - brightness[:, None] * lesion).max()
    # The tolerance is an eighth of the range. Both sides are multiplied by the brightest value.
    return bool(distance <= brightness.max() ** 2 / 8)


def _third_values(histogram: npt.NDArray[np.int64], brightest: float) -> list[int]:
    """Return values of neither background nor lesion, most frequent first.

    A middle value counts if its neighbourhood covers more than 1 % of the image, because edges and noise spread thinner. A dark value
    counts if it covers more than 1 % and no value from 192 to 254 occurs: noise is at both ends of the range, whereas a class
    map contains 0, 1 and 255.
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
            # exif_transpose returns None only with in_place=True.
            return ImageOps.exif_transpose(image) or image
    except FileNotFoundError as error:
        raise BadImage("does not exist") from error
    except UnidentifiedImageError as error:
        raise BadImage("is not an image") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"is too large: {error}; scale it down") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # An error number means permissions or network. Such an error is not a fact about the content, so no cache may keep it.
        if isinstance(error, OSError) and error.errno:
            raise
        raise BadImage(f"cannot be decoded: {error}") from error


def _stream(file: ImageFile) -> Path | io.BytesIO:
    return io.BytesIO(file) if isinstance(file, bytes) else file


def count_pixels(file: ImageFile) -> int:
    """Count the pixels of an image by its header, 0 if unreadable."""
    try:
        with Image.open(_stream(file)) as image:
            return image.width * image.height
    # Pillow raises errors of many types for broken files. Decoding the file reports the reason.
    except Exception:
        return 0


def read_truth(mask: Path, image: Image.Image) -> Image.Image:
    """Read the true mask of an image, as `read_mask`.

    Raises:
        BadImage: the mask is unreadable, or has another size than the image.
    """
    try:
        truth = read_mask(mask)
    except BadImage as error:
        raise BadImage(f"has the mask {mask}, which {error}") from error
    if truth.size != image.size:
        raise BadImage(f"is {image.width}×{image.height} px but its mask {mask} is {truth.width}×{truth.height} px")
    return truth
