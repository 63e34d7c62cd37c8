"""Read image and mask files."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from skincancer.errors import DataError
from skincancer.imaging.dicom import MAGIC, PREAMBLE, DicomError, count_dicom_pixels, read_dicom
from skincancer.imaging.formats import EXTRAS, install_command, is_installed

ImageFile = Path | bytes  # path or content of a file
MASK_COLOURS = 1 << 16  # An image with more colours is not a mask.
CLASS_NUMBERS = 16  # Three or more values up to this one are class numbers, however rare one of them is.
DEPTHS = (8, 10, 12, 14, 16)  # Bits of the values that cameras and scanners store in 16 bits.
# Major brands of HEIF files with HEVC images (ISO/IEC 23008-12, annex B).
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Endings of formats that may have more than 8 bits per channel. Those of extras were not read by older versions.
_MAYBE_DEEP = (".png", ".tif", ".tiff", ".jp2", ".j2k", ".ppm", ".pgm", ".pnm")
# Numbers of TIFF and EXIF tags.
_BITS, _PHOTOMETRIC, _ORIENTATION, _PLANES = 258, 262, 274, 284
# Cameras and scanners exceed the 89 megapixels at which Pillow warns. `BadImage` reports images of twice as many.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class BadImage(Exception):
    """Reason why a file cannot be used."""


class MissingExtra(DataError):
    """A file that only an extra reads, which is not installed.

    Unlike `BadImage`, this is not a fact about the file, so that no cache keeps it.
    """


def read_image(path: ImageFile) -> Image.Image:
    """Read an image as upright 8-bit RGB.

    EXIF rotation is applied. CMYK, grey and palette images are converted. An alpha channel is dropped. Values of 16 bits are scaled
    by their depth: the smallest of `DEPTHS` that holds the brightest value of the image, as cameras store 12 bits in 16.

    Raises:
        BadImage: the file is missing, empty, truncated, no image, an animation, or has 32 bits per channel.
        MissingExtra: the format needs an extra that is not installed.
    """
    image = _open(path)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray(_scale_depth(np.asarray(image)))
    if image.mode in ("I", "F"):
        raise BadImage(f"has mode {image.mode} (32 bits per channel, of unknown range); convert it to 8-bit RGB")
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


def open_image(file: ImageFile) -> Image.Image:
    """Open an image file as Pillow does, also HEIC and DICOM by their extras.

    Raises:
        UnidentifiedImageError, OSError: as `Image.open`.
        BadImage: a DICOM file cannot be read.
        MissingExtra: the format needs an extra that is not installed.
    """
    try:
        return Image.open(_stream(file))
    except UnidentifiedImageError:
        extra = _needed_extra(file)
        if not extra:
            raise
        if not is_installed(extra):
            name = "" if isinstance(file, bytes) else f"{file} "
            raise MissingExtra(f"{name}needs the extra {extra}; install it: {install_command(extra)}") from None
        if extra == "dicom":
            try:
                return Image.fromarray(read_dicom(_stream(file)))
            except DicomError as error:
                raise BadImage(str(error)) from error
        import pillow_heif

        pillow_heif.register_heif_opener()
        return Image.open(_stream(file))


def _needed_extra(file: ImageFile) -> str:
    """Return the extra that reads a file, by its first bytes, or ""."""
    if isinstance(file, bytes):
        start = file[:PREAMBLE]
    else:
        with file.open("rb") as stream:
            start = stream.read(PREAMBLE)
    if start.endswith(MAGIC) and len(start) == PREAMBLE:
        return "dicom"
    return "heic" if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS else ""


def _open(path: ImageFile) -> Image.Image:
    try:
        if not (len(path) if isinstance(path, bytes) else path.stat().st_size):
            raise BadImage("is empty (0 bytes)")
        with open_image(path) as image:
            if image.format == "GIF" and getattr(image, "n_frames", 1) > 1:
                raise BadImage("is an animation; expected one image. Save the frame of interest as PNG")
            if _is_deep(image) and not image.mode.startswith(("I", "F")):
                return _read_deep(path, image)
            inverted = image.mode.startswith("I;16") and image.format == "TIFF" and _tag(image, _PHOTOMETRIC) == 0
            kind = image.format
            image.load()
            # exif_transpose returns None only with in_place=True.
            upright = ImageOps.exif_transpose(image) or image
            if inverted:
                upright = Image.fromarray(_top(np.asarray(upright)) - np.asarray(upright))
            upright.format = kind
            return upright
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


def _tag(image: Image.Image, number: int) -> Any:
    return getattr(image, "tag_v2", {}).get(number)


def _is_deep(image: Image.Image) -> bool:
    """Return whether an opened image has more than 8 bits per channel.

    The image must not be loaded, because loading removes the facts.
    """
    tile = str(getattr(image, "tile", ""))
    # Pillow scales other depths of PPM and JPEG 2000 itself.
    if image.format == "PPM" and tile.endswith("65535))]"):
        return True
    if image.format == "JPEG2000" and _jpeg2000_depth(image) == 16:
        return True
    return max(_tag(image, _BITS) or (8,)) > 8 or image.mode.startswith("I") or ";16" in tile


def _jpeg2000_depth(image: Image.Image) -> int:
    """Return the bits per channel of a JPEG 2000 image (ISO/IEC 15444-1, marker SIZ)."""
    stream: Any = getattr(image, "fp", None)
    place = stream.tell()
    stream.seek(0)
    start = stream.read(1 << 16)
    stream.seek(place)
    _, marker, header = start.partition(b"\xff\x4f\xff\x51")
    return (header[38] & 0x7F) + 1 if marker and len(header) > 38 else 8


def _read_deep(file: ImageFile, image: Image.Image) -> Image.Image:
    """Read a colour image of 16 bits per channel.

    Pillow keeps only the upper 8 bits.

    Args:
        image: opened image, not loaded.
    """
    if image.mode not in ("RGB", "RGBA", "RGBX") or "RGBa" in str(getattr(image, "tile", "")):
        raise BadImage(f"has mode {image.mode} with 16 bits per channel, which is not read; convert it to 8-bit RGB")
    is_planar, is_turned = _tag(image, _PLANES) == 2, image.format == "TIFF" and _tag(image, _PLANES) != 2
    orientation = _tag(image, _ORIENTATION)
    # Pillow reports truncated files, which the other libraries may fill with zeros.
    image.load()
    orientation = orientation or image.getexif().get(_ORIENTATION, 1)
    content = file if isinstance(file, bytes) else file.read_bytes()
    try:
        values = _read_planes(content) if is_planar else _read_channels(content)
    except MemoryError:
        raise
    # These libraries raise errors of many types.
    except Exception as error:
        raise BadImage(f"cannot be decoded: {error}; convert it to 8-bit RGB") from error
    if values.dtype != np.uint16 or values.ndim != 3 or values.shape[2] not in (3, 4):
        raise BadImage(f"contains values {values.dtype} {values.shape}; convert it to 8-bit RGB")
    colour = _scale_depth(values[..., :3])
    if values.shape[2] == 4:
        colour = np.dstack([colour, _scale_depth(values[..., 3])])
    scaled = Image.fromarray(colour)
    # OpenCV applies the orientation of TIFF files.
    if not is_turned:
        scaled.getexif()[_ORIENTATION] = orientation
    return ImageOps.exif_transpose(scaled) or scaled


def _read_channels(content: bytes) -> npt.NDArray[Any]:
    """Read an image with OpenCV, (H, W, C) in the order RGBA."""
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("OpenCV cannot read its 16 bits per channel")
    return values[..., [2, 1, 0, 3][: values.shape[2]]] if values.ndim == 3 else values


def _read_planes(content: bytes) -> npt.NDArray[Any]:
    """Read a TIFF with separate planes, which OpenCV mixes up, (H, W, C)."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        planes: npt.NDArray[Any] = file.pages[0].asarray()
    return np.moveaxis(planes, 0, -1)


