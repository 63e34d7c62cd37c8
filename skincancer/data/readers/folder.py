"""Reader for one folder per class, optionally inside train, val and test."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pandas as pd

from skincancer.data.image_files import ImageSearch, check_names
from skincancer.data.index import PARTS, name_first
from skincancer.errors import DataError


def read(root: Path) -> pd.DataFrame:
    """Read one folder per class, or the class folders of each subset.

    Subset folders are named train, val (valid, validation) and test. Images may lie any number of folders below the
    class folder. The image_id is the path relative to the root without extension. Each real file of a subset is read
    once, whatever links point to it.

    Returns:
        Columns image_id, image, diagnosis, part ("" without subset folders). The attribute `notes` describes skipped files.

    Raises:
        DataError: There is no class folder, or only one with all images in subfolders, a class folder contains no image,
            images lie next to the class folders, subset and class folders are mixed, two files differ only in their
            extension, a file is in two classes, or a link is broken.
    """
    search = ImageSearch()
    folders = search.list_folders(root)
    parts = [folder for folder in folders if folder.name.casefold() in PARTS]
    if parts and len(parts) < len(folders):
        others = name_first(folder.name for folder in folders if folder not in parts)
        raise DataError(
            f"{root} mixes subset folders ({name_first(folder.name for folder in parts)}) with others ({others}). "
            "It must contain only class folders, or only train, val and test."
        )
    by_part: dict[str, Path] = {}
    for folder in parts:
        part = PARTS[folder.name.casefold()]
        if part in by_part:
            raise DataError(f"{by_part[part]} and {folder} are both the {part} subset; keep one")
        by_part[part] = folder
    if parts:
        _refuse_loose_images(root, search)
    table = read_classes(root, by_part or {"": root}, search)
    classes = sorted(set(table["diagnosis"]))
    # A single class is allowed, because it can be audited. A single folder with images only in its subfolders is
    # rather a parent folder of the data set.
    deeper = not any(
        Path(image).parent.name == name for image, name in zip(table["image"], table["diagnosis"], strict=True)
    )
    if not classes or (len(classes) == 1 and deeper):
        content = f"only the class folder {classes[0]!r}, with folders in it" if classes else "no class folder"
        raise DataError(f"{root} contains {content}; expected one folder per class, or train, val and test with these")
    return table


def read_classes(root: Path, folders: dict[str, Path], search: ImageSearch) -> pd.DataFrame:
    """List one row (image_id, image, diagnosis, part) per image in class folders.

    Args:
        root: folder to which ids and images are relative.
        folders: folder of the class folders of each part.
        search: record of skipped files, described by the attribute `notes` of the table.

    Raises:
        DataError: A class folder contains no image, images lie next to the class folders, two files differ only in their
            extension, a file is in two classes, or a name is not valid UTF-8.
    """
    rows: dict[str, tuple[str, str, str, str]] = {}
    places: dict[Hashable, tuple[str, Path]] = {}
    for part, folder in folders.items():
        _refuse_loose_images(folder, search)
        for class_folder in search.list_folders(folder):
            images = search.walk(class_folder)
            check_names(images.values())
            if not images:
                raise DataError(f"the class folder {class_folder} contains no image; {search.describe_empty()}")
            for key, path in images.items():
                name, first = places.setdefault(key, (class_folder.name, path))
                if name != class_folder.name:
                    raise DataError(
                        f"{first} and {path} are one file in the classes {name} and {class_folder.name}; delete the wrong link."
                    )
                image = path.relative_to(root)
                image_id = image.with_suffix("").as_posix()
                if image_id in rows:
                    raise DataError(f"{rows[image_id][1]} and {image.as_posix()} differ only in their extension")
                rows[image_id] = image_id, image.as_posix(), name, part
    table = pd.DataFrame(list(rows.values()), columns=["image_id", "image", "diagnosis", "part"])
    table.attrs["notes"] = search.describe()
    return table


def _refuse_loose_images(folder: Path, search: ImageSearch) -> None:
    loose = [path.name for path in search.list_images(folder)]
    if loose:
        raise DataError(
            f"{folder}: {len(loose)} images lie next to the class folders: {name_first(loose)}. "
            "Move each into the folder of its class."
        )
