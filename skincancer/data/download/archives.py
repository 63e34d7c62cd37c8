"""Zip archives of strangers: unpacked whole into a folder of their own, or refused with nothing written outside it."""

from __future__ import annotations

import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from skincancer.errors import DataError
from skincancer.system.files import check_space, disk_full

MAX_RATIO = 100  # images and masks are packed already: an archive that grows a hundredfold holds something else
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db")
LONGEST_NAME = 255  # bytes, of a file or folder on the disks in use
LONGEST_PATH = 1024  # bytes, inside the archive: less than a disk takes, as the folder's own path comes before it


class BadArchive(DataError):
    """An archive that cannot be unpacked, or must not be."""


def unpack(archive: Path, folder: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Unpack a zip archive into a new folder, checking the CRC of each of its files.

    Where all that it holds lies in one top folder, that becomes the new one, whatever its name; what macOS and Windows leave in
    archives is left out. The files are written into `<folder>.tmp` beside, which is renamed when all are there: after an error nothing
    is left.

    Args:
        archive: the file.
        folder: where its content goes; must not exist.
        progress: called with (done, total) files.

    Raises:
        BadArchive: it is no zip archive, is damaged or encrypted, unpacks to more than a hundred times its size, names a place
            outside, a link or a file twice, names that no disk takes or that clash on one, or holds nothing.
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
            needed = sum(info.file_size for info in members.values())
            size = archive.stat().st_size
            if needed > MAX_RATIO * size:
                raise BadArchive(
                    f"it says that it unpacks to {needed} bytes from {size}, more than {MAX_RATIO} times its size"
                )
            check_space(archive.parent, needed, f"unpacking {archive.name}")
            building.mkdir(parents=True)
            for done, (path, info) in enumerate(members.items(), start=1):
                target = building / path
                target.parent.mkdir(parents=True, exist_ok=True)
                # reads the declared size and no more, and checks the CRC at its end
                with opened.open(info) as source, open(target, "xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                if progress:
                    progress(done, len(members))
        building.rename(folder)
    # what zipfile raises on damage (the first four), on a compression that it does not know, and on a password
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, NotImplementedError, RuntimeError) as error:
        raise BadArchive(f"{archive.name} cannot be unpacked: {error}") from error
    except OSError as error:
        raise disk_full(error, archive.parent, f"unpacking {archive.name}") from error
    except BadArchive as error:
        raise BadArchive(f"{archive.name} was not unpacked: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _members(opened: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files of an archive by the path to write, all names being checked before the first is written."""
    found: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in opened.infolist():
        # `filename` ends at a NUL; what the archive says is in `orig_filename`
        name = info.orig_filename
        path = PurePosixPath(name)
        if (
            not name
            or re.search(r"[\x00-\x1f\\]|^[A-Za-z]:", name)
            or path.is_absolute()
            or ".." in path.parts
            or not path.parts
        ):
            raise BadArchive(f"it names a place outside its folder: {name!r}")
        size = max(len(part.encode()) for part in path.parts)
        if size > LONGEST_NAME or len(name.encode()) > LONGEST_PATH:
            raise BadArchive(
                f"it holds a name that is too long: {name[:60]!r}… ({size} bytes in one part; allowed are {LONGEST_NAME}, and "
                f"{LONGEST_PATH} in all)"
            )
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BadArchive(f"{name!r} is a link or a device, not a file")
        if info.flag_bits & 0x1:
            raise BadArchive(f"{name!r} is encrypted")
        if info.is_dir() or any(part in LITTER for part in path.parts):
            continue
        if path in found:
            raise BadArchive(f"it holds {name!r} twice")
        found[path] = info
    if not found:
        raise BadArchive("it holds no file")
    _check_clashes(found)
    tops = {path.parts[0] for path in found}
    if len(tops) == 1 and all(len(path.parts) > 1 for path in found):
        return {PurePosixPath(*path.parts[1:]): info for path, info in found.items()}
    return found


def _check_clashes(paths: Iterable[PurePosixPath]) -> None:
    """Refuse names that differ by upper and lower case alone, which many disks do not tell apart, and a file that is a folder too."""
    files: dict[str, PurePosixPath] = {}
    for path in paths:
        other = files.setdefault(str(path).casefold(), path)
        if other != path:
            raise BadArchive(f"it holds {str(other)!r} and {str(path)!r}, which are one file where case does not count")
    for path in files.values():
        for folder in path.parents:
            if file := files.get(str(folder).casefold()):
                raise BadArchive(f"it holds the file {str(file)!r} and {str(path)!r}, for which that would be a folder")
