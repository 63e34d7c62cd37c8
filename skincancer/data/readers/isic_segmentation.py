"""Readers for the lesion segmentation tasks of the ISIC challenges 2016, 2017 and 2018: a folder of images and one of masks a part."""

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
    """How one challenge names its folders; {} stands for its own name of a part."""

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
    """Read ISIC 2016 Part 1 (Gutman et al. 2016): training and, where it is there, test; see `read_parts`."""
    return read_parts(root, ISIC2016)


def read_2017(root: Path) -> pd.DataFrame:
    """Read ISIC 2017 Part 1 (Codella et al. 2018), with the diagnoses of Part 3 where their tables lie beside it.

    The tables are ISIC-2017_<Part>_Part3_GroundTruth.csv in the root. Either every part that has images has one, or
    none: with some alone, the others would count as unlabelled in the official split.

    Returns:
        As `read_parts`, and diagnosis: melanoma, nevus, seborrheic_keratosis.

    Raises:
        DataError: As `read_parts`; or if a part lacks its table while another has one, or a table does not name the
            images of its part, or holds something else than 0 and 1, at most one 1 a row.
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
            f"isic2017_task1: {missing[0]} is missing, while another part has its diagnoses; fetch it from "
            "challenge.isic-archive.com/data/#2017, or take the others away (masks need none)"
        )
    diagnosis: dict[str, str] = {}
    for part, path in tables.items():
        diagnosis |= _read_diagnoses(path, table.loc[table["part"] == part, "image_id"])
    return table.assign(diagnosis=table["image_id"].map(diagnosis))


def read_2018(root: Path) -> pd.DataFrame:
    """Read ISIC 2018 Task 1 (Codella et al. 2019): training and, where they are there, validation and test; see `read_parts`."""
    return read_parts(root, ISIC2018)


def read_parts(root: Path, layout: Layout) -> pd.DataFrame:
    """Read the images and masks of every part that is there.

    The training part is required. Where validation or test has images but no folder of masks (publishers release the
    truth later), its images are kept without a mask: they are there to predict on, and a run records them as left out.
    Every other image needs its mask. Files that are neither *.jpg nor *_segmentation.png (in any case), such as
    superpixels, tables and licences, are left alone. The publisher tells no lesions: each image is its own.

    Returns:
        Columns image_id, image, mask (None in a part without truth), part.

    Raises:
        DataError: If the training part is missing, a part has masks without images, a folder holds no image, or images
            and masks of a part do not name the same ids.
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
        raise DataError(f"{layout.dataset}: {root / name} is missing; fetch {name}.zip and unpack it there")
    pictures = list_jpegs(images)
    if not pictures:
        raise DataError(f"{layout.dataset}: {images} holds no *.jpg; unpack {image_folder}.zip there")
    truths: dict[str, Path] = {}
    if masks is not None:
        truths = list_masks(masks)
        check_match(
            pictures, truths, masks, f" Are {image_folder} and {mask_folder} complete, and of one part?", kind="mask"
        )
    truth = [truths[i].relative_to(root).as_posix() if truths else None for i in pictures]
    return pd.DataFrame(
        {
            "image_id": list(pictures),
            "image": [path.relative_to(root).as_posix() for path in pictures.values()],
            "mask": pd.Series(truth, dtype=object),
            "part": part,
        }
    )


def _folder(root: Path, name: str) -> Path | None:
    """The folder of an archive; unpacked into a folder of its own name, it lies one level deeper."""
    return next((path for path in (root / name / name, root / name) if path.is_dir()), None)


def _read_diagnoses(path: Path, ids: pd.Series[str]) -> dict[str, str]:
    table = read_csv(path, required=("image_id", "melanoma", "seborrheic_keratosis"))
    check_match(ids, table["image_id"], path)
    values = table[["melanoma", "seborrheic_keratosis"]].apply(pd.to_numeric, errors="coerce")
    valid = values.isin([0, 1]).all(axis=1) & (values.sum(axis=1) <= 1) & ~table["image_id"].duplicated()
    if not valid.all():
        wrong = table.loc[~valid, "image_id"]
        raise DataError(
            f"{path}: {len(wrong)} rows are repeated, or hold something else than zeros and at most one 1: "
            f"{name_first(wrong)}"
        )
    diagnosis = values.idxmax(axis=1).where(values.sum(axis=1) == 1, "nevus")
    return dict(zip(table["image_id"], diagnosis, strict=True))
