"""Unpack zip archives from untrusted sources: completely, or not at all."""

from __future__ import annotations

import errno
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from skincancer.errors import DataError
from skincancer.system.files import check_space, disk_full

MAX_RATIO = 100  # images and masks are packed already: an archive that grows a hundredfold holds something else
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db")


class BadArchive(DataError):
    """An archive that cannot be unpacked, or must not be."""


def unpack(archive: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Unpack a zip archive into a new folder, with a CRC check.

    A single top folder of the archive becomes the new folder, whatever its name. Files that macOS and Windows leave in archives are
    not unpacked. The files are written into `<folder>.tmp`, which is renamed when complete: after an error nothing is left.

    Args:
        archive: the file.
        folder: target, must not exist.
        progress: called with (done, total) files.

    Raises:
        BadArchive: no zip archive, damaged, encrypted or empty, larger than a hundred times its size when unpacked, or with a name
            outside the folder, or a file twice.
        DataError: the disk is too small, or cannot be written.
    """
    building = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)  # of a killed call
    try:
        if not zipfile.is_zipfile(archive):
            with archive.open("rb") as file:
                raise BadArchive(f"it is no zip archive; it begins with {file.read(20)!r}")
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened)
            needed = sum(info.file_size for info in members)
            size = archive.stat().st_size
            if needed > MAX_RATIO * size:
                raise BadArchive(
                    f"it says that it unpacks to {needed} bytes from {size}, more than {MAX_RATIO} times its size"
                )
            check_space(archive.parent, needed, f"unpacking {archive.name}")
            for done, info in enumerate(members, start=1):
                # Never outside the folder, never more than the declared size, and with a check of the CRC.
                opened.extract(info, building)
                if progress:
                    progress(done, len(members))
        tops = list(building.iterdir())
        (tops[0] if len(tops) == 1 and tops[0].is_dir() else building).rename(folder)
    # Damage (the first four), an unknown compression, and a password.
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, NotImplementedError, RuntimeError) as error:
        raise BadArchive(f"{archive.name} cannot be unpacked: {error}") from error
    except OSError as error:
        # Another disk does not help: a file that is a folder too, or a name that no disk takes.
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise BadArchive(f"{archive.name} cannot be unpacked: {error}") from error
        raise disk_full(error, archive.parent, f"unpacking {archive.name}") from error
    except BadArchive as error:
        raise BadArchive(f"{archive.name} was not unpacked: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _members(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files of an archive, after a check of all names."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in opened.infolist():
        # `filename` ends at a NUL, `orig_filename` does not.
        path = PurePosixPath(info.orig_filename)
        if re.search(r"[\x00-\x1f\\]|^[A-Za-z]:", info.orig_filename) or path.is_absolute() or ".." in path.parts:
            raise BadArchive(f"it names a place outside its folder: {info.orig_filename!r}")
        if info.is_dir() or any(part in LITTER for part in path.parts):
            continue
        # Many disks ignore case: there, the second of two such files would replace the first.
        if other := members.get(str(path).casefold()):
            raise BadArchive(f"it holds {other.filename!r} and {info.filename!r}, which are one file on many disks")
        members[str(path).casefold()] = info
    if not members:
        raise BadArchive("it holds no file")
    return list(members.values())
