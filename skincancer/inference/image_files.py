"""Search of image files in files, folders and patterns of the command line."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from skincancer.data.image_files import ImageSearch, check_links, is_other
from skincancer.errors import ConfigError, DataError
from skincancer.imaging.formats import install_command, missing_extra


class ImageEntry(NamedTuple):
    """Id and path of an image file. Text needs less memory than a `Path`.

    Attributes:
        relative: path relative to the searched folder, with `/`, or the name of a file that was named itself.
    """

    image_id: str
    file: str
    relative: str


@dataclass(frozen=True)
class Shard:
    """One of `count` disjoint shares of the images, counted from 1."""

    number: int
    count: int

    def select(self, images: Sequence[ImageEntry]) -> list[ImageEntry]:
        """Return the images of this shard, in their order.

        The hash of the relative path decides, so that each machine selects the same images wherever its folder is mounted.
        """
        return [image for image in images if _hash(image.relative) % self.count == self.number - 1]


def parse_shard(text: str) -> Shard:
    """Parse a shard such as `3/8`.

    Raises:
        ConfigError: the text is not I/N with I from 1 to N.
    """
    numbers = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    shard = Shard(*map(int, numbers.groups())) if numbers else None
    if shard is None or not 1 <= shard.number <= shard.count:
        raise ConfigError(
            f"--shard is {text!r}; expected I/N with I from 1 to N. Use 1/8, 2/8 and so on for eight processes."
        )
    return shard


def _hash(relative: str) -> int:
    # The hash of Python differs between processes, and macOS and Linux may compose the letters of one name differently.
    name = unicodedata.normalize("NFC", relative).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big")


def find_images(paths: Sequence[Path | str], search: ImageSearch | None = None) -> list[ImageEntry]:
    """Return the image files that paths name, each once, sorted within each path.

    The id of an image is its file name without extension. If two images in folders have the same name, their ids are their paths
    relative to the searched folder (`nevus/1` and `melanoma/1`).

    Args:
        paths: files, folders (searched recursively), or patterns with `*`, `?`, `[…]` or `**`. A file is used whatever its name.
        search: search of folders, which then describes the skipped files. None for a new one.

    Raises:
        DataError: a path does not exist or is a broken link, a folder or a pattern contains no image, a file needs an extra that is
            not installed, or two images have the same id.
    """
    search = search or ImageSearch()
    # The key is the absolute path, so that a file counts once.
    rows: dict[str, tuple[str, str]] = {}
    for path in paths:
        try:
            for file, below in _find(str(path), search):
                rows.setdefault(os.path.abspath(file), (file, below))
        except OSError as error:
            raise DataError(f"{path} cannot be searched: {error.strerror or error}.") from error
    if not rows:
        raise DataError("no image is named; use image files, folders or patterns.")
    names = Counter(Path(file).stem for file, _ in rows.values())
    images: dict[str, ImageEntry] = {}
    for file, below in rows.values():
        path = Path(file)
        image_id = path.stem if names[path.stem] == 1 else below
        if image_id in images:
            raise DataError(
                f"{images[image_id].file} and {file} have the same image id {image_id}; use only one of them."
            )
        images[image_id] = ImageEntry(image_id, file, below + path.suffix)
    return list(images.values())


def _find(text: str, search: ImageSearch) -> Iterator[tuple[str, str]]:
    """Yield files, each with its path below the searched folder, without suffix."""
    # An empty text would be the path of the working directory.
    path = Path(os.path.expanduser(text) if text else os.devnull)
    check_links([path])
    if path.is_dir():
        yield from _search(path, path, search)
    elif path.is_file():
        if extra := missing_extra(path.name):
            raise DataError(f"{path} cannot be read without the extra {extra}; install it: {install_command(extra)}")
        yield str(path), path.stem
    elif glob.has_magic(text):
        base = _base_folder(path)
        # Unlike a recursive glob, a walk stops at loops of links.
        matches = (
            _match_below(path, base, search)
            if "**" in path.parts
            else [Path(match) for match in sorted(glob.glob(str(path)))]
        )
        check_links(match for match in matches if not is_other(match.name))
        entries = [row for match in matches for row in _in_match(match, base, search)]
        if not entries:
            raise DataError(f"no image matches {text} ({search.describe_empty()}).")
        yield from entries
    else:
        what = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
        raise DataError(f"{text or repr(text)} {what}; use image files, folders or patterns.")


def _match_below(pattern: Path, base: Path, search: ImageSearch) -> list[Path]:
    """Return the images below a folder that match a pattern with `**`.

    If a folder matches, all images in it are returned.
    """
    patterns = pattern.relative_to(base).parts
    # Other files count as skipped only if the pattern matches every name.
    search = search if patterns[-1] in ("*", "**") else ImageSearch(search.without)
    files = [(file, file.relative_to(base).parts) for file in search.walk(base).values()] if base.is_dir() else []
    return [file for file, parts in files if any(_matches(parts[:end], patterns) for end in range(1, len(parts) + 1))]


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def _in_match(match: Path, base: Path, search: ImageSearch) -> Iterator[tuple[str, str]]:
    if match.is_dir():
        yield from _search(match, base, search, may_be_empty=True)
    elif match.is_file() and search.is_image(match.name):
        yield str(match), match.relative_to(base).with_suffix("").as_posix()


def _base_folder(pattern: Path) -> Path:
    """Return the longest folder of a pattern without wildcards."""
    fixed = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _search(folder: Path, base: Path, search: ImageSearch, may_be_empty: bool = False) -> Iterator[tuple[str, str]]:
    images = search.walk(folder)
    if not images and not may_be_empty:
        raise DataError(f"{folder} contains no image ({search.describe_empty()}).")
    for file in images.values():
        yield str(file), file.relative_to(base).with_suffix("").as_posix()
