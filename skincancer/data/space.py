"""Room on a disk: looked at before gigabytes are written."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from skincancer.errors import DataError

UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


def show_size(size: float) -> str:
    """Return a number of bytes in the largest unit of which it has one."""
    unit = next((name for name, value in UNITS.items() if size >= value), "kB")
    return f"{size / UNITS[unit]:.2f} {unit}"


def check_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of a folder has room.

    Args:
        folder: an existing folder.
        needed: bytes.
        what: that needs them, for the message.

    Raises:
        DataError: there is less; says how much is needed and free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the disk under {folder} has {show_size(free)} free; {what} needs {show_size(needed)}. Free some space, or "
            "name a folder on another disk with --data.root."
        )


def disk_full(error: OSError, folder: Path, doing: str) -> Exception:
    """Return what to raise for a failed write: a DataError that names the cause."""
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"the disk under {folder} is full ({show_size(free)} free): {doing}. Free some space and run again: it goes "
            "on from what has come; or name a folder on another disk with --data.root."
        )
    if folder.is_dir():
        return DataError(
            f"{folder} cannot be written: {error.strerror or error}. Name a folder that can, with --data.root."
        )
    above = next(place for place in folder.absolute().parents if place.exists())
    # the system's word for a place that takes no folder, such as /proc, is that the new one does not exist
    why = "" if error.errno == errno.ENOENT else f" ({error.strerror or error})"
    return DataError(
        f"{folder} cannot be made: {above} takes no new folder{why}. Name one that can be made, with --data.root."
    )
