"""Safe unpacking of downloaded zip archives."""

from __future__ import annotations

import errno
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from skincancer.errors import DataError
from skincancer.system.files import check_space, disk_full

# Images and masks are already compressed, so an archive of images cannot grow a hundredfold.
MAX_RATIO = 100
# Files that macOS and Windows add to archives.
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db")
# Errors of `zipfile` for damaged files, unknown compression and encryption, and of a path that is both file and folder.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, NotImplementedError, RuntimeError, NotADirectoryError,
    FileExistsError, IsADirectoryError,
)  # fmt: skip


class BadArchive(DataError):
    """Archive that is damaged or unsafe to unpack."""


def unpack(archive: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Unpack a zip archive into a new folder.

    A single top folder in the archive is left out of the paths. The files are written to `<folder>.tmp`, which is renamed
    when it is complete, so that an error leaves no files behind. `zipfile` checks the CRC of each file.

    Args:
        archive: Path of the archive.
        folder: Target folder; must not exist.
        progress: Called with (done, total) files.

    Raises:
        BadArchive: The file is not a zip archive, is damaged, encrypted or empty, grows more than a hundredfold, or
            contains a path outside its folder or one path twice.
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
            needed, size = sum(member.file_size for member in members), archive.stat().st_size
            if needed > MAX_RATIO * size:
                raise BadArchive(f"it unpacks to {needed} bytes from {size}, more than {MAX_RATIO} times its size")
            check_space(archive.parent, needed, f"unpacking {archive.name}")
            for done, member in enumerate(members, start=1):
                opened.extract(member, building)
                if progress:
                    progress(done, len(members))
        tops = list(building.iterdir())
        (tops[0] if len(tops) == 1 and tops[0].is_dir() else building).rename(folder)
    except _DAMAGE as error:
        raise BadArchive(f"{archive.name} cannot be unpacked: {error}") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise BadArchive(f"{archive.name} cannot be unpacked: {error}") from error
        raise disk_full(error, archive.parent, f"unpacking {archive.name}") from error
    except BadArchive as error:
        raise BadArchive(f"{archive.name} was not unpacked: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _members(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """List the files of an archive, after a check of all paths."""
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for member in opened.infolist():
        path = PurePosixPath(member.filename)
        # `extract` would write such a file inside the folder, under another name.
        if path.is_absolute() or ".." in path.parts:
            raise BadArchive(f"it contains a path outside its folder: {member.filename!r}")
        if member.is_dir() or any(part in LITTER for part in path.parts):
            continue
        if path in members:
            raise BadArchive(f"it contains {member.filename!r} twice")
        members[path] = member
    if not members:
        raise BadArchive("it contains no file")
    return list(members.values())