def _top(values: npt.NDArray[Any]) -> int:
    """Return the largest value of the depth of an image."""
    brightest = int(values.max())
    return next(2**bits - 1 for bits in DEPTHS if brightest < 2**bits)


def _scale_depth(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale values of up to 16 bits to 8 bits by their depth."""
    top = _top(values)
    return ((values.astype(np.uint32) * 510 + top) // (2 * top)).astype(np.uint8)


def count_pixels(file: ImageFile) -> int:
    """Count the pixels of an image by its header, 0 if unreadable."""
    # Pillow and pydicom raise errors of many types for broken files. Decoding the file reports the reason.
    try:
        try:
            with Image.open(_stream(file)) as image:
                return image.width * image.height
        except UnidentifiedImageError:
            if _needed_extra(file) == "dicom":
                return count_dicom_pixels(_stream(file))
            with open_image(file) as image:
                return image.width * image.height
    except Exception:
        return 0


def decoding(path: Path) -> str:
    """Return the part of a cache key that describes the decoding of a file.

    The part is "" if older versions decoded the file as today. They read 16-bit images otherwise or not at all, and no files of extras.
    """
    suffix = path.suffix.lower()
    if suffix in EXTRAS:
        return "extra"
    if suffix not in _MAYBE_DEEP:
        return ""
    try:
        if suffix == ".png":
            with path.open("rb") as stream:
                start = stream.read(25)
            # The depth is in the header of a PNG file, at a fixed place.
            return "deep" if start[1:4] == b"PNG" and start[24:] == b"\x10" else ""
        with Image.open(path) as image:
            return "deep" if _is_deep(image) else ""
    # Decoding the file reports the reason.
    except Exception:
        return ""


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
