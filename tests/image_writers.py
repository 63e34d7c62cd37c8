"""Images for tests of decoding, and files that Pillow cannot write: PNG of 16 bits, and DICOM."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

RED, GREEN, BLUE = (200, 40, 30), (20, 180, 60), (30, 50, 210)


def quadrants() -> Image.Image:
    """Create a 32×16 image that every rotation and flip changes: left red, right green above blue."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16], pixels[:8, 16:], pixels[8:, 16:] = RED, GREEN, BLUE
    return Image.fromarray(pixels)


def upright(image: Image.Image, tolerance: int = 0) -> bool:
    """Return whether an image is `quadrants()` in the middle of each colour (JPEG blurs edges)."""
    pixels = np.asarray(image).astype(int)
    wanted = {(8, 8): RED, (4, 24): GREEN, (12, 24): BLUE}
    return pixels.shape == (16, 32, 3) and all(
        abs(pixels[place] - colour).max() <= tolerance for place, colour in wanted.items()
    )


def ramps(depth: int) -> np.ndarray:
    """uint16 (32, 48, 3): colours from 0 to the largest value of a depth."""
    y, x = np.mgrid[:32, :48]
    top = 2**depth - 1
    return np.dstack([x * top // 47, y * top // 31, top - x * top // 47]).astype(np.uint16)


def write_png(path: Path, values: np.ndarray, orientation: int = 1) -> None:
    """Write a PNG of 16 bits: grey, grey with alpha, RGB or RGBA by the number of channels."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)),
        (b"eXIf", exif.tobytes()[6:]),
    ]
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def write_dicom(path: Path, values: np.ndarray, kind: str, syntax: str = "1.2.840.10008.1.2.1", **tags) -> None:
    """Write a secondary capture image."""
    import pydicom

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    dataset.PhotometricInterpretation = kind
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset["PixelData"].is_undefined_length = pydicom.uid.UID(syntax).is_compressed
    dataset.save_as(path, enforce_file_format=True)
