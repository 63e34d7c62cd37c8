"""Readers for masks and diagnoses of the ISIC challenges 2016, 2017 and 2018.

Each subset has one folder of images, and one folder of masks or a table of diagnoses or both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from skincancer.data.image_files import ImageSearch
from skincancer.data.index import name_first
from skincancer.data.readers.files import check_match, find_folder, find_table, list_images, list_masks, read_csv
from skincancer.errors import DataError

# Values of the ground truth of ISIC 2016 Part 3: words in the training set, numbers in the test set.
MALIGNANCY = {"benign": "benign", "malignant": "malignant", "0.0": "benign", "1.0": "malignant"}


@dataclass(frozen=True)
class Layout:
    """File names of one challenge, with {} for its name of a subset.

    Attributes:
        images: possible folders of images. The first existing one is read.
        masks: folder of masks.
        parts: `part` by the publisher's name of the subset.
        diagnoses: table of diagnoses, "" if the challenge has none.
        metadata: table of age and sex, "" if the challenge has none.
    """

    dataset: str
    images: tuple[str, ...]
    masks: str
    parts: Mapping[str, str]
    diagnoses: str = ""
    metadata: str = ""


ISIC2016 = Layout(
    "isic2016_task1",
    ("ISBI2016_ISIC_Part1_{}_Data", "ISBI2016_ISIC_Part3_{}_Data"),
    "ISBI2016_ISIC_Part1_{}_GroundTruth",
    {"Training": "train", "Test": "test"},
    "ISBI2016_ISIC_Part3_{}_GroundTruth.csv",
)
ISIC2017 = Layout(
    "isic2017_task1",
    ("ISIC-2017_{}_Data",),
    "ISIC-2017_{}_Part1_GroundTruth",
    {"Training": "train", "Validation": "val", "Test_v2": "test"},
    "ISIC-2017_{}_Part3_GroundTruth.csv",
    "ISIC-2017_{}_Data_metadata.csv",
)
ISIC2018 = Layout(
    "isic2018_task1",
    ("ISIC2018_Task1-2_{}_Input",),
    "ISIC2018_Task1_{}_GroundTruth",
    {"Training": "train", "Validation": "val", "Test": "test"},
)


def read_2016(root: Path) -> pd.DataFrame:
    """Read ISIC 2016 Parts 1 and 3 (Gutman et al. 2016).

    The diagnoses are ISBI2016_ISIC_Part3_<Part>_GroundTruth.csv in the root: benign, malignant. Both parts have the same
    images.
    """
    return _with_diagnoses(root, ISIC2016, _read_malignancy)


def read_2017(root: Path) -> pd.DataFrame:
    """Read ISIC 2017 Parts 1 and 3 (Codella et al. 2018).

    The diagnoses are ISIC-2017_<Part>_Part3_GroundTruth.csv in the root: melanoma, nevus, seborrheic_keratosis. Age and
    sex are ISIC-2017_<Part>_Data_metadata.csv in the folder of images or in the root.
    """
    return _with_diagnoses(root, ISIC2017, _read_diagnoses)


def read_2018(root: Path) -> pd.DataFrame:
    """Read ISIC 2018 Task 1 (Codella et al. 2019) by `read_parts`."""
    return read_parts(root, ISIC2018)


def read_parts(root: Path, layout: Layout) -> pd.DataFrame:
    """Read the images and masks of every subset that exists.

    One subset is enough. Publishers release the masks of validation and test later: until then, their images are kept
    without a mask for prediction, and a run records them as left out. Training images need masks or diagnoses. If a
    subset has masks, every image needs one. Files other than images and *_segmentation.png (in any case), such as
    superpixels and licences, are ignored. The publisher gives no lesion ids: each image counts as a separate lesion.

    Returns:
        Columns image_id, image, mask (None in a subset without masks), part, age and sex where published.

    Raises:
        DataError: No subset exists, a subset has masks without images, the training set has neither masks nor diagnoses, a
            folder contains no image, or images and masks of a subset have different ids.
    """
    search = ImageSearch()
    present = [
        name for name in layout.parts if _images(root, layout, name) or find_folder(root, layout.masks.format(name))
    ]
    tables = [_read_part(root, layout, name, search) for name in present or ["Training"]]
    index = pd.concat(tables, ignore_index=True)
    index.attrs["notes"] = search.describe()
    return index


def _images(root: Path, layout: Layout, published: str) -> Path | None:
    return next((folder for name in layout.images if (folder := find_folder(root, name.format(published)))), None)


def _diagnoses(root: Path, layout: Layout, published: str) -> Path | None:
    name = layout.diagnoses.format(published)
    return find_table(root, name, name.removesuffix(".csv")) if name else None


def _read_part(root: Path, layout: Layout, published: str, search: ImageSearch) -> pd.DataFrame:
    image_folder, mask_folder = layout.images[0].format(published), layout.masks.format(published)
    images, masks = _images(root, layout, published), find_folder(root, mask_folder)
    needs_masks = layout.parts[published] == "train" and not _diagnoses(root, layout, published)
    if images is None or (masks is None and needs_masks):
        name = image_folder if images is None else mask_folder
        raise DataError(f"{layout.dataset}: {root / name} is missing; download {name}.zip and unpack it there")
    image_of = list_images(images, search)
    if not image_of:
        raise DataError(
            f"{layout.dataset}: {images} contains no image; unpack {images.name}.zip there; {search.describe_empty()}"
        )
    mask_of: dict[str, Path] = {}
    if masks is not None:
        mask_of = list_masks(masks)
        hint = f" Check that {images.name} and {mask_folder} are complete and of the same subset."
        check_match(image_of, mask_of, masks, hint, kind="mask")
    mask_paths = [mask_of[i].relative_to(root).as_posix() if mask_of else None for i in image_of]
    table = pd.DataFrame(
        {
            "image_id": list(image_of),
            "image": [path.relative_to(root).as_posix() for path in image_of.values()],
            "mask": pd.Series(mask_paths, dtype=object),
            "part": layout.parts[published],
        }
    )
    return table.assign(**_read_metadata(root, layout, published, images, table["image_id"]))


def _read_metadata(
    root: Path, layout: Layout, published: str, images: Path, ids: pd.Series[str]
) -> dict[str, pd.Series[str]]:
    """Read age and sex of images, {} without a table."""
    name = layout.metadata.format(published)
    path = next((place / name for place in (images, root) if name and (place / name).is_file()), None)
    if path is None:
        return {}
    table = read_csv(path, required=("image_id", "age_approximate", "sex")).drop_duplicates("image_id")
    table = table.set_index("image_id")
    return {column: ids.map(table[name]) for column, name in (("age", "age_approximate"), ("sex", "sex"))}


def _with_diagnoses(root: Path, layout: Layout, read: Callable[[Path, pd.Series[str]], dict[str, str]]) -> pd.DataFrame:
    """Read subsets by `read_parts`, and their diagnoses.

    Either all subsets with images have a table of diagnoses or none, because subsets without one would count as unlabelled in
    the official split.

    Raises:
        DataError: As in `read_parts`. Also, if only some subsets have their table, or a table has other ids than the
            images of its subset, repeated ids or unknown values.
    """
    index = read_parts(root, layout)
    present = set(index["part"])
    tables = {part: _diagnoses(root, layout, name) for name, part in layout.parts.items() if part in present}
    if not any(tables.values()):
        return index
    diagnosis: dict[str, str] = {}
    for published, part in layout.parts.items():
        if part not in present:
            continue
        path = tables[part]
        if path is None:
            raise DataError(
                f"{layout.dataset}: {root / layout.diagnoses.format(published)} is missing, while another subset has its "
                f"diagnoses; download it from challenge.isic-archive.com/data, or delete the other tables (masks need none)"
            )
        diagnosis |= read(path, index.loc[index["part"] == part, "image_id"])
    return index.assign(diagnosis=index["image_id"].map(diagnosis))


def _read_malignancy(path: Path, ids: pd.Series[str]) -> dict[str, str]:
    """Read the ground truth of ISIC 2016 Part 3, which has no header."""
    rows = read_csv(path, columns=("image_id", "malignancy"))
    check_match(ids, rows["image_id"], path)
    _check_rows(
        path, rows, rows["malignancy"].isin(MALIGNANCY), "other values than benign and malignant, or 0.0 and 1.0"
    )
    return dict(zip(rows["image_id"], rows["malignancy"].map(MALIGNANCY), strict=True))


def _read_diagnoses(path: Path, ids: pd.Series[str]) -> dict[str, str]:
    """Read the ground truth of ISIC 2017 Part 3."""
    table = read_csv(path, required=("image_id", "melanoma", "seborrheic_keratosis"))
    check_match(ids, table["image_id"], path)
    values = table[["melanoma", "seborrheic_keratosis"]].apply(pd.to_numeric, errors="coerce")
    valid = values.isin([0, 1]).all(axis=1) & (values.sum(axis=1) <= 1)
    _check_rows(path, table, valid, "other values than zeros and at most one 1")
    diagnosis = values.idxmax(axis=1).where(values.sum(axis=1) == 1, "nevus")
    return dict(zip(table["image_id"], diagnosis, strict=True))


def _check_rows(path: Path, table: pd.DataFrame, valid: pd.Series[bool], wrong: str) -> None:
    valid &= ~table["image_id"].duplicated()
    if not valid.all():
        ids = table.loc[~valid, "image_id"]
        raise DataError(f"{path}: {len(ids)} rows are repeated, or contain {wrong}: {name_first(ids)}")
