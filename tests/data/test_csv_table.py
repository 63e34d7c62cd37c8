"""The csv reader: columns of publishers, paths, conditions on rows, and spellings of classes."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
from conftest import put, write

from skincancer.data.catalog import dataset
from skincancer.data.index import index_hash, load_index
from skincancer.data.reading import Reading
from skincancer.data.where import parse_where
from skincancer.errors import ConfigError, DataError


def load(root: Path, where: str | None = None, images: Path | None = None) -> tuple[pd.DataFrame, Reading]:
    reading = Reading(where, images)
    return load_index(dataset("csv"), root, reading)[0], reading


# Column names as published, with a value, and the expected cell of the index.
PUBLISHED = {
    "ISIC archive": (
        {"isic_id": "ISIC_1", "age_approx": "70", "anatom_site_general": "head/neck", "diagnosis_1": "Malignant", "lesion_id": "IL_1",
         "diagnosis_confirm_type": "histopathology", "image_type": "dermoscopic", "sex": "male"},
        {"image_id": "ISIC_1", "image": "ISIC_1.jpg", "diagnosis": "Malignant", "lesion_id": "IL_1", "age": 70.0, "sex": "male",
         "site": "head/neck", "dx_type": "histopathology"},
        "read isic_id as image and image_id, diagnosis_1 as diagnosis, lesion_id, age_approx as age, sex, anatom_site_general as site, "
        "diagnosis_confirm_type as dx_type",
        "not used: image_type",
    ),
    "HAM10000": (
        {"lesion_id": "HAM_1", "image_id": "ISIC_1", "dx": "mel", "dx_type": "histo", "age": "80.0", "localization": "scalp"},
        {"image_id": "ISIC_1", "image": "ISIC_1.jpg", "diagnosis": "mel", "lesion_id": "HAM_1", "site": "scalp", "dx_type": "histo"},
        "read image_id as image and image_id, dx as diagnosis, lesion_id, age, localization as site, dx_type",
        "",
    ),
    "PAD-UFES-20": (
        {"patient_id": "PAT_1", "lesion_id": "7", "gender": "FEMALE", "region": "ARM", "diagnostic": "NEV", "img_id": "ISIC_1.jpg",
         "biopsed": "False"},
        {"image_id": "ISIC_1", "image": "ISIC_1.jpg", "diagnosis": "NEV", "patient_id": "PAT_1", "sex": "FEMALE", "site": "ARM"},
        "read img_id as image, diagnostic as diagnosis, lesion_id, patient_id, gender as sex, region as site",
        "not used: biopsed",
    ),
    "ISIC 2020": (
        {"image_name": "ISIC_1", "diagnosis": "unknown", "benign_malignant": "benign", "target": "0"},
        {"image_id": "ISIC_1", "image": "ISIC_1.jpg", "diagnosis": "unknown"},
        "read image_name as image, diagnosis",
        "not used: benign_malignant, target",
    ),
    "own": (
        {"filename": "ISIC_1.jpg", "isic_id": "x", "target": "1", "split": "training", "fold": "3"},
        {"image_id": "x", "image": "ISIC_1.jpg", "diagnosis": "1", "part": "train"},
        "read isic_id as image_id, filename as image, target as diagnosis, split as part",
        "not used: fold",
    ),
}  # fmt: skip


@pytest.mark.parametrize("publisher", PUBLISHED)
def test_columns_of_publishers(tmp_path: Path, publisher: str) -> None:
    cells, expected, read, unused = PUBLISHED[publisher]
    put(tmp_path, "ISIC_1.jpg")
    write(tmp_path / "metadata.csv", ",".join(cells), ",".join(cells.values()))
    index, reading = load(tmp_path)
    assert {name: index[name][0] for name in expected} == expected
    assert reading.notes == [f"metadata.csv: {note}" for note in (read, unused) if note]
    assert reading.warnings == []


@pytest.mark.parametrize("numbers", [("0", "1"), ("0.0", "1.0")])
def test_one_column_per_class(tmp_path: Path, numbers: tuple[str, str]) -> None:
    zero, one = numbers
    put(tmp_path, "a.jpg", "b.jpg")
    write(
        tmp_path / "t.csv",
        "image,score,MEL,NV,UNK,biopsy",
        f"a,0.5,{zero},{one},{zero},yes",
        f"b,0.5,{one},{zero},{zero},no",
    )
    index, reading = load(tmp_path)
    assert index["diagnosis"].tolist() == ["NV", "MEL"]
    assert reading.notes == ["t.csv: read image, and MEL, NV, UNK as diagnosis", "t.csv: not used: score, biopsy"]


@pytest.mark.parametrize("row", ["a,1,1", "a,0,0", "a,0.5,0.5", "a,,1", "a,2,-1"])
def test_other_numbers_are_no_classes(tmp_path: Path, row: str) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path / "t.csv", "image,MEL,NV", "b,0,1", row)
    with pytest.raises(DataError, match="neither 'diagnosis' nor 'mask'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,dx,target", "'dx' and 'target' can both be the diagnosis; rename the column to use to 'diagnosis'"),
        ("filename,img_id,dx", "'filename' and 'img_id' can both be the image"),
        ("image,dx,region,localization", "'region' and 'localization' can both be the site"),
        ("image,dx,patient", "'patient'; rename it to 'patient_id'"),
    ],
)
def test_ambiguous_columns_are_refused(tmp_path: Path, header: str, message: str) -> None:
    put(tmp_path, "a.jpg")
    write(tmp_path / "t.csv", header, ",".join("a" for _ in header.split(",")))
    with pytest.raises(DataError, match=message):
        load(tmp_path)


def test_missing_values_of_spreadsheets_are_empty(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "c.jpg", "m.png")
    rows = ["a.jpg,NA,m.png,N/A,nan", "b.jpg,unknown,NA,-,#N/A", "c.jpg,none,null,null,40"]
    write(tmp_path / "t.csv", "image,diagnosis,mask,sex,age", *rows)
    index, _ = load(tmp_path)
    assert index["diagnosis"].tolist() == [None, "unknown", "none"]
    assert index["mask"].tolist() == ["m.png", None, None]
    assert index["sex"].tolist() == ["", "", ""]
    assert index["age"].isna().tolist() == [True, True, False]


def test_paths_of_tables(tmp_path: Path) -> None:
    root = tmp_path / "home"
    put(root, "img/a.jpg", "img/deep/b.png", "img/deep/c.1.jpg", "img/d.jpg", "img/.hidden/c.1.png", "e.jpg")
    values = [f"{root}/img/a.jpg", "b.png", "c.1", "img\\d.jpg", "e"]
    write(root / "t.csv", "image,diagnosis", *(f"{value},nv" for value in values))
    index, _ = load(root)
    assert dict(zip(index["image_id"], index["image"], strict=True)) == {
        "img/a": "img/a.jpg", "b": "img/deep/b.png", "c.1": "img/deep/c.1.jpg", "img/d": "img/d.jpg", "e": "e.jpg",
    }  # fmt: skip
    # A link to the table's folder changes nothing.
    (tmp_path / "link").symlink_to(root)
    assert index_hash(load(tmp_path / "link")[0]) == index_hash(index)


def test_images_of_another_folder(tmp_path: Path) -> None:
    put(tmp_path, "tables/here.jpg", "store/a.jpg", "store/part_2/b.jpg", "store/c.jpg")
    write(tmp_path / "tables/t.csv", "image,diagnosis", "a,nv", "b.jpg,nv", f"{tmp_path}/store/c.jpg,nv", "here.jpg,nv")
    (tmp_path / "far/off").mkdir(parents=True)
    (tmp_path / "far/off/link").symlink_to(tmp_path / "tables")
    for root in (tmp_path / "tables", tmp_path / "far/off/link/t.csv"):
        index, _ = load(root, images=tmp_path / "store")
        assert index["image_id"].tolist() == ["a", "b", "c", "here"]
        folder = root.parent if root.suffix else root
        names = [os.path.realpath(folder / image) for image in index["image"]]
        assert names == [
            os.path.realpath(tmp_path / name) for name in ("store/a.jpg", "store/part_2/b.jpg", "store/c.jpg", "tables/here.jpg")
        ]  # fmt: skip
    with pytest.raises(DataError, match=r"data\.images is .*absent, which is not a folder"):
        load(tmp_path / "tables", images=tmp_path / "absent")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "../out/x.jpg",
            r"outside .*home, by \.\. or by a link: ../out/x.jpg \(row 2, in .*/out\)\. Set --data\.images",
        ),
        ("in/../../out/x.jpg", "outside"),
        ("..", "outside"),
        ("link.jpg", "outside"),
        ("linked/x.jpg", r"linked/x.jpg \(row 2, in .*/out\)"),
        ("link", "outside"),
        ("/etc/passwd", "absolute path outside"),
        ("twice", r"can be several files: twice \(row 2: .*twice.jpg, .*twice.png\)"),
        ("n.jpg", r"can be several files: n.jpg \(row 2: .*one/n.jpg, .*two/n.jpg\)"),
        ("x" * 5000, "does not exist"),
        ("in", "does not exist"),
        ("notes", "does not exist"),
    ],
)
def test_other_paths_are_refused(tmp_path: Path, value: str, message: str) -> None:
    root = tmp_path / "home"
    put(tmp_path, "out/x.jpg")
    put(root, "a.jpg", "in/a.jpg", "twice.jpg", "twice.png", "one/n.jpg", "two/n.jpg", "notes.txt")
    (root / "link.jpg").symlink_to(tmp_path / "out/x.jpg")
    (root / "linked").symlink_to(tmp_path / "out")
    for column in ("image", "mask"):
        other = "a.jpg," if column == "mask" else ""
        write(
            root / "t.csv", f"{'image,' if other else ''}{column},diagnosis", f"{other}a.jpg,nv", f"{other}{value},nv"
        )
        with pytest.raises(DataError, match=message):
            load(root)


def test_links_into_the_folder_of_the_images_are_read(tmp_path: Path) -> None:
    put(tmp_path, "store/x.jpg")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/a.jpg").symlink_to(tmp_path / "store/x.jpg")
    write(tmp_path / "home/t.csv", "image,diagnosis", "a.jpg,nv")
    index, _ = load(tmp_path / "home", images=tmp_path / "store")
    assert index["image"].tolist() == ["a.jpg"]


WHERE = ["image,diagnosis,image_type,age,skin tone,part", "a.jpg,mel,dermoscopic,30,1,train", "b.jpg,nv,clinical,40,2,test",
         "c.jpg,nv,dermoscopic,,2,train"]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ("image_type == 'dermoscopic'", ["a", "c"]),
        ("image_type == 'dermoscopic' and age >= 18", ["a"]),
        ("image_type=='clinical' or `skin tone` == 1", ["a", "b"]),
        ("not (image_type == 'clinical') & (age > 20)", ["a"]),
        ("diagnosis in ['mel', 'bcc']", ["a"]),
        ("diagnosis not in ('mel', 'bcc')", ["b", "c"]),
        ("20 < age < 35", ["a"]),
        ("age == age", ["a", "b"]),
        ("~(`skin tone` == 2)", ["a"]),
        ("diagnosis != 'it''s @x'", ["a", "b", "c"]),
    ],
)
def test_rows_that_fulfil_a_condition(tmp_path: Path, where: str, ids: list[str]) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path / "t.csv", *WHERE)
    index, reading = load(tmp_path, where)
    assert index["image_id"].tolist() == ids
    assert reading.notes[0] == f"data.where: {len(ids)} of 3 rows of t.csv"
    assert ("image_type" in "".join(reading.notes[1:])) == ("image_type" not in where), "used by the condition"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "imagetype == 'x'",
            r"no column 'imagetype'\. Did you mean 'image_type'\? Use its columns image, diagnosis, image_type, age",
        ),
        ("age > 'x'", r"cannot be evaluated: .* age \(float64\)"),
        ("age > 90", r"none of the 3 rows of .*t\.csv fulfils it\. Some values: age: 30\.0, 40\.0, nan"),
        ("age", "expected a comparison"),
        ("1 == 1", "expected a condition with a column"),
    ],
)
def test_conditions_that_do_not_fit_the_table(tmp_path: Path, where: str, message: str) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write(tmp_path / "t.csv", *WHERE)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, where)


@pytest.mark.parametrize(
    "where",
    [
        "", "image_type = 'x'", "image_type == 'x", "@age > 3", "age > @age", "__import__('os').system('x')", "age.max() > 3", "age > f(3)",
        "age[0] == 3", "lambda: 3", "age if age else age", "age ** 9 > 3", "age == b'x'", "age == None", "age == ...", "f'{age}' == 'x'",
        "[x for x in age]", "age > 3; age", "age\n> 3", "(" * 300 + "age" + ")" * 300, "not " * 490 + "age", "age > " + "9" * 1900 + "j",
        "age > 3" + " " * 3000, "a\x00 > 3", "age := 3", "age is 3", "`age > 3",
    ],
)  # fmt: skip
def test_other_syntax_is_refused_without_the_data(where: str) -> None:
    with pytest.raises(ConfigError, match=r"^data\.where is "):
        parse_where(where)


def test_a_condition_on_the_index_of_another_reader(tmp_path: Path) -> None:
    put(tmp_path, "mel/a.jpg", "nv/b.jpg", "df/c.jpg")
    reading = Reading("diagnosis in ['mel', 'nv']")
    index, classes = load_index(dataset("folder"), tmp_path, reading)
    assert classes == ("mel", "nv")
    assert index["image_id"].tolist() == ["mel/a", "nv/b"]
    assert reading.notes == ["data.where: 2 of 3 images of One folder per class"]


@pytest.mark.parametrize("name", ["folder", "csv"])
def test_spellings_of_a_class_are_merged(tmp_path: Path, name: str) -> None:
    spellings = ["Nävus", "Na\u0308vus", "NÄVUS", "basal cell", "Basalcell", "mel"]
    files = [f"{folder}/{number}.jpg" for folder in spellings for number in range(3 if folder == "NÄVUS" else 1)]
    put(tmp_path, *files)
    if name == "csv":
        write(tmp_path / "t.csv", "image,diagnosis", *(f"{file},{Path(file).parent}" for file in files))
    reading = Reading()
    index, classes = load_index(dataset(name), tmp_path, reading)
    assert classes == ("Basalcell", "NÄVUS", "mel")
    assert index["diagnosis"].value_counts().to_dict() == {"NÄVUS": 5, "Basalcell": 2, "mel": 1}
    [(title, text)] = reading.warnings
    assert title == "classes that differ only in case, accents or blanks are merged"
    assert "'basal cell' (1 images) as 'Basalcell'" in text
    assert "'Nävus' (1 images) as 'NÄVUS'" in text


def test_a_class_of_the_catalog_in_another_case(tmp_path: Path) -> None:
    for part in ("train", "test"):
        put(tmp_path, f"{part}/benign/1.jpg", f"{part}/malignant/1.jpg", f"{part}/Malignant/2.jpg")
    reading = Reading()
    index, classes = load_index(dataset("malignant_vs_benign"), tmp_path, reading)
    assert classes == ("benign", "malignant")
    assert set(index["diagnosis"]) == {"benign", "malignant"}
    assert reading.warnings[0][1] == "read 'Malignant' (2 images) as 'malignant'"
