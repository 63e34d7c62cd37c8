from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import put, write

from skincancer.data.catalog import dataset
from skincancer.data.index import load_index
from skincancer.data.readers.files import read_csv
from skincancer.errors import DataError

HAM_HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
HAM_ROWS = [
    "HAM_1,ISIC_2,mel,histo,80.0,male,scalp",
    "HAM_1,ISIC_1,mel,histo,80.0,male,scalp",
    "HAM_2,ISIC_3,nv,follow_up,,unknown,unknown",
]


def load(name: str, root: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    return load_index(dataset(name), root)


def make_ham(root: Path) -> None:
    write(root / "HAM10000_metadata.csv", HAM_HEADER, *HAM_ROWS)
    put(root, "HAM10000_images_part_1/ISIC_1.jpg", "ham10000_images_part_2/ISIC_2.jpg")
    put(root, "ham10000_images_part_2/ISIC_3.jpg", "ham10000_images_part_2/notes.txt")
    put(root, "HAM10000_segmentations_lesion_tschandl/ISIC_2_segmentation.png")


def test_ham10000(tmp_path: Path) -> None:
    make_ham(tmp_path)
    index, classes = load("ham10000", tmp_path)
    assert classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert index["image_id"].tolist() == ["ISIC_1", "ISIC_2", "ISIC_3"]
    assert index["image"].tolist() == [
        "HAM10000_images_part_1/ISIC_1.jpg",
        "ham10000_images_part_2/ISIC_2.jpg",
        "ham10000_images_part_2/ISIC_3.jpg",
    ]
    assert index["mask"].tolist() == [None, "HAM10000_segmentations_lesion_tschandl/ISIC_2_segmentation.png", None]
    assert index["diagnosis"].tolist() == ["mel", "mel", "nv"]
    assert index["lesion_id"].tolist() == ["HAM_1", "HAM_1", "HAM_2"]
    assert index["age"].isna().tolist() == [False, False, True]
    assert index["age"][0] == 80.0
    assert index["sex"].tolist() == ["male", "male", "unknown"]
    assert index["site"].tolist() == ["scalp", "scalp", "unknown"]
    assert index["dx_type"].tolist() == ["histo", "histo", "follow_up"]
    assert set(index["part"]) == {""}


@pytest.mark.parametrize("folder", ["HAM10000_images", "images", ""])
@pytest.mark.parametrize("metadata", ["HAM10000_metadata", "HAM10000_metadata.tab"])
def test_ham10000_in_one_folder_with_the_table_of_dataverse(tmp_path: Path, folder: str, metadata: str) -> None:
    put(tmp_path / folder, "ISIC_1.jpg", "ISIC_2.JPG", "ISIC_3.jpg", "._ISIC_3.jpg")
    lines = [HAM_HEADER, *HAM_ROWS]
    write(tmp_path / metadata, *(line.replace(",", "\t") for line in lines))
    index, _ = load("ham10000", tmp_path)
    assert index["image"].tolist() == [str(Path(folder) / name) for name in ("ISIC_1.jpg", "ISIC_2.JPG", "ISIC_3.jpg")]
    assert set(index["mask"]) == {None}


def test_ham10000_with_each_part_twice_in_two_spellings(tmp_path: Path) -> None:
    make_ham(tmp_path)
    put(tmp_path, "ham10000_images_part_1/ISIC_1.jpg")
    index, _ = load("ham10000", tmp_path)
    assert index["image"][0] == "HAM10000_images_part_1/ISIC_1.jpg"
    put(tmp_path, "ham10000_images_part_1/ISIC_2.jpg")
    with pytest.raises(DataError, match="the same name in another case"):
        load("ham10000", tmp_path)


def remove_image(root: Path) -> None:
    (root / "HAM10000_images_part_1" / "ISIC_1.jpg").unlink()


def remove_metadata(root: Path) -> None:
    (root / "HAM10000_metadata.csv").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_image, r"1 rows without an image: ISIC_1\..*both archives"),
        (lambda root: put(root, "HAM10000_images_part_1/ISIC_9.jpg"), r"1 images without a row: ISIC_9\."),
        (
            lambda root: put(root, "HAM10000_images_part_1/ISIC_3.jpg"),
            r"1 image ids exist in more than one folder: ISIC_3",
        ),
        (remove_metadata, "no metadata"),
        (lambda root: put(root, "HAM10000_metadata"), "2 metadata tables"),
        (lambda root: write(root / "HAM10000_metadata.csv", "image_id,dx", "ISIC_1,mel"), "no column lesion_id"),
        (
            lambda root: write(root / "HAM10000_metadata.csv", HAM_HEADER, *HAM_ROWS, HAM_ROWS[0]),
            "more than once: ISIC_2",
        ),
        (
            lambda root: (root / "HAM10000_segmentations_lesion_tschandl/ISIC_2_segmentation.png").unlink(),
            "_segmentation.png",
        ),
    ],
)
def test_ham10000_refuses(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    make_ham(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        load("ham10000", tmp_path)


ISIC_HEADER = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC"


def truth(part: str) -> str:
    return f"ISIC2018_Task3_{part}_GroundTruth/ISIC2018_Task3_{part}_GroundTruth.csv"


def make_isic(root: Path, groupings: str = "ISIC2018_Task3_Training_LesionGroupings.csv") -> None:
    put(root / "ISIC2018_Task3_Training_Input", "ISIC_1.jpg", "ISIC_2.jpg", "LICENSE.txt", "ATTRIBUTION.txt")
    write(root / truth("Training"), ISIC_HEADER, "ISIC_2,0.0,0.0,0.0,1.0,0.0,0.0,0.0", "ISIC_1,0,1,0,0,0,0,0")
    header = "image,lesion_id,diagnosis_confirm_type"
    write(root / groupings, header, "ISIC_1,HAM_7,histopathology", "ISIC_2,HAM_8,serial imaging")
    put(root / "ISIC2018_Task3_Test_Input", "ISIC_5.jpg")
    write(root / "ISIC2018_Task3_Test_GroundTruth.csv", ISIC_HEADER, "ISIC_5,0,0,0,0,0,0,1")


@pytest.mark.parametrize("folder", ["", "ISIC2018_Task3_Training_GroundTruth/"])
def test_isic2018_task3(tmp_path: Path, folder: str) -> None:
    make_isic(tmp_path, f"{folder}ISIC2018_Task3_Training_LesionGroupings.csv")
    index, classes = load("isic2018_task3", tmp_path)
    assert classes == dataset("ham10000").classes
    assert index["image_id"].tolist() == ["ISIC_1", "ISIC_2", "ISIC_5"]
    assert index["image"][2] == "ISIC2018_Task3_Test_Input/ISIC_5.jpg"
    assert index["diagnosis"].tolist() == ["nv", "akiec", "vasc"]
    assert index["lesion_id"].tolist() == ["HAM_7", "HAM_8", "ISIC_5"]
    assert index["dx_type"].tolist() == ["histopathology", "serial imaging", ""]
    assert index["part"].tolist() == ["train", "train", "test"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "ISIC2018_Task3_Test_GroundTruth.csv").unlink(),
            "download ISIC2018_Task3_Test_GroundTruth.zip",
        ),
        (
            lambda root: write(root / truth("Validation"), ISIC_HEADER, "ISIC_6,1,0,0,0,0,0,0"),
            "download ISIC2018_Task3_Validation_Input.zip",
        ),
        (lambda root: (root / truth("Training")).unlink(), "download ISIC2018_Task3_Training_GroundTruth.zip"),
        (lambda root: (root / "ISIC2018_Task3_Training_LesionGroupings.csv").unlink(), "views of one lesion"),
        (
            lambda root: write(root / truth("Training"), ISIC_HEADER, "ISIC_2,1,1,0,0,0,0,0", "ISIC_1,0,1,0,0,0,0,0"),
            r"1 rows do not contain exactly one 1 among zeros: ISIC_2",
        ),
        (
            lambda root: write(root / truth("Training"), ISIC_HEADER, "ISIC_2,.5,.5,0,0,0,0,0", "ISIC_1,x,1,0,0,0,0,0"),
            r"2 rows do not contain exactly one 1 among zeros: ISIC_2, ISIC_1",
        ),
        (lambda root: put(root, "ISIC2018_Task3_Training_Input/ISIC_4.jpg"), "1 images without a row: ISIC_4"),
        (lambda root: (root / "ISIC2018_Task3_Training_Input/ISIC_1.jpg").unlink(), "1 rows without an image: ISIC_1"),
    ],
)
def test_isic2018_task3_refuses(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    make_isic(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        load("isic2018_task3", tmp_path)


@pytest.mark.parametrize("name", ["csv", "tab", ""])
def test_isic2018_task3_reads_the_lesions_of_the_test_set(tmp_path: Path, name: str) -> None:
    """As in the record of HAM10000 on Harvard Dataverse."""
    make_isic(tmp_path)
    (tmp_path / "ISIC2018_Task3_Test_GroundTruth.csv").unlink()
    (tmp_path / "ISIC2018_Task3_Test_Input").rename(tmp_path / "ISIC2018_Task3_Test_Images")
    put(tmp_path, "ISIC2018_Task3_Test_Images/ISIC_6.jpg", "ISIC2018_Task3_Test_Images/ISIC_7.jpg")
    rows = [f"{HAM_HEADER},dataset", *(f"{lesion},{i},nv,histo,45.0,male,back,vienna" for lesion, i in
            (("HAM_9", "ISIC_5"), ("HAM_9", "ISIC_6"), ("", "ISIC_7")))]  # fmt: skip
    rows = [row.replace(",", "\t") for row in rows] if name == "tab" else rows
    write(tmp_path / f"ISIC2018_Task3_Test_GroundTruth{'.' if name else ''}{name}", *rows)
    index, _ = load("isic2018_task3", tmp_path)
    assert index["lesion_id"].tolist() == ["HAM_7", "HAM_8", "HAM_9", "HAM_9", "ISIC_7"]
    assert index["diagnosis"].tolist() == ["nv", "akiec", "nv", "nv", "nv"]
    assert index["part"].tolist() == ["train", "train", "test", "test", "test"]
    assert index["dx_type"].tolist() == ["histopathology", "serial imaging", "histo", "histo", "histo"]
    assert index["site"].tolist() == ["", "", "back", "back", "back"]


def test_isic2018_task3_reads_lesions_next_to_the_labels(tmp_path: Path) -> None:
    make_isic(tmp_path)
    write(tmp_path / "ISIC2018_Task3_Test_GroundTruth.csv", f"{ISIC_HEADER},lesion_id", "ISIC_5,0,0,0,0,0,0,1,HAM_7")
    assert load("isic2018_task3", tmp_path)[0]["lesion_id"].tolist() == ["HAM_7", "HAM_8", "HAM_7"]


@pytest.mark.parametrize("level", ["", "data"])
def test_malignant_vs_benign(tmp_path: Path, level: str) -> None:
    base = tmp_path / level
    put(base, "train/benign/1.jpg", "train/malignant/1.jpg", "test/benign/1.jpg", "test/malignant/2.jpg")
    index, classes = load("malignant_vs_benign", tmp_path)
    assert classes == ("benign", "malignant")
    assert index["image_id"].tolist() == ["test/benign/1", "test/malignant/2", "train/benign/1", "train/malignant/1"]
    assert index["image"].tolist() == [str(Path(level) / f"{image_id}.jpg") for image_id in index["image_id"]]
    assert index["part"].tolist() == ["test", "test", "train", "train"]
    assert index["diagnosis"].tolist() == ["benign", "malignant", "benign", "malignant"]
    assert index["lesion_id"].tolist() == index["image_id"].tolist()


def test_malignant_vs_benign_takes_one_of_two_copies(tmp_path: Path) -> None:
    names = ("train/benign/1.jpg", "train/malignant/1.jpg", "test/benign/1.jpg", "test/malignant/2.jpg")
    put(tmp_path, *names)
    put(tmp_path / "data", *names)
    assert sorted(load("malignant_vs_benign", tmp_path)[0]["image"]) == sorted(names)


def test_malignant_vs_benign_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    put(tmp_path, "train/benign/1.jpg", "train/malignant/1.jpg", "test/benign/1.jpg")
    with pytest.raises(DataError, match="test/malignant"):
        load("malignant_vs_benign", tmp_path)
    put(tmp_path, "test/malignant/1.jpg", "test/unsure/1.jpg")
    with pytest.raises(
        DataError, match=r"the diagnosis of 1 images .* is 'unsure'; expected one of the classes benign, malignant"
    ):
        load("malignant_vs_benign", tmp_path)


def test_folder_a_class_each(tmp_path: Path) -> None:
    put(tmp_path, "nevus/a.jpg", "nevus/deep/er/b.tiff", "nevus/notes.txt", "nevus/.hidden.png", "README.md")
    put(tmp_path, "melanoma/a.1.PNG", ".cache/x.png")
    index, classes = load("folder", tmp_path)
    assert classes == ("melanoma", "nevus")
    assert index["image_id"].tolist() == ["melanoma/a.1", "nevus/a", "nevus/deep/er/b"]
    assert index["image"].tolist() == ["melanoma/a.1.PNG", "nevus/a.jpg", "nevus/deep/er/b.tiff"]
    assert index["diagnosis"].tolist() == ["melanoma", "nevus", "nevus"]
    assert set(index["part"]) == {""}


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_folder_with_parts(tmp_path: Path, val: str) -> None:
    put(tmp_path, "train/x/1.png", "train/y/1.png", f"{val}/x/1.png", "test/y/1.png")
    index, classes = load("folder", tmp_path)
    assert classes == ("x", "y")
    assert dict(zip(index["image_id"], index["part"], strict=True)) == {
        "train/x/1": "train",
        "train/y/1": "train",
        f"{val}/x/1": "val",
        "test/y/1": "test",
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x/a.jpg", "x/a.png", "y/b.jpg"), r"x/a.jpg and x/a.png differ only in their extension"),
        (("x/a.jpg", "y/notes.txt"), r"class folder .*y contains no image"),
        (("x/a.jpg", "y/b.jpg", "c.jpg"), "1 images lie next to the class folders: c.jpg"),
        (("train/x/a.jpg", "train/y/b.jpg", "test/c.jpg"), "1 images lie next to the class folders: c.jpg"),
        (("train/x/a.jpg", "train/y/b.jpg", "z/c.jpg"), r"mixes subset folders \(train\) with others \(z\)"),
        (("train/x/a.jpg", "val/y/b.jpg", "valid/x/c.jpg"), "both the val subset"),
        (("data/x/a.jpg", "data/y/b.jpg"), "only the class folder 'data', with folders in it"),
        (("notes.txt",), "no class folder"),
    ],
)
def test_folder_refuses(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        load("folder", tmp_path)


def test_csv(tmp_path: Path) -> None:
    put(tmp_path, "img/a.jpg", "img/b.png", "c.jpg", "masks/a.png", "img/not_in_the_table.jpg")
    write(
        tmp_path / "mine.csv",
        "image,image_id,label,mask,lesion_id,part,age,site,camera",
        "img/b.png,,mel,,L1,training,30,back,Nikon",
        "img/a.jpg,007,nv,masks/a.png,L1,test,,,",
        "c.jpg,NA,nv,,,val,,,",
    )
    for root in (tmp_path, tmp_path / "mine.csv"):
        index, classes = load("csv", root)
        assert classes == ("mel", "nv")
        assert index["image_id"].tolist() == ["007", "NA", "img/b"]  # ids are text: no number, no missing value
        assert index["mask"].tolist() == ["masks/a.png", None, None]
        assert index["diagnosis"].tolist() == ["nv", "nv", "mel"]
        assert index["lesion_id"].tolist() == ["L1", "NA", "L1"]
        assert index["part"].tolist() == ["test", "val", "train"]
        assert index["age"].tolist()[2] == 30.0
    write(tmp_path / "other.csv", "x")
    with pytest.raises(DataError, match="2 CSV files"):
        load("csv", tmp_path)
    write(tmp_path / "index.csv", "image,diagnosis", "c.jpg,nv")
    assert len(load("csv", tmp_path)[0]) == 1


def test_csv_reads_patients(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "index.csv", "image,diagnosis,patient_id", "a.jpg,nv,007", "b.jpg,mel,")
    assert load("csv", tmp_path)[0]["patient_id"].tolist() == ["007", ""]


def test_csv_for_segmentation_needs_no_diagnosis(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "a.png")
    write(tmp_path / "index.csv", "image,mask", "a.jpg,a.png")
    index, classes = load("csv", tmp_path)
    assert classes == ()
    assert index["diagnosis"].tolist() == [None]
    assert index["mask"].tolist() == ["a.png"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["image,diagnosis", "a.jpg,nv", "lost.jpg,nv", "gone.jpg,nv"],
            r"the image of 2 of 3 rows .*lost.jpg \(row 2\), gone.jpg \(row 3\).*delete the rows",
        ),
        (["image,diagnosis,mask", "a.jpg,nv,lost.png"], r"the mask of 1 of 1 rows .*lost.png \(row 1\)"),
        (["picture,diagnosis", "a.jpg,nv"], "no column 'image'"),
        (["image,camera", "a.jpg,1"], "neither 'diagnosis' nor 'mask'"),
        (["image,diagnosis,Patient ID", "a.jpg,nv,1"], r"'Patient ID'; rename it to 'patient_id'"),
        (["image,diagnosis,lesionid", "a.jpg,nv,1"], r"'lesionid'; rename it to 'lesion_id'"),
        (["Image,diagnosis", "a.jpg,nv"], r"'Image'; rename it to 'image'"),
        (["image,diagnosis,label", "a.jpg,nv,1"], "both 'diagnosis' and 'label'"),
        (["image,diagnosis", "/a.jpg,nv"], "absolute"),
        (["image,diagnosis", ",nv"], "1 rows have no image"),
        (["image,diagnosis"], "no image was found"),
        (["image,diagnosis", "a.jpg,nv", "a.jpg,nv"], "more than once: a"),
    ],
)
def test_csv_refuses(tmp_path: Path, lines: list[str], message: str) -> None:
    put(tmp_path, "a.jpg")
    write(tmp_path / "index.csv", *lines)
    with pytest.raises(DataError, match=message):
        load("csv", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n1,2,3\n", "row 2 after the header has 3 columns instead of 2"),
        ("a,b\n1\n", "row 1 after the header has 1 columns instead of 2"),
        ("a,a\n1,2\n", "'a' more than once"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,c\n1,2\n", "no column b; its columns are a, c"),
        ('a,b\n1,2\n3,"4\n5,6\n7,8\n', r'unbalanced quote \("\) in the row that begins in line 3'),
        ('a,b\n1,2\n3,"4\n5,6"\n7,"8\n', "in the row that begins in line 5"),
        ('a,b\n1,"x"y\n', "in the row that begins in line 2"),
        ('a,b\n1,"' + "x" * 200_000, "in the row that begins in line 2"),
        ("a,b\n1,2\n3,\x004\n", "NUL character in line 3"),
    ],
)
def test_read_csv_refuses(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_csv(path, required=("a", "b"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_read_csv_reads_spreadsheets(tmp_path: Path, encoding: str, separator: str) -> None:
    path = tmp_path / "t.csv"
    lines = ["a,b", "Nävus,1", ",", "x,"]
    path.write_bytes("\r\n".join(line.replace(",", separator) for line in lines).encode(encoding))
    assert read_csv(path, required=("a", "b")).to_dict("list") == {"a": ["Nävus", "x"], "b": ["1", ""]}


def test_read_csv_reads_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a;b;c\n0,5;1,2 mm;x,y\n-1,25;3;1,2\n2;;\n")
    assert read_csv(path).to_dict("list") == {
        "a": ["0.5", "-1.25", "2"], "b": ["1,2 mm", "3", ""], "c": ["x,y", "1,2", ""],
    }  # fmt: skip


def test_read_csv_refuses_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("a,b\n1,2\nNävus,3\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"not UTF-8 \(line 3\).*Save the table as UTF-8"):
        read_csv(path)


def test_read_csv_reads_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffa,b\r\n 007 ,"x, y"\r\nNaN,\r\n'.encode())
    table = read_csv(path, required=("a", "b"))
    assert table.to_dict("list") == {"a": ["007", "NaN"], "b": ["x, y", ""]}


@pytest.mark.parametrize(("part", "inner"), [("Test", False), ("Validation", True)])
def test_isic2018_task3_with_one_part_alone(tmp_path: Path, part: str, inner: bool) -> None:
    images, labels = f"ISIC2018_Task3_{part}_Input", f"ISIC2018_Task3_{part}_GroundTruth"
    put(tmp_path / images / (images if inner else ""), "ISIC_5.jpg")
    put(tmp_path / "__MACOSX" / images, "._ISIC_5.jpg")
    write(tmp_path / labels / (labels if inner else "") / f"{labels}.csv", ISIC_HEADER, "ISIC_5,0,0,0,0,0,0,1")
    index, _ = load("isic2018_task3", tmp_path)
    assert index[["image_id", "diagnosis", "part"]].values.tolist() == [
        ["ISIC_5", "vasc", part.lower()[:3] if part != "Test" else "test"]
    ]


def test_malignant_vs_benign_with_one_part_alone(tmp_path: Path) -> None:
    put(tmp_path, "test/benign/1.jpg", "test/malignant/2.jpg")
    assert load("malignant_vs_benign", tmp_path)[0]["part"].tolist() == ["test", "test"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"train/benign is missing.*one of train and test is enough"):
        load("malignant_vs_benign", tmp_path / "empty")


def test_ham10000_in_folders_of_their_own_name(tmp_path: Path) -> None:
    make_ham(tmp_path)
    for name in ("HAM10000_images_part_1", "HAM10000_segmentations_lesion_tschandl"):
        (tmp_path / name).rename(tmp_path / "moved")
        (tmp_path / name).mkdir()
        (tmp_path / "moved").rename(tmp_path / name / name)
    put(tmp_path / "__MACOSX/HAM10000_images_part_1", "._ISIC_1.jpg", "ISIC_9.jpg")
    index, _ = load("ham10000", tmp_path)
    assert index["image"][0] == "HAM10000_images_part_1/HAM10000_images_part_1/ISIC_1.jpg"
    assert index["mask"][1].count("HAM10000_segmentations_lesion_tschandl") == 2
