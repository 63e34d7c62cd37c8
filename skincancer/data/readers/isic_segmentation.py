"""Readers for the segmentation tasks of the ISIC challenges 2016, 2017 and 2018.

Each subset has one folder of images and one folder of masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from skincancer.data.index import name_first
from skincancer.data.readers.files import check_match, list_jpegs, list_masks, read_csv
from skincancer.errors import DataError


@dataclass(frozen=True)
class Layout:
    """Folder names of one challenge, with {} for its name of a subset."""

    dataset: str
    images: str
    masks: str
    parts: Mapping[str, str]


ISIC2016 = Layout(
    "isic2016_task1",
    "ISBI2016_ISIC_Part1_{}_Data",
    "ISBI2016_ISIC_Part1_{}_GroundTruth",
    {"Training": "train", "Test": "test"},
)
ISIC2017 = Layout(
    "isic2017_task1",
    "ISIC-2017_{}_Data",
    "ISIC-2017_{}_Part1_GroundTruth",
    {"Training": "train", "Validation": "val", "Test_v2": "test"},
)
ISIC2018 = Layout(
    "isic2018_task1",
    "ISIC2018_Task1-2_{}_Input",
    "ISIC2018_Task1_{}_GroundTruth",
    {"Training": "train", "Validation": "val", "Test": "test"},
)


def read_2016(root: Path) -> pd.DataFrame:
    """Read ISIC 2016 Part 1 (Gutman et al. 2016) by `read_parts`."""
    return read_parts(root, ISIC2016)


def read_2017(root: Path) -> pd.DataFrame:
    """Read ISIC 2017 Part 1 (Codella et al. 2018) and optional diagnoses.

    The diagnoses are ISIC-2017_<Part>_Part3_GroundTruth.csv in the root. Either all subsets with images have this table
    or none, because subsets without it would count as unlabelled in the official split.

    Returns:
        The columns of `read_parts`, and diagnosis: melanoma, nevus, seborrheic_keratosis.

    Raises:
        DataError: As in `read_parts`. Also, if only some subsets have their table, or a table has other ids than the
            images of its subset, values other than 0 and 1, or more than one 1 per row.
    """
    table = read_parts(root, ISIC2017)
    present = set(table["part"])
    tables = {
        part: root / f"ISIC-2017_{published}_Part3_GroundTruth.csv"
        for published, part in ISIC2017.parts.items()
        if part in present
    }
    missing = [path for path in tables.values() if not path.is_file()]
    if len(missing) == len(tables):
        return table
    if missing:
        raise DataError(
            f"isic2017_task1: {missing[0]} is missing, while another subset has its diagnoses; download it from "
            "challenge.isic-archive.com/data/#2017, or delete the other tables (masks need none)"
        )
    diagnosis: dict[str, str] = {}
    for part, path in tables.items():
        diagnosis |= _read_diagnoses(path, table.loc[table["part"] == part, "image_id"])
    return table.assign(diagnosis=table["image_id"].map(diagnosis))


def read_2018(root: Path) -> pd.DataFrame:
    """Read ISIC 2018 Task 1 (Codella et al. 2019) by `read_parts`."""
    return read_parts(root, ISIC2018)


def read_parts(root: Path, layout: Layout) -> pd.DataFrame:
    """Read the images and masks of every subset that exists.

    The training set is required. Publishers release the masks of validation and test later: until then, their images
    are kept without a mask for prediction, and a run records them as left out. Every other image needs its mask. Files
    other than *.jpg and *_segmentation.png (in any case), such as superpixels, tables and licences, are ignored. The
    publisher gives no lesion ids: each image counts as a separate lesion.

    Returns:
        Columns image_id, image, mask (None in a subset without masks), part.

    Raises:
        DataError: The training set is missing, a subset has masks without images, a folder contains no image, or images
            and masks of a subset have different ids.
    """
    tables = [_read_part(root, layout, published, part) for published, part in layout.parts.items()]
    return pd.concat([table for table in tables if table is not None], ignore_index=True)


def _read_part(root: Path, layout: Layout, published: str, part: str) -> pd.DataFrame | None:
    image_folder, mask_folder = (name.format(published) for name in (layout.images, layout.masks))
    images, masks = _folder(root, image_folder), _folder(root, mask_folder)
    if images is None and masks is None and part != "train":
        return None
    if images is None or (masks is None and part == "train"):
        name = image_folder if images is None else mask_folder
        raise DataError(f"{layout.dataset}: {root / name} is missing; download {name}.zip and unpack it there")
    image_of = list_jpegs(images)
    if not image_of:
        raise DataError(f"{layout.dataset}: {images} contains no *.jpg; unpack {image_folder}.zip there")
    mask_of: dict[str, Path] = {}
    if masks is not None:
        mask_of = list_masks(masks)
        hint = f" Check that {image_folder} and {mask_folder} are complete and of the same subset."
        check_match(image_of, mask_of, masks, hint, kind="mask")
    mask_paths = [mask_of[i].relative_to(root).as_posix() if mask_of else None for i in image_of]
    return pd.DataFrame(
        {
            "image_id": list(image_of),
            "image": [path.relative_to(root).as_posix() for path in image_of.values()],
            "mask": pd.Series(mask_paths, dtype=object),
            "part": part,
        }
    )


def _folder(root: Path, name: str) -> Path | None:
    """Find the folder of an archive, at the root or one level deeper."""
    return next((path for path in (root / name / name, root / name) if path.is_dir()), None)


def _read_diagnoses(path: Path, ids: pd.Series[str]) -> dict[str, str]:
    table = read_csv(path, required=("image_id", "melanoma", "seborrheic_keratosis"))
    check_match(ids, table["image_id"], path)
    values = table[["melanoma", "seborrheic_keratosis"]].apply(pd.to_numeric, errors="coerce")
    valid = values.isin([0, 1]).all(axis=1) & (values.sum(axis=1) <= 1) & ~table["image_id"].duplicated()
    if not valid.all():
        wrong = table.loc[~valid, "image_id"]
        raise DataError(
            f"{path}: {len(wrong)} rows are repeated, or contain other values than zeros and at most one 1: "
            f"{name_first(wrong)}"
        )
    diagnosis = values.idxmax(axis=1).where(values.sum(axis=1) == 1, "nevus")
    return dict(zip(table["image_id"], diagnosis, strict=True))
