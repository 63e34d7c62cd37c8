"""Names of image files: endings that are read, and the extras that some need."""

from __future__ import annotations

import functools
import importlib.util
from os.path import splitext

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".gif", ".jp2", ".j2k",
    ".ppm", ".pgm", ".pnm",
)  # fmt: skip
# Extra of the package that reads an ending, and the module that the extra installs.
EXTRAS = {".heic": "heic", ".heif": "heic", ".hif": "heic", ".dcm": "dicom", ".dicom": "dicom"}
MODULES = {"heic": "pillow_heif", "dicom": "pydicom"}
# Endings of masks that publishers store next to images, and that predict writes.
MASK_ENDINGS = ("_segmentation", "_superpixels")


@functools.cache
def is_installed(extra: str) -> bool:
    """Return whether an extra of `MODULES` is installed."""
    return importlib.util.find_spec(MODULES[extra]) is not None


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'skincancer[{extra}]'"


def missing_extra(name: str) -> str:
    """Return the extra that a file needs and that is not installed, or ""."""
    extra = EXTRAS.get(splitext(name)[1].lower(), "")
    return extra if extra and not is_installed(extra) else ""


def is_mask_name(name: str) -> bool:
    """Return whether a file name is that of a publisher's mask."""
    return splitext(name)[0].casefold().endswith(MASK_ENDINGS)


def is_image_name(name: str) -> bool:
    """Return whether a visible file of this name is read as an image."""
    known = splitext(name)[1].lower() in (*IMAGE_SUFFIXES, *EXTRAS)
    return known and not missing_extra(name) and not name.startswith(".") and not is_mask_name(name)
