"""Files that are written whole or not at all, and tried before the work that they are for."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from skincancer.errors import ConfigError, DataError


def write_whole(path: Path, text: str) -> None:
    """Write a text file, and the folders to it; whoever is killed while writing leaves what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_folder(folder: Path, flag: str) -> None:
    """Make a folder, and try to write into it.

    Args:
        folder: to be made, with those above it, where it is not there.
        flag: that named it, for the message.

    Raises:
        ConfigError: it is a file, or cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{flag} {folder} is a file; give a folder, which is made where there is none.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(flag, folder, error, "folder") from error


def check_file(path: Path, flag: str) -> None:
    """Make the folder of a file, and try to write there; what the file holds is left alone.

    Args:
        path: of the file.
        flag: that named it, for the message.

    Raises:
        ConfigError: it is a folder, or cannot be written.
    """
    if path.is_dir():
        raise ConfigError(f"{flag} {path} is a folder; give a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(flag, path, error, "file") from error


def _unwritable(flag: str, path: Path, error: OSError, what: str) -> ConfigError:
    file = next((f"{above} is a file" for above in path.parents if above.is_file()), "")
    return ConfigError(
        f"{flag} {path} cannot be written: {file or error.strerror or error}. Give a {what} that can be."
    )


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
