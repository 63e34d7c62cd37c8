from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import put, write
from PIL import Image

from skincancer.data.catalog import dataset
from skincancer.data.index import add_target, load_index
from skincancer.data.prepare import prepare_data
from skincancer.data.splits import assign_roles, parse_split
from skincancer.data.store import open_store
from skincancer.errors import DataError, SplitError
from skincancer.imaging.preprocessing import Preprocessing
from skincancer.schema.data import DataConfig


def load(name: str, root: Path) -> pd.DataFrame:
    return load_index(dataset(name), root)[0]


# images, masks and part of each publisher's folder, with the spelling of its masks
LAYOUTS = {
    "isic2018_task1": (
        "_segmentation.png",
        ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", "train"),
        ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth", "val"),
        ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth", "test"),
    ),
    "isic2017_task1": (
        "_segmentation.png",
        ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth", "train"),
        ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth", "val"),
        ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth", "test"),
    ),
    "isic2016_task1": (
        "_Segmentation.png",
        ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", "train"),
        ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth", "test"),
    ),
}


def make(name: str, root: Path, parts: tuple[str, ...] = ("train", "val", "test"), nested: bool = False) -> None:
    """Two images a part, ISIC_0 and ISIC_1 in the first, with everything that publishers put beside them."""
    ending, *folders = LAYOUTS[name]
    for number, (images, masks, part) in enumerate(folders):
        if part in parts:
            for image_id in (f"ISIC_{2 * number}", f"ISIC_{2 * number + 1}"):
                put(root / images / (images if nested else ""), f"{image_id}.jpg", f"{image_id}_superpixels.png")
                put(root / masks / (masks if nested else ""), f"{image_id}{ending}")
            put(root / images, "ATTRIBUTION.txt", "._ISIC_0.jpg")
            inner = images if nested else ""
            write(
                root / images / inner / f"{images}_metadata.csv",
                "image_id,age_approximate,sex",
                "ISIC_0,55,female",
                "ISIC_1,unknown,unknown",
            )
            put(root / masks, "LICENSE.txt", f"._ISIC_0{ending}")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_isic_segmentation(tmp_path: Path, name: str, nested: bool) -> None:
    make(name, tmp_path, nested=nested)
    index = load(name, tmp_path)
    ending, *folders = LAYOUTS[name]
    assert index["image_id"].tolist() == [f"ISIC_{number}" for number in range(2 * len(folders))]
    for row in index.itertuples():
        images, masks, part = folders[row.Index // 2]
        inner = (f"{images}/", f"{masks}/") if nested else ("", "")
        assert row.image == f"{images}/{inner[0]}{row.image_id}.jpg"
        assert row.mask == f"{masks}/{inner[1]}{row.image_id}{ending}"
        assert row.part == part
        assert row.lesion_id == row.image_id
    assert set(index["diagnosis"]) == {None}


@pytest.mark.parametrize(("name", "part"), [(name, row[2]) for name, rows in LAYOUTS.items() for row in rows[1:]])
def test_one_part_alone_is_enough(tmp_path: Path, name: str, part: str) -> None:
    make(name, tmp_path, parts=(part,))
    index = load(name, tmp_path)
    assert index["part"].tolist() == [part, part]
    assert index["mask"].notna().all()


@pytest.mark.parametrize("name", ["isic2016_task1", "isic2017_task1"])
def test_fit_needs_the_training_part(tmp_path: Path, name: str) -> None:
    make(name, tmp_path, parts=("test",))
    for split in ("80:20", "official"):
        config = DataConfig(dataset=name, root=str(tmp_path), split=split)
        with pytest.raises(SplitError, match=r"contains only the publisher's test set.*Add the training set"):
            prepare_data(config, task="segmentation", jobs=1)


def test_age_and_sex_of_isic2017(tmp_path: Path) -> None:
    make("isic2017_task1", tmp_path)
    index = load("isic2017_task1", tmp_path)
    assert index["age"].tolist()[:1] == [55.0]
    assert index["age"][1:].isna().all()
    assert index["sex"].tolist()[:3] == ["female", "unknown", ""]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_part_without_truth_keeps_its_images_without_masks(tmp_path: Path, name: str) -> None:
    make(name, tmp_path)
    test_masks = LAYOUTS[name][-1][1]
    for path in (tmp_path / test_masks).iterdir():
        path.unlink()
    (tmp_path / test_masks).rmdir()
    index = load(name, tmp_path)
    assert index.loc[index["part"] == "test", "mask"].tolist() == [None, None]
    assert index.loc[index["part"] != "test", "mask"].notna().all()
    with pytest.raises(DataError, match="no labelled test set"):
        assign_roles(index, parse_split("official"), 0)


def test_official_parts_of_a_data_set_of_masks_become_the_roles(tmp_path: Path) -> None:
    make("isic2018_task1", tmp_path)
    index = load("isic2018_task1", tmp_path)
    assert list(assign_roles(index, parse_split("official"), 0).role) == index["part"].tolist()


def remove(name: str, folder: int, which: int, *files: str) -> Callable[[Path], None]:
    """Take files, or all of a folder, away: `folder` counts the parts from 1, `which` is 0 for images, 1 for masks."""

    def damage(root: Path) -> None:
        place = root / LAYOUTS[name][folder][which]
        for path in [place / file for file in files] if files else list(place.iterdir()):
            path.unlink()
        if not files:
            place.rmdir()

    return damage


@pytest.mark.parametrize("name", LAYOUTS)
def test_isic_segmentation_refuses(tmp_path: Path, name: str) -> None:
    ending, (images, masks, _), *_, (test_images, _, _) = LAYOUTS[name]
    cases: dict[str, tuple[Callable[[Path], object], str]] = {
        "an image without a mask": (
            remove(name, 1, 1, f"ISIC_1{ending}"),
            rf"{masks}: 1 images without a mask: ISIC_1\. Check that {images} and {masks} are complete",
        ),
        "a mask without an image": (remove(name, 1, 0, "ISIC_0.jpg"), rf"{masks}: 1 masks without an image: ISIC_0\."),
        "the same in the test part": (
            lambda root: put(root, f"{LAYOUTS[name][-1][1]}/ISIC_77{ending}"),
            r"_Test\w*: 1 masks without an image: ISIC_77\.",
        ),
        "no masks to train on": (remove(name, 1, 1), rf"{masks} is missing; download {masks}\.zip"),
        "no images to train on": (remove(name, 1, 0), rf"{images} is missing; download {images}\.zip"),
        "test masks alone": (
            remove(name, len(LAYOUTS[name]) - 1, 0),
            rf"{test_images} is missing; download {test_images}\.zip",
        ),
        "a folder without images": (
            remove(name, 1, 0, "ISIC_0.jpg", "ISIC_1.jpg"),
            rf"{images} contains no image",
        ),
        "two masks of one image": (
            lambda root: put(root, f"{masks}/ISIC_0_SEGMENTATION.png"),
            "ISIC_0_.* and .*ISIC_0_.* are masks of the same image",
        ),
        "one image in two parts": (
            lambda root: [
                put(root, f"{test_images}/ISIC_0.jpg"),
                put(root, f"{LAYOUTS[name][-1][1]}/ISIC_0{ending}"),
            ],
            "1 image ids occur more than once: ISIC_0",
        ),
    }
    for what, (damage, message) in cases.items():
        root = tmp_path / what
        make(name, root)
        damage(root)
        with pytest.raises(DataError, match=message):
            load(name, root)


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_year_is_not_taken_for_this_one(tmp_path: Path, name: str) -> None:
    other = next(key for key in LAYOUTS if key != name)
    make(other, tmp_path)
    with pytest.raises(DataError, match=rf"^{name}: .*{LAYOUTS[name][1][0]} is missing"):
        load(name, tmp_path)


def make_2016(root: Path, images: str = "Part1") -> None:
    for part, rows in (("Training", ("ISIC_1,benign", "ISIC_0,malignant")), ("Test", ("ISIC_2,0.0", "ISIC_3,1.0"))):
        put(root / f"ISBI2016_ISIC_{images}_{part}_Data", *(f"{row.split(',')[0]}.jpg" for row in rows))
        write(root / f"ISBI2016_ISIC_Part3_{part}_GroundTruth.csv", *rows)


@pytest.mark.parametrize("images", ["Part1", "Part3"])
def test_isic2016_is_classified_without_masks(tmp_path: Path, images: str) -> None:
    make_2016(tmp_path, images)
    index = load("isic2016_task1", tmp_path)
    assert index["diagnosis"].tolist() == ["malignant", "benign", "benign", "malignant"]
    assert index["part"].tolist() == ["train", "train", "test", "test"]
    assert set(index["mask"]) == {None}


def test_isic2016_with_masks_and_diagnoses(tmp_path: Path) -> None:
    make("isic2016_task1", tmp_path)
    make_2016(tmp_path, "Part3")
    index = load("isic2016_task1", tmp_path)
    assert index["image"].str.contains("Part1").all()
    assert index["mask"].notna().all()
    assert index["diagnosis"].tolist() == ["malignant", "benign", "benign", "malignant"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("ISIC_1,benign", "ISIC_0,melanoma"), "1 rows are repeated, or contain other values than benign.*: ISIC_0"),
        (("ISIC_1,benign", "ISIC_0,benign", "ISIC_0,benign"), "1 rows are repeated.*: ISIC_0"),
        (("ISIC_1,benign",), "1 images without a row: ISIC_0"),
    ],
)
def test_isic2016_refuses_diagnoses(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    make_2016(tmp_path)
    write(tmp_path / "ISBI2016_ISIC_Part3_Training_GroundTruth.csv", *rows)
    with pytest.raises(DataError, match=message):
        load("isic2016_task1", tmp_path)


PART3 = "image_id,melanoma,seborrheic_keratosis"


def part3(published: str) -> str:
    return f"ISIC-2017_{published}_Part3_GroundTruth.csv"


def make_2017(root: Path) -> None:
    make("isic2017_task1", root)
    write(root / part3("Training"), PART3, "ISIC_1,0.0,0.0", "ISIC_0,1.0,0.0")
    write(root / part3("Validation"), PART3, "ISIC_2,0.0,1.0", "ISIC_3,1,0")
    write(root / part3("Test_v2"), PART3, "ISIC_4,0.0,0.0", "ISIC_5,0.0,1.0")


def test_isic2017_with_diagnoses(tmp_path: Path) -> None:
    make_2017(tmp_path)
    index = load("isic2017_task1", tmp_path)
    assert index["diagnosis"].tolist() == [
        *("melanoma", "nevus"),
        *("seborrheic_keratosis", "melanoma"),
        *("nevus", "seborrheic_keratosis"),
    ]
    entry = dataset("isic2017_task1")
    labelled, _ = add_target(index, entry, entry.classes, "malignancy")
    assert labelled["label"].tolist() == [1, 0, 0, 1, 0, 0]
    assert index["mask"].notna().all()


def test_isic2017_is_classified_without_masks(tmp_path: Path) -> None:
    make_2017(tmp_path)
    for _, masks, _ in LAYOUTS["isic2017_task1"][1:]:
        shutil.rmtree(tmp_path / masks)
    index = load("isic2017_task1", tmp_path)
    assert index["diagnosis"].notna().all()
    assert set(index["mask"]) == {None}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / part3("Test_v2")).unlink(), rf"{part3('Test_v2')} is missing, while another subset"),
        (lambda root: write(root / part3("Training"), PART3, "ISIC_1,0,0"), "1 images without a row: ISIC_0"),
        (
            lambda root: write(root / part3("Training"), PART3, "ISIC_1,0,0", "ISIC_0,1,1"),
            "1 rows are repeated, or contain .*: ISIC_0",
        ),
        (
            lambda root: write(root / part3("Training"), PART3, "ISIC_1,0,x", "ISIC_0,1,0", "ISIC_0,0,0"),
            "2 rows are repeated, or contain .*: ISIC_1, ISIC_0",
        ),
        (lambda root: write(root / part3("Training"), "image,melanoma"), "no column image_id, seborrheic_keratosis"),
    ],
)
def test_isic2017_refuses_diagnoses(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    make_2017(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        load("isic2017_task1", tmp_path)


PH2_HEADER = (
    "||   Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | Pigment Network | Dots/Globules | "
    "Streaks | Regression Areas | Blue-Whitish Veil ||           Colors ||"
)
PH2_ROWS = (
    "|| IMD003 ||                        ||                  0 ||  0 | T | A | A | A | A ||             4    ||",
    "|| IMD002 ||         Compound nevus ||                  1 ||  1 | T | T | A | A | A ||          3  4    ||",
    "|| IMD058 ||               Melanoma ||                  2 ||  2 | AT| AT| P | P | P || 1  3  4  5  6 ||",
)
PH2_LEGEND = ("", "", "Legends for Clinical Diagnosis:", "0 - Common Nevus;", "1 - Atypical Nevus;", "2 - Melanoma.")


def make_ph2(base: Path) -> None:
    images = base / "PH2 Dataset images"
    for case in ("IMD002", "IMD003", "IMD058"):
        put(images / case, f"{case}_Dermoscopic_Image/{case}.bmp", f"{case}_lesion/{case}_lesion.bmp")
        put(images / case, f"{case}_roi/{case}_R1_Label4.bmp")
    put(images, ".DS_Store")
    write(base / "PH2_dataset.txt", PH2_HEADER, *PH2_ROWS, *PH2_LEGEND)


@pytest.mark.parametrize("level", ["", "PH2Dataset", "PH2Dataset/PH2Dataset"])
def test_ph2(tmp_path: Path, level: str) -> None:
    make_ph2(tmp_path / level)
    index = load("ph2", tmp_path)
    inside = f"{level}/" if level else ""
    assert index["image_id"].tolist() == ["IMD002", "IMD003", "IMD058"]
    assert index["image"][0] == f"{inside}PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD002.bmp"
    assert index["mask"][2] == f"{inside}PH2 Dataset images/IMD058/IMD058_lesion/IMD058_lesion.bmp"
    assert index["diagnosis"].tolist() == ["atypical_nevus", "common_nevus", "melanoma"]
    assert set(index["part"]) == {""}
    assert index["lesion_id"].tolist() == index["image_id"].tolist()


def test_ph2_of_real_bitmaps_comes_into_the_store(tmp_path: Path) -> None:
    """24-bit images and 1-bit masks in BMP, through folders with spaces, to the arrays of a run."""
    make_ph2(tmp_path / "PH2Dataset")
    rng = np.random.default_rng(0)
    truths = {}
    for case in ("IMD002", "IMD003", "IMD058"):
        folder = tmp_path / "PH2Dataset" / "PH2 Dataset images" / case
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(
            folder / f"{case}_Dermoscopic_Image" / f"{case}.bmp"
        )
        truths[case] = rng.random((6, 8)) > 0.5
        Image.fromarray(truths[case]).save(folder / f"{case}_lesion" / f"{case}_lesion.bmp")
    index = load("ph2", tmp_path)
    store = open_store(index, tmp_path, tmp_path / "cache", Preprocessing(8, "stretch"), masks=True, jobs=1)
    assert len(store.bad) == 0
    assert store.table[["width", "height"]].drop_duplicates().to_numpy().tolist() == [[8, 6]]
    rows = (np.arange(8) + 0.5) * 6 / 8  # where the centres of the 8 rows lie among the 6
    for row, case in enumerate(index["image_id"]):
        assert np.array_equal(store.masks[row], truths[case][rows.astype(int)])


PH2_LESION = "PH2 Dataset images/IMD003/IMD003_lesion/IMD003_lesion.bmp"
PH2_IMAGE = "PH2 Dataset images/IMD003/IMD003_Dermoscopic_Image/IMD003.bmp"


def to_xlsx(root: Path) -> None:
    (root / "PH2_dataset.txt").rename(root / "PH2_dataset.xlsx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / PH2_LESION).unlink(), f"1 of 3 cases have no mask: {PH2_LESION}"),
        (lambda root: (root / PH2_IMAGE).unlink(), f"1 of 3 cases have no image: {PH2_IMAGE}"),
        (to_xlsx, r"PH2_dataset\.txt is missing.*PH2_dataset\.xlsx is not read"),
        (
            lambda root: (root / "PH2 Dataset images").rename(root / "images"),
            "contains the folder 'PH2 Dataset images'",
        ),
        (
            lambda root: write(root / "PH2_dataset.txt", PH2_HEADER, *PH2_ROWS[:2]),
            r"PH2_dataset\.txt: 1 images without a row: IMD058",
        ),
        (
            lambda root: write(root / "PH2_dataset.txt", PH2_HEADER, *PH2_ROWS, PH2_ROWS[0].replace("003", "004")),
            r"PH2_dataset\.txt: 1 rows without an image: IMD004",
        ),
        (
            lambda root: write(root / "PH2_dataset.txt", PH2_HEADER, *PH2_ROWS, PH2_ROWS[0]),
            r"the row '\|\| IMD003 .* expected a unique name",
        ),
        (
            lambda root: write(
                root / "PH2_dataset.txt", PH2_HEADER, *PH2_ROWS[:2], PH2_ROWS[2].replace(" 2 ||", "x||")
            ),
            "'|| IMD058 .* 0, 1 or 2",
        ),
        (lambda root: write(root / "PH2_dataset.txt", PH2_HEADER, "|| IMD002 ||"), "cannot be parsed"),
        (lambda root: write(root / "PH2_dataset.txt", "Name,Clinical Diagnosis", "IMD002,1"), "no header line"),
    ],
)
def test_ph2_refuses(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    make_ph2(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        load("ph2", tmp_path)


def make_ham(root: Path) -> None:
    write(
        root / "HAM10000_metadata.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization",
        "HAM_1,ISIC_1,mel,histo,80.0,male,scalp",
        "HAM_2,ISIC_2,nv,follow_up,,unknown,unknown",
    )
    put(root / "HAM10000_images_part_1", "ISIC_1.jpg", "ISIC_2.jpg")
    put(root / "HAM10000_segmentations_lesion_tschandl", "ISIC_2_segmentation.png", "._ISIC_2_segmentation.png")


def test_ham10000_is_for_all_three_tasks() -> None:
    assert set(dataset("ham10000").tasks) == {"classification", "segmentation", "joint"}


def test_ham10000_keeps_an_image_without_a_mask_but_refuses_a_mask_without_an_image(tmp_path: Path) -> None:
    make_ham(tmp_path)
    assert load("ham10000", tmp_path)["mask"].tolist() == [
        None,
        "HAM10000_segmentations_lesion_tschandl/ISIC_2_segmentation.png",
    ]
    put(tmp_path, "HAM10000_segmentations_lesion_tschandl/ISIC_3_segmentation.png")
    with pytest.raises(DataError, match=r"tschandl: 1 masks without an image: ISIC_3\."):
        load("ham10000", tmp_path)
