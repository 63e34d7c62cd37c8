"""Groups of images: unknown ids, and ids that are wrong."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY_FIT, put, write
from PIL import Image

from skincancer import prepare
from skincancer.data.catalog import dataset
from skincancer.data.groups import (
    check_groups,
    check_lesions,
    check_merged,
    count_images,
    describe_unknown_lesions,
    group_noun,
    merge_groups,
    merge_patients,
)
from skincancer.data.index import load_index
from skincancer.data.splits import assign_roles, parse_split

UNKNOWN = ("", "NA", "na", "N/A", "nan", "NaN", " None ", "NULL", "null", "unknown", "Unknown", "-", "?")


def read_table(root: Path, *lines: str) -> pd.DataFrame:
    put(root, *(line.split(",")[0] for line in lines[1:]))
    write(root / "index.csv", *lines)
    return load_index(dataset("csv"), root)[0]


@pytest.mark.parametrize("column", ["lesion_id", "patient_id"])
@pytest.mark.parametrize("unknown", UNKNOWN)
def test_an_unknown_id_is_a_lesion_of_its_own(tmp_path: Path, column: str, unknown: str) -> None:
    rows = [f"{number:02}.jpg,{'mel' if number < 40 else 'nv'},{unknown}" for number in range(80)]
    index = merge_patients(read_table(tmp_path, f"image,diagnosis,{column}", *rows))
    assert index["lesion_id"].tolist() == index["image_id"].tolist()
    assert set(index["patient_id"]) == {""}
    roles = pd.Series(assign_roles(index, parse_split("80:20"), 0).role)
    assert roles.value_counts().to_dict() == {"train": 56, "val": 8, "test": 16}
    assert check_lesions(index) == []


def test_unknown_ids_of_a_publisher_are_lesions_of_their_own(tmp_path: Path) -> None:
    write(
        tmp_path / "HAM10000_metadata.csv",
        "lesion_id,image_id,dx,dx_type,age,sex,localization",
        *("NA,ISIC_1,mel,histo,80.0,male,scalp", "NA,ISIC_2,nv,histo,80.0,male,scalp"),
    )
    put(tmp_path, "ISIC_1.jpg", "ISIC_2.jpg")
    assert load_index(dataset("ham10000"), tmp_path)[0]["lesion_id"].tolist() == ["ISIC_1", "ISIC_2"]


def test_a_lesion_with_several_diagnoses_is_reported(tmp_path: Path) -> None:
    rows = ["a.jpg,mel,L1", "b.jpg,nv,L1", "c.jpg,,L1", "d.jpg,nv,L2", "e.jpg,nv,L2", "f.jpg,mel,"]
    [(title, text)] = check_lesions(read_table(tmp_path, "image,diagnosis,lesion_id", *rows))
    assert title == "a lesion with several diagnoses"
    assert text.startswith("the images of 1 lesions have several diagnoses: L1 (mel, nv).")


def test_the_same_lesion_id_of_two_patients_is_two_lesions(tmp_path: Path) -> None:
    rows = ["a.jpg,mel,1,P1", "b.jpg,nv,1,P2", "c.jpg,nv,1,P2"]
    assert check_lesions(read_table(tmp_path, "image,diagnosis,lesion_id,patient_id", *rows)) == []


@pytest.mark.parametrize(("size", "total", "reported"), [(11, 219, True), (11, 220, False), (10, 40, False)])
def test_a_group_of_many_images_is_reported(size: int, total: int, reported: bool) -> None:
    names = pd.Series(["x"] * size + [""] * (total - size), dtype=object)
    warnings = check_groups(names, "patient")
    assert bool(warnings) == reported
    for title, text in warnings:
        assert title == "a patient of many images"
        assert f"1 patient has more than 5% of the {total} images each: x ({size} images)." in text


def test_prepare_reports_a_placeholder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    lines = [
        f"{number:02}.png,{'mel' if number % 2 else 'nv'},{'0' if number > 19 else number}" for number in range(40)
    ]
    for line in lines:
        Image.new("RGB", (8, 8)).save(tmp_path / line.split(",")[0])
    write(tmp_path / "index.csv", "image,diagnosis,lesion_id", *lines)
    assert prepare.main(["csv", f"--data.root={tmp_path}", "--data.size=8", TINY_FIT[1]]) == 0
    output = capsys.readouterr().out
    assert output.count("a lesion of many images") == 1
    assert "1 lesion has more than 5% of the 40 images each: 0 (21 images)." in output
    assert "1 lesions have several diagnoses: 0 (mel, nv)." in output


def test_a_merged_group_is_checked(tmp_path: Path) -> None:
    before = read_table(
        tmp_path, "image,diagnosis,lesion_id", "a.jpg,mel,L1", "b.jpg,nv,L2", "c.jpg,nv,L3", "d.jpg,mel,L3"
    )
    write(tmp_path / "groups.csv", "image_id,group", "a,g", "b,g")
    index, _ = merge_groups(before, tmp_path / "groups.csv")
    [(title, text)] = check_merged(index, before["lesion_id"])
    assert title == "a merged group with several diagnoses"
    assert "L1 (mel, nv)" in text
    assert "L3" not in text
    assert check_merged(index.assign(patient_id="P"), before["lesion_id"]) == []


@pytest.mark.parametrize(
    ("lesions", "counts", "unknown"),
    [
        (["L1", "L1", "L2", "L3"], "4 images of 3 lesions", ""),
        (["a", "a", "a", "a"], "4 images of 1 lesions", ""),
        (
            ["L1", "L1", "c", "d"],
            "4 images of 3 lesions (2 images without a lesion id count as one each)",
            "2 of 4 images have no lesion id: each of them counts as one lesion, ",
        ),
        (
            ["a", "b", "c", "d"],
            "4 images, lesions unknown (each image counts as one)",
            "the data have no lesion ids: each image counts as one lesion, ",
        ),
    ],
)
def test_lesions_are_only_counted_where_they_are_known(lesions: list[str], counts: str, unknown: str) -> None:
    table = pd.DataFrame({"image_id": list("abcd"), "lesion_id": lesions})
    assert count_images(table, " of ") == counts
    text = describe_unknown_lesions(table)
    assert text.startswith(unknown)
    assert text.endswith("cannot be known") == bool(unknown)


def test_prepare_reports_lesion_ids_of_several_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    lines = [f"{number:02}.png,{'mel' if number % 2 else 'nv'},{number % 4},P{number // 2}" for number in range(40)]
    for line in lines:
        Image.new("RGB", (8, 8)).save(tmp_path / line.split(",")[0])
    write(tmp_path / "index.csv", "img_id,diagnostic,lesion_id,patient_id", *lines)
    assert prepare.main(["csv", f"--data.root={tmp_path}", "--data.size=8"]) == 0
    output = capsys.readouterr().out
    assert "4 lesion ids belong to several patients: a lesion is a lesion id of one patient" in output
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines()]
    assert ["lesions", "40"] in rows
    assert ["nv", "20", "20", "14", "2", "4"] in rows
    assert any(
        row[1:3] == ["images", "patients"] for row in (line.split() for line in output.replace("┃", "").splitlines())
    )


@pytest.mark.parametrize(
    ("lesions", "noun", "plural"),
    [
        (["L1", "L2"], "lesion", "lesions"),
        (["patient 1", "patient 2"], "patient", "patients"),
        (["L1", "patient 2"], "lesion or patient", "lesions or patients"),
    ],
)
def test_patients_are_not_called_lesions(lesions: list[str], noun: str, plural: str) -> None:
    table = pd.DataFrame({"image_id": ["a", "b"], "lesion_id": lesions})
    assert group_noun(table, plural=False) == noun
    assert group_noun(table) == plural
    assert count_images(table) == f"2 images, 2 {plural}"
