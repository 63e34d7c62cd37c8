"""Read DICOM files of single images.

An example is dermoscopy as secondary capture (DICOM PS3.3, section A.8).
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pydicom import Dataset

# Number of the first bytes of a file, which end with the four letters of the format.
PREAMBLE = 132
MAGIC = b"DICM"


class DicomError(Exception):
    """Reason why a DICOM file cannot be read."""


def read_dicom(file: Path | BytesIO) -> npt.NDArray[np.uint8]:
    """Read the image of a DICOM file, uint8 (H, W, 3), RGB.

    Values are scaled by the number of stored bits. Windows for display are ignored.

    Raises:
        DicomError: the file contains no image, several frames or signed values, or cannot be decoded.
    """
    # pydicom raises errors of many types for broken files and for missing decoders.
    try:
        dataset = _read(file)
        frames = int(dataset.get("NumberOfFrames") or 1)
        if "PixelData" not in dataset:
            raise DicomError("contains no image (a DICOM file without pixels); remove it")
        if frames > 1:
            raise DicomError(f"contains {frames} frames; expected one image. Export the frame of interest as PNG")
        if dataset.get("PixelRepresentation"):
            raise DicomError("contains signed values; expected a photograph. Export it as PNG")
        return _to_rgb(dataset)
    except DicomError:
        raise
    except Exception as error:
        raise DicomError(f"cannot be decoded: {' '.join(str(error).split())}; export it as PNG") from error


def count_dicom_pixels(file: Path | BytesIO) -> int:
    """Return the number of pixels in the header."""
    dataset = _read(file, stop_before_pixels=True)
    return int(dataset.Rows) * int(dataset.Columns)


def _read(file: Path | BytesIO, **options: Any) -> Dataset:
    import pydicom

    return pydicom.dcmread(file, **options)


def _to_rgb(dataset: Dataset) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    # YBR is converted to RGB.
    values, kind, bits = pixel_array(dataset), str(dataset.PhotometricInterpretation), int(dataset.BitsStored)
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        bits = 8 * values.dtype.itemsize
    top = (1 << bits) - 1
    scaled = np.rint(values.astype(np.float32) * (np.float32(255) / top)).clip(0, 255).astype(np.uint8)
    if kind == "MONOCHROME1":
        scaled = 255 - scaled
    return scaled if scaled.ndim == 3 else np.repeat(scaled[..., None], 3, axis=2)
