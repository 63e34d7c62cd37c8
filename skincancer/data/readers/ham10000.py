"""Reader for HAM10000 (Tschandl et al. 2018), as on Harvard Dataverse and Kaggle."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from skincancer.data.image_files import ImageSearch
from skincancer.data.index import name_first
from skincancer.data.readers.files import check_match, find_folder, list_images, list_masks, read_csv
from skincancer.errors import DataError

METADATA = ("ham10000_metadata.csv", "ham10000_metadata.tab", "ham10000_metadata")
MASKS = "HAM10000_segmentations_lesion_tschandl"

_IMAGE_FOLDER = re.compile(r"(ham10000[ _-]?)?images([ _-]?part[ _-]?[12])?", re.IGNORECASE)


def read(root: Path) -> pd.DataFrame:
    """Read metadata, images and, if their folder exists, masks.

    Returns:
        Columns image_id, image, mask (None without a file), diagnosis, lesion_id, age, sex, site, dx_type. HAM10000 has
        no official split.

    Raises:
        DataError: Metadata or images are missing or have different ids, an id exists in two folders, or a mask has no
            image.
    """
    metadata = _metadata(root)
    table = read_csv(
        metadata, required=("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
    ).rename(columns={"dx": "diagnosis", "localization": "site"})
    search = ImageSearch()
    images = _images(root, search)
    check_match(images, table["image_id"], metadata, " Download the images of both archives.")

    masks = _masks(root, images)
    mask = [masks[i].relative_to(root).as_posix() if i in masks else None for i in table["image_id"]]
    index = pd.DataFrame(
        {
            **{name: table[name] for name in ("image_id", "diagnosis", "lesion_id", "age", "sex", "site", "dx_type")},
            "image": [images[i].relative_to(root).as_posix() for i in table["image_id"]],
            "mask": pd.Series(mask, dtype=object),
        }
    )
    index.attrs["notes"] = search.describe()
    return index


def _metadata(root: Path) -> Path:
    tables = sorted(path for path in root.iterdir() if path.name.lower() in METADATA and path.is_file())
    if len(tables) != 1:
        content = (
            f"{len(tables)} metadata tables ({name_first(path.name for path in tables)})" if tables else "no metadata"
        )
        raise DataError(
            f"ham10000: {root} contains {content}; expected exactly one of HAM10000_metadata.csv, "
            "HAM10000_metadata.tab, HAM10000_metadata"
        )
    return tables[0]


def _images(root: Path, search: ImageSearch) -> dict[str, Path]:
    folders = [path for path in search.list_folders(root) if _IMAGE_FOLDER.fullmatch(path.name)]
    listings: dict[str, dict[str, Path]] = {}
    for folder in folders or [root]:
        listing = list_images(folder / folder.name if (folder / folder.name).is_dir() else folder, search)
        # Kaggle's archive contains each folder twice, with its name in upper and in lower case.
        twin = listings.setdefault(folder.name.casefold(), listing)
        if _sizes(twin) != _sizes(listing):
            raise DataError(f"ham10000: {folder} and the same name in another case contain different images; keep one")
    images: dict[str, Path] = {}
    for listing in listings.values():
        both = sorted(images.keys() & listing.keys())
        if both:
            raise DataError(
                f"ham10000: {len(both)} image ids exist in more than one folder: {name_first(both)} "
                f"(for example {images[both[0]]} and {listing[both[0]]}). Keep one copy of each."
            )
        images |= listing
    if not images:
        searched = name_first(folder.name for folder in folders) or "the root itself, because no image folder exists"
        raise DataError(f"ham10000: no image in {root}; searched {searched}; {search.describe_empty()}")
    return images


def _masks(root: Path, images: dict[str, Path]) -> dict[str, Path]:
    folder = find_folder(root, MASKS)
    if folder is None:
        return {}
    masks = list_masks(folder)
    if not masks:
        raise DataError(f"{folder} contains no file <image id>_segmentation.png; add the masks, or delete the folder")
    orphans = sorted(masks.keys() - images.keys())
    if orphans:
        raise DataError(
            f"{folder}: {len(orphans)} masks without an image: {name_first(orphans)}. Download the images of both "
            "archives, or delete these masks."
        )
    return masks


def _sizes(listing: dict[str, Path]) -> dict[str, int]:
    return {image_id: path.stat().st_size for image_id, path in listing.items()}
