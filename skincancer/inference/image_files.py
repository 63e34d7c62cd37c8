"""Search of image files in files, folders and patterns of the command line."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from skincancer.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Endings of masks that publishers store next to images, and that predict writes.
_NO_IMAGES = ("_segmentation", "_superpixels")


class ImageEntry(NamedTuple):
    """Id and path of an image file. Text needs less memory than a `Path`."""

    image_id: str
    file: str


def find_images(paths: Sequence[Path | str], without: Sequence[Path] = ()) -> list[ImageEntry]:
    """Return the image files that paths name, each once, sorted within each path.

    The id of an image is its file name without extension. If two images in folders have the same name, their ids are their paths
    relative to the searched folder (`nevus/1` and `melanoma/1`).

    Args:
        paths: files, folders (searched recursively), or patterns with `*`, `?`, `[…]` or `**`. A file is used whatever its name.
        without: folders that are not searched.

    Raises:
        DataError: a path does not exist, a folder or a pattern contains no image, or two images have the same id.
    """
    # The key is the absolute path, so that a file counts once.
    rows: dict[str, tuple[str, str]] = {}
    for path in paths:
        try:
            for file, below in _find(str(path), [Path(os.path.abspath(folder)) for folder in without]):
                rows.setdefault(os.path.abspath(file), (file, below))
        except OSError as error:
            raise DataError(f"{path} cannot be searched: {error.strerror or error}.") from error
    if not rows:
        raise DataError("no image is named; use image files, folders or patterns.")
    names = Counter(Path(file).stem for file, _ in rows.values())
    files: dict[str, str] = {}
    for file, below in rows.values():
        stem = Path(file).stem
        image_id = stem if names[stem] == 1 else below
        if image_id in files:
            raise DataError(f"{files[image_id]} and {file} have the same image id {image_id}; use only one of them.")
        files[image_id] = file
    return [ImageEntry(image_id, file) for image_id, file in files.items()]


def _find(text: str, without: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield files, each with its path below the searched folder, without suffix."""
    # An empty text would be the path of the working directory.
    path = Path(os.path.expanduser(text) if text else os.devnull)
    if path.is_dir():
        yield from _search(path, path, without)
    elif path.is_file():
        yield str(path), path.stem
    elif glob.has_magic(text):
        base = _base_folder(path)
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        entries = [row for match in matches for row in _in_match(match, base, without)]
        if not entries:
            raise DataError(f"no image matches {text} (expected {', '.join(IMAGE_SUFFIXES)}).")
        yield from entries
    else:
        what = "is neither a file nor a folder" if os.path.lexists(path) else "does not exist"
        raise DataError(f"{text or repr(text)} {what}; use image files, folders or patterns.")


def _in_match(match: Path, base: Path, without: Sequence[Path]) -> Iterator[tuple[str, str]]:
    if match.is_dir():
        yield from _search(match, base, without, may_be_empty=True)
    elif _is_image(match):
        yield str(match), match.relative_to(base).with_suffix("").as_posix()


def _base_folder(pattern: Path) -> Path:
    """Return the longest folder of a pattern without wildcards."""
    fixed = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _search(folder: Path, base: Path, without: Sequence[Path], may_be_empty: bool = False) -> Iterator[tuple[str, str]]:
    any_image = may_be_empty
    for file in sorted(folder.rglob("*")):
        if _is_image(file) and not any(Path(os.path.abspath(file)).is_relative_to(place) for place in without):
            any_image = True
            yield str(file), file.relative_to(base).with_suffix("").as_posix()
    if not any_image:
        raise DataError(f"{folder} contains no image (expected {', '.join(IMAGE_SUFFIXES)}).")


def _is_image(file: Path) -> bool:
    is_mask = file.stem.casefold().endswith(_NO_IMAGES)
    return not is_mask and file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
