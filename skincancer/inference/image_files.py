"""Image files that a person names: files, folders, patterns; each with an id of its own."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from skincancer.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_NO_IMAGES = ("_segmentation", "_superpixels")  # endings of what publishers put beside images, and predict writes


class Found(NamedTuple):
    """An image file: its id, and its path as text, which takes a tenth of a `Path`'s memory."""

    image_id: str
    file: str


def find_images(paths: Sequence[Path | str], without: Sequence[Path] = ()) -> list[Found]:
    """Return the image files that paths name, each once, sorted within what each path names.

    The id of an image is its file's name without extension; where two found in folders have the same, it is the path below the folder
    given (`nevus/1` and `melanoma/1`).

    Args:
        paths: files; folders, searched through; patterns with `*`, `?`, `[…]` or `**`, which the shell did not expand. A file that
            was named outright is taken whatever its name.
        without: folders that are not searched.

    Raises:
        DataError: a path does not exist, a folder or a pattern holds no image, or two images have the same id.
    """
    rows: dict[str, tuple[str, str]] = {}  # by absolute path, so that a file named twice counts once
    for path in paths:
        try:
            for file, below in _named(str(path), [Path(os.path.abspath(folder)) for folder in without]):
                rows.setdefault(os.path.abspath(file), (file, below))
        except OSError as error:
            raise DataError(f"{path} cannot be searched: {error.strerror or error}.") from error
    if not rows:
        raise DataError("no image was given; give image files, folders or patterns.")
    names = Counter(Path(file).stem for file, _ in rows.values())
    found: dict[str, str] = {}
    for file, below in rows.values():
        stem = Path(file).stem
        image_id = stem if names[stem] == 1 else below
        if image_id in found:
            raise DataError(f"{found[image_id]} and {file} have the same image id {image_id}; give one of them.")
        found[image_id] = file
    return [Found(image_id, file) for image_id, file in found.items()]


def _named(text: str, without: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield the files that one path names, each with its path below what was searched, without extension."""
    path = Path(os.path.expanduser(text))
    if path.is_dir():
        yield from _searched(path, path, without)
    elif path.is_file():
        yield str(path), path.stem
    elif glob.has_magic(text):
        base = _fixed(path)
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        inside = [row for match in matches for row in _in_match(match, base, without)]
        if not inside:
            raise DataError(f"nothing matches {text}, or no image does ({', '.join(IMAGE_SUFFIXES)}).")
        yield from inside
    else:
        raise DataError(f"{text} does not exist; give image files, folders or patterns.")


def _in_match(match: Path, base: Path, without: Sequence[Path]) -> Iterator[tuple[str, str]]:
    if match.is_dir():
        yield from _searched(match, base, without, empty=True)
    elif _is_image(match):
        yield str(match), match.relative_to(base).with_suffix("").as_posix()


def _fixed(pattern: Path) -> Path:
    """Return the folder that a pattern starts from."""
    fixed = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _searched(folder: Path, base: Path, without: Sequence[Path], empty: bool = False) -> Iterator[tuple[str, str]]:
    any_found = empty
    for file in sorted(folder.rglob("*")):
        if _is_image(file) and not any(Path(os.path.abspath(file)).is_relative_to(place) for place in without):
            any_found = True
            yield str(file), file.relative_to(base).with_suffix("").as_posix()
    if not any_found:
        raise DataError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)}).")


def _is_image(file: Path) -> bool:
    own = not file.stem.casefold().endswith(_NO_IMAGES)
    return own and file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
