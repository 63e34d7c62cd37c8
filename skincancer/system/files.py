"""Atomic writes, and checks of output paths and free disk space."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from skincancer.errors import ConfigError, DataError
from skincancer.system.paths import user_path


def write_whole(path: Path, text: str) -> None:
    """Write a text file atomically, with its parent folders.

    If the process is killed while writing, the previous content stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_folder(folder: Path, flag: str) -> None:
    """Create a folder with its parents and check write access.

    Raises:
        ConfigError: the folder is a file, cannot be created or is not writable.
    """
    user_path(folder, flag)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{flag} is {folder}, a file; expected a folder. Use a folder; a missing one is created.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(flag, folder, error, "folder") from error


def check_file(path: Path, flag: str) -> None:
    """Create the parent folder of a file and check write access.

    The content of an existing file does not change.

    Raises:
        ConfigError: the path is a folder or is not writable.
    """
    user_path(path, flag)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a device or a pipe"
        raise ConfigError(f"{flag} is {path}, {what}; expected a file. Use the path of a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _unwritable(flag, path, error, "file") from error


def _unwritable(flag: str, path: Path, error: OSError, what: str) -> ConfigError:
    file = next((f"{above} is a file" for above in path.parents if above.is_file()), "")
    return ConfigError(f"{flag} {path} cannot be written: {file or error.strerror or error}. Use a writable {what}.")


UNITS = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


def show_size(size: float) -> str:
    """Return a number of bytes with a unit, such as "1.25 GB"."""
    unit = next((name for name, value in UNITS.items() if size >= value), "kB")
    return f"{size / UNITS[unit]:.2f} {unit}"


def check_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of a folder has `needed` free bytes.

    Raises:
        DataError: less space is free; the message contains both sizes.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the disk of {folder} has {show_size(free)} free; {what} needs {show_size(needed)}. Free some space, or use "
            "a folder on another disk with --data.root."
        )


def disk_full(error: OSError, folder: Path, doing: str) -> Exception:
    """Return a DataError with the cause of a failed write.

    The folder may be missing.
    """
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"the disk of {folder} is full ({show_size(free)} free): {doing}. Free some space and rerun the command, which "
            "resumes; or use a folder on another disk with --data.root."
        )
    if folder.is_dir():
        return DataError(
            f"{folder} cannot be written: {error.strerror or error}. Use a writable folder with --data.root."
        )
    above = next(place for place in folder.absolute().parents if place.exists())
    # In places without new folders, such as /proc, the system reports that the new folder does not exist.
    why = "" if error.errno == errno.ENOENT else f" ({error.strerror or error})"
    return DataError(
        f"{folder} cannot be created: {above} takes no new folder{why}. Use a writable folder with --data.root."
    )
