"""Reader for ISIC 2018 Task 3 (Codella et al. 2019).

HAM10000 is the training set; the publisher adds a validation and a test set.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from skincancer.data.image_files import ImageSearch
from skincancer.data.index import name_first
from skincancer.data.readers.files import check_match, find_folder, find_table, list_images, read_csv
from skincancer.errors import DataError

PARTS = {"Training": "train", "Validation": "val", "Test": "test"}
LABELS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
# Metadata of the test set on Harvard Dataverse, in the columns of HAM10000, with their names in the index.
METADATA = {"lesion_id": "lesion_id", "dx_type": "dx_type", "age": "age", "sex": "sex", "localization": "site"}


def read(root: Path) -> pd.DataFrame:
    """Read the training, validation and test sets that exist.

    The lesion groupings of a training set are required: without them, views of one lesion could get into both the
    training and the validation set. The challenge publishes them for the training set only. HAM10000 on Harvard Dataverse
    contains the test set with lesion ids and other metadata: the folder ISIC2018_Task3_Test_Images, and a table of its own
    form, which may end in .tab or have no extension.

    Returns:
        Columns image_id, image, diagnosis (lower-case names of HAM10000), lesion_id, dx_type and other metadata (empty
        where the publisher gives none), part.

    Raises:
        DataError: No set exists, or the groupings of the training set are missing, a subset has only images or only
            ground truth, images and ground truth have different ids, or a row of the ground truth is not one-hot.
    """
    tables, search = [], ImageSearch()
    places = {published: _find_set(root, published) for published in PARTS}
    present = [published for published, place in places.items() if any(place)] or ["Training"]
    for published in present:
        folder, truth = places[published]
        archive, name = f"ISIC2018_Task3_{published}_Input", f"ISIC2018_Task3_{published}_GroundTruth"
        if folder is None:
            raise DataError(f"isic2018_task3: {root / archive} is missing; download {archive}.zip and unpack it there")
        if truth is None:
            raise DataError(
                f"isic2018_task3: {archive} has no labels; download {name}.zip and unpack it so that "
                f"{root / name / f'{name}.csv'} exists, or delete the images"
            )
        table = _read_part(root, folder, truth, search).assign(part=PARTS[published])
        if published == "Training":
            lesions, dx_type = _read_groupings(root, table["image_id"])
            table = table.assign(lesion_id=lesions, dx_type=dx_type)
        tables.append(table)
    index = pd.concat(tables, ignore_index=True)
    index.attrs["notes"] = search.describe()
    return index


def _find_set(root: Path, published: str) -> tuple[Path | None, Path | None]:
    """Find the images and the ground truth of a set, None if missing."""
    name = f"ISIC2018_Task3_{published}_GroundTruth"
    folder, truth = find_folder(root, f"ISIC2018_Task3_{published}_Input"), find_table(root, f"{name}.csv", name)
    if published == "Test":
        folder = folder or find_folder(root, "ISIC2018_Task3_Test_Images")
        truth = truth or find_table(root, f"{name}.tab", name) or find_table(root, name)
    return folder, truth


def _read_part(root: Path, folder: Path, truth: Path, search: ImageSearch) -> pd.DataFrame:
    has_names = "dx" in read_csv(truth)
    table = read_csv(truth, required=("image_id", "dx", "lesion_id") if has_names else ("image", *LABELS))
    table = table.rename(columns={"image_id": "image"} if has_names else {})
    images = list_images(folder, search)
    check_match(images, table["image"], truth, f" Check that {folder.name} is complete.")
    return pd.DataFrame(
        {
            "image_id": table["image"],
            "image": [images[i].relative_to(root).as_posix() for i in table["image"]],
            "diagnosis": table["dx"] if has_names else _read_one_hot(table, truth),
            **{column: table[name] for name, column in METADATA.items() if name in table},
        }
    )


def _read_one_hot(table: pd.DataFrame, truth: Path) -> pd.Series[str]:
    values = table[list(LABELS)].apply(pd.to_numeric, errors="coerce")
    one_hot = values.isin([0, 1]).all(axis=1) & (values.sum(axis=1) == 1)
    if not one_hot.all():
        wrong = table.loc[~one_hot, "image"]
        raise DataError(f"{truth}: {len(wrong)} rows do not contain exactly one 1 among zeros: {name_first(wrong)}")
    return values.idxmax(axis=1).str.lower()


def _read_groupings(root: Path, ids: pd.Series[str]) -> tuple[list[str], list[str]]:
    name = "ISIC2018_Task3_Training_LesionGroupings"
    path = find_table(root, f"{name}.csv", "ISIC2018_Task3_Training_GroundTruth", name)
    if path is None:
        raise DataError(
            f"isic2018_task3: {root / f'{name}.csv'} is missing; without it, views of one lesion could get into "
            "both training and validation. Download it from challenge.isic-archive.com/data/#2018."
        )
    table = read_csv(path, required=("image", "lesion_id", "diagnosis_confirm_type"))
    check_match(ids, table["image"], path)
    repeated = table.loc[table["image"].duplicated(), "image"]
    if len(repeated):
        raise DataError(f"{path} lists images twice: {name_first(repeated)}")
    table = table.set_index("image").reindex(list(ids))
    return list(table["lesion_id"]), list(table["diagnosis_confirm_type"])
