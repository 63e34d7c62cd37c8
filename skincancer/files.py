"""Files that are written whole or not at all, and tried before the work that they are for."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from skincancer.errors import ConfigError


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
