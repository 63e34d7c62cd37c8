"""Safe unpacking of downloaded zip archives."""

from __future__ import annotations

import errno
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from skincancer.data.image_files import is_hidden
from skincancer.errors import DataError
from skincancer.system.files import check_space, disk_full

# Images and masks are already compressed, so an archive of images cannot grow a hundredfold.
MAX_RATIO = 100


class BadArchive(DataError):
    """Archive that is damaged or unsafe to unpack."""


def unpack(archive: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Unpack a zip archive into a new folder, with a CRC check.

    A single top folder in the archive is left out of the paths. The files are written to `<folder>.tmp`, which is renamed
    when it is complete, so that an error leaves no files behind.

    Args:
        archive: Path of the archive.
        folder: Target folder; must not exist.
        progress: Called with (done, total) files.

    Raises:
        BadArchive: The file is not a zip archive, is damaged, encrypted or empty, grows more than a hundredfold, or
            contains a path outside its folder or one file twice.
        DataError: The disk is too small or not writable.
    """
    building = folder.with_name(f"{folder.name}.tmp")
    # A killed process may have left this folder.
    shutil.rmtree(building, ignore_errors=True)
    try:
        if not zipfile.is_zipfile(archive):
            with archive.open("rb") as file:
                raise BadArchive(f"it is not a zip archive; it begins with {file.read(20)!r}")
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened)
            needed = sum(info.file_size for info in members)
            size = archive.stat().st_size
            if needed > MAX_RATIO * size:
                raise BadArchive(f"it unpacks to {needed} bytes from {size}, more than {MAX_RATIO} times its size")
            check_space(archive.parent, needed, f"unpacking {archive.name}")
            for done, info in enumerate(members, start=1):
                # `extract` writes only inside the folder, at most the declared size, and checks the CRC.
                opened.extract(info, building)
                if progress:
                    progress(done, len(members))
        tops = list(building.iterdir())
        (tops[0] if len(tops) == 1 and tops[0].is_dir() else building).rename(folder)
    # The first four are raised for damaged files, the others for unknown compression and encryption.
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, NotImplementedError, RuntimeError) as error:
        raise BadArchive(f"{archive.name} cannot be unpacked: {error}") from error
    except OSError as error:
        # The path is both file and folder, or too long: another disk would not help.
        if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise BadArchive(f"{archive.name} cannot be unpacked: {error}") from error
        raise disk_full(error, archive.parent, f"unpacking {archive.name}") from error
    except BadArchive as error:
        raise BadArchive(f"{archive.name} was not unpacked: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _members(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """List the files of an archive, after a check of all paths."""
    members: dict[str, zipfile.ZipInfo] = {}
    for info in opened.infolist():
        # `filename` ends at a NUL, `orig_filename` does not.
        path = PurePosixPath(info.orig_filename)
        if re.search(r"[\x00-\x1f\\]|^[A-Za-z]:", info.orig_filename) or path.is_absolute() or ".." in path.parts:
            raise BadArchive(f"it contains a path outside its folder: {info.orig_filename!r}")
        if info.is_dir() or any(is_hidden(part) for part in path.parts):
            continue
        # On disks that ignore case, the second of two such files would replace the first.
        if other := members.get(str(path).casefold()):
            raise BadArchive(
                f"it contains {other.filename!r} and {info.filename!r}, which are one file on disks that ignore case"
            )
        members[str(path).casefold()] = info
    if not members:
        raise BadArchive("it contains no file")
    return list(members.values())
