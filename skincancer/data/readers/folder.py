"""Reader for one folder per class, optionally inside train, val and test."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from skincancer.data.index import PARTS, name_first
from skincancer.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def read(root: Path) -> pd.DataFrame:
    """Read one folder per class, or the class folders of each subset.

    Subset folders are named train, val (valid, validation) and test. Images may lie any number of folders below the
    class folder. The image_id is the path relative to the root without extension. Hidden files, and files without an
    image extension, are skipped.

    Returns:
        Columns image_id, image, diagnosis, part ("" without subset folders).

    Raises:
        DataError: There is no class folder, or only one with all images in subfolders, a class folder contains no image,
            images lie next to the class folders, subset and class folders are mixed, or two files differ only in their
            extension.
    """
    folders = _subfolders(root)
    parts = [folder for folder in folders if folder.name.casefold() in PARTS]
    if parts and len(parts) < len(folders):
        others = name_first(folder.name for folder in folders if folder not in parts)
        raise DataError(
            f"{root} mixes subset folders ({name_first(folder.name for folder in parts)}) with others ({others}). "
            "It must contain only class folders, or only train, val and test."
        )
    rows: list[dict[str, str]] = []
    folder_of: dict[str, Path] = {}
    for folder in parts:
        part = PARTS[folder.name.casefold()]
        if part in folder_of:
            raise DataError(f"{folder_of[part]} and {folder} are both the {part} subset; keep one")
        folder_of[part] = folder
        rows += read_classes(root, folder, part)
    if parts:
        _refuse_loose_images(root)
    else:
        rows = read_classes(root, root, "")
    classes = sorted({row["diagnosis"] for row in rows})
    # A single class is allowed, because it can be audited. A single folder with images only in its subfolders is
    # rather a parent folder of the data set.
    deeper = not any(Path(row["image"]).parent.name == row["diagnosis"] for row in rows)
    if not classes or (len(classes) == 1 and deeper):
        content = f"only the class folder {classes[0]!r}, with folders in it" if classes else "no class folder"
        raise DataError(f"{root} contains {content}; expected one folder per class, or train, val and test with these")
    return pd.DataFrame(rows)


def read_classes(root: Path, folder: Path, part: str) -> list[dict[str, str]]:
    """List one row (image_id, image, diagnosis, part) per image in the class folders.

    Raises:
        DataError: A class folder contains no image, images lie next to the class folders, or two files differ only in
            their extension.
    """
    _refuse_loose_images(folder)
    rows: dict[str, dict[str, str]] = {}
    for class_folder in _subfolders(folder):
        images = _images(class_folder)
        if not images:
            raise DataError(f"the class folder {class_folder} contains no image ({' '.join(IMAGE_SUFFIXES)})")
        for path in images:
            image = path.relative_to(root)
            image_id = image.with_suffix("").as_posix()
            if image_id in rows:
                raise DataError(f"{rows[image_id]['image']} and {image.as_posix()} differ only in their extension")
            rows[image_id] = {
                "image_id": image_id,
                "image": image.as_posix(),
                "diagnosis": class_folder.name,
                "part": part,
            }
    return list(rows.values())


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read as a folder: {error.strerror}") from error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _images(folder: Path) -> list[Path]:
    images: list[Path] = []
    for current, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        images += [path for path in (Path(current, name) for name in names) if _is_image(path)]
    return sorted(images)


def _refuse_loose_images(folder: Path) -> None:
    loose = sorted(path.name for path in folder.iterdir() if path.is_file() and _is_image(path))
    if loose:
        raise DataError(
            f"{folder}: {len(loose)} images lie next to the class folders: {name_first(loose)}. "
            "Move each into the folder of its class."
        )
