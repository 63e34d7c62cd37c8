"""Reader for images sorted into folders: a folder a class, or train, val and test with a folder a class each."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from skincancer.data.index import PARTS, name_first
from skincancer.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def read(root: Path) -> pd.DataFrame:
    """Read a folder a class; where the folders are named train, val (valid, validation) and test, those of each part.

    Images may lie any number of folders below their class. The image_id is the path relative to the root without its
    extension. Hidden files, and files that are not images by their extension, are skipped.

    Returns:
        Columns image_id, image, diagnosis, part ("" without parts).

    Raises:
        DataError: If there are no class folders, or only one with all images deeper in it, a class folder holds no image,
            images lie beside the class folders, part and class folders are mixed, or two files differ in their extension
            alone.
    """
    folders = _subfolders(root)
    parts = [folder for folder in folders if folder.name.casefold() in PARTS]
    if parts and len(parts) < len(folders):
        others = name_first(folder.name for folder in folders if folder not in parts)
        raise DataError(
            f"{root} mixes part folders ({name_first(folder.name for folder in parts)}) with others ({others}). "
            "It must hold class folders alone, or train, val and test alone."
        )
    rows: list[dict[str, str]] = []
    seen: dict[str, Path] = {}
    for folder in parts:
        part = PARTS[folder.name.casefold()]
        if part in seen:
            raise DataError(f"{seen[part]} and {folder} are both the part {part}; keep one")
        seen[part] = folder
        rows += read_classes(root, folder, part)
    if parts:
        _refuse_loose_images(root)
    else:
        rows = read_classes(root, root, "")
    classes = sorted({row["diagnosis"] for row in rows})
    # one class can be audited; one folder whose images all lie deeper is rather a folder around the data set
    deeper = not any(Path(row["image"]).parent.name == row["diagnosis"] for row in rows)
    if not classes or (len(classes) == 1 and deeper):
        found = f"only the class folder {classes[0]!r}, with folders in it" if classes else "no class folder"
        raise DataError(f"{root} holds {found}; it must hold a folder a class, or train, val and test with those")
    return pd.DataFrame(rows)


def read_classes(root: Path, folder: Path, part: str) -> list[dict[str, str]]:
    """Return a row (image_id, image, diagnosis, part) for each image in the class folders of `folder`.

    Raises:
        DataError: If a class folder holds no image, images lie beside the class folders, or two files differ in their
            extension alone.
    """
    _refuse_loose_images(folder)
    rows: dict[str, dict[str, str]] = {}
    for class_folder in _subfolders(folder):
        images = _images(class_folder)
        if not images:
            raise DataError(f"the class folder {class_folder} holds no image ({' '.join(IMAGE_SUFFIXES)})")
        for path in images:
            image = path.relative_to(root)
            image_id = image.with_suffix("").as_posix()
            if image_id in rows:
                raise DataError(f"{rows[image_id]['image']} and {image.as_posix()} differ in their extension alone")
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
    found: list[Path] = []
    for current, subfolders, names in os.walk(folder, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [path for path in (Path(current, name) for name in names) if _is_image(path)]
    return sorted(found)


def _refuse_loose_images(folder: Path) -> None:
    loose = sorted(path.name for path in folder.iterdir() if path.is_file() and _is_image(path))
    if loose:
        raise DataError(
            f"{folder}: {len(loose)} images lie beside the class folders: {name_first(loose)}. "
            "Move each into the folder of its class."
        )
