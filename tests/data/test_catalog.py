from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from skincancer.data.catalog import DATASETS, Dataset, dataset
from skincancer.data.index import add_target, classes_of, find_root, finish_index, image_root, index_hash
from skincancer.errors import ConfigError, DataError


def small_table(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"image_id": ["b", "a", "c"], "image": ["b.jpg", "a.jpg", "c.jpg"]} | columns)


def test_the_catalog_and_the_split_rules_import_without_heavy_packages() -> None:
    code = (
        "import sys, skincancer.data.catalog, skincancer.data.splits;"
        "print([m for m in ('pandas', 'numpy', 'torch', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("entry", DATASETS.values(), ids=DATASETS)
def test_every_entry_is_consistent(entry: Dataset) -> None:
    assert DATASETS[entry.name] is entry
    assert set(entry.tasks) <= {"classification", "segmentation", "joint"}
    assert set(entry.malignant) <= set(entry.classes)
    assert list(entry.classes) == sorted(set(entry.classes))
    module, _, function = entry.reader.partition(":")
    assert module.startswith("skincancer.data.")
    assert callable(getattr(importlib.import_module(module), function))
    assert entry.how_to_get
    assert entry.layout


def test_an_unknown_data_set_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"'ham1000'.*Did you mean 'ham10000'.*demo.*csv"):
        dataset("ham1000")


def test_finish_index_fills_sorts_and_normalises() -> None:
    index = finish_index(
        small_table(
            diagnosis=["nv", None, float("nan")],
            age=["40", "", 55.0],
            sex=["unknown", None, "female"],
            part=["Validation", "train", ""],
            lesion_id=["", "L1", None],
        ),
        dataset="x",
        classes=("mel", "nv"),
    )
    assert list(index.columns) == [
        *("image_id", "image", "mask", "diagnosis", "lesion_id"),
        *("patient_id", "part", "age", "sex", "site", "dx_type", "mm_per_px"),
    ]
    assert list(index.index) == [0, 1, 2]
    assert list(index["image_id"]) == ["a", "b", "c"]
    assert list(index["lesion_id"]) == ["L1", "b", "c"]
    assert list(index["diagnosis"]) == [None, "nv", None]
    assert list(index["mask"]) == [None, None, None]
    assert list(index["part"]) == ["train", "val", ""]
    assert list(index["sex"]) == ["", "unknown", "female"]
    assert index["age"].dtype == "float64"
    assert index["age"].isna().tolist() == [True, False, False]
    assert index["age"].tolist()[1:] == [40.0, 55.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image_id": ["a", "a", "b"]}, r"1 image ids occur more than once: a\."),
        ({"diagnosis": ["nv", "nevus", "nevus"]}, r"2 images \(a, c\) is 'nevus'.*mel, nv"),
        ({"diagnosis": ["NV", "nv", "nv"]}, r"1 images \(b\) is 'NV'"),
        ({"part": ["train", "train", "holdout"]}, r"part of image c is 'holdout'"),
        ({"age": ["40", "forty", ""]}, r"age of image a is 'forty'"),
        ({"age": ["40", "-3", ""]}, r"age of image a is '-3'"),
        ({"image": ["b.jpg", "", "c.jpg"]}, "no image path"),
    ],
)
def test_finish_index_rejects(columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        finish_index(small_table(**columns), dataset="x", classes=("mel", "nv"))


def test_finish_index_rejects_an_empty_table() -> None:
    with pytest.raises(DataError, match="no image"):
        finish_index(small_table().iloc[:0], dataset="x", classes=())


def test_a_reader_with_a_misspelt_column_is_rejected() -> None:
    with pytest.raises(
        DataError, match=r"the reader of x returned the columns .*lesion; expected image_id, image and some of"
    ):
        finish_index(small_table(lesion=["1", "2", "3"]), dataset="x", classes=())


def test_index_hash_sees_ids_labels_and_groups_only() -> None:
    index = finish_index(small_table(diagnosis=["nv", "mel", "nv"]), dataset="x", classes=())
    moved = index.assign(image=["elsewhere/" + path for path in index["image"]], age=[1.0, 2.0, 3.0])
    assert index_hash(moved.iloc[::-1]) == index_hash(index)
    for column in ("image_id", "diagnosis", "lesion_id"):
        changed = index.copy()
        changed.loc[0, column] = "other"
        assert index_hash(changed) != index_hash(index)


def test_find_root_prefers_the_flag_then_the_environment_then_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given, env, default = tmp_path / "given", tmp_path / "env" / "ham10000", tmp_path / "data" / "ham10000"
    ham = dataset("ham10000")
    with pytest.raises(DataError, match="SKINCANCER_DATA is not set"):
        find_root(ham, None, None)
    for folder in (given, env, default):
        folder.mkdir(parents=True)
        (folder / ".DS_Store").touch()
    with pytest.raises(DataError, match="is empty") as caught:
        find_root(ham, None, str(env.parent))
    for text in (str(env), str(default), "10.7910/DVN/DBW86T", "HAM10000_metadata.csv"):
        assert text in str(caught.value)

    (default / "x.jpg").touch()
    assert find_root(ham, None, str(env.parent)) == default
    (env / "x.jpg").touch()
    assert find_root(ham, None, str(env.parent)) == env
    with pytest.raises(DataError) as caught:  # No other folder replaces that of --data.root.
        find_root(ham, str(given), str(env.parent))
    assert str(env) not in str(caught.value)
    (given / "x.jpg").touch()
    assert find_root(ham, str(given), str(env.parent)) == given
    with pytest.raises(DataError, match="is a file"):
        find_root(ham, str(given / "x.jpg"), None)


def test_a_csv_root_may_be_the_file_itself(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.touch()
    assert find_root(dataset("csv"), str(table), None) == table
    assert image_root(table) == image_root(tmp_path) == tmp_path


def test_targets() -> None:
    ham = dataset("ham10000")
    table = small_table(diagnosis=["vasc", "akiec", None])
    index = finish_index(table, dataset="ham10000", classes=ham.classes)  # rows a: akiec, b: vasc, c: none
    labelled, names = add_target(index, ham, ham.classes, "diagnosis")
    assert labelled["label"].dtype == "int64"
    assert labelled["label"].tolist() == [0, 6, -1]
    assert names == ham.classes
    labelled, names = add_target(index, ham, ham.classes, "malignancy")
    assert labelled["label"].tolist() == [1, 0, -1]
    assert names == ("benign", "malignant")
    labelled, _ = add_target(index, ham, ham.classes, "malignancy", ("mel", "vasc"))
    assert labelled["label"].tolist() == [0, 1, -1]
    assert "label" not in index


def test_wrong_targets_are_rejected() -> None:
    index = finish_index(small_table(diagnosis=["x", "y", "y"]), dataset="folder", classes=())
    folder, classes = dataset("folder"), classes_of(index)
    assert classes == ("x", "y")
    with pytest.raises(ConfigError, match=r"--data\.malignant"):
        add_target(index, folder, classes, "malignancy")
    with pytest.raises(ConfigError, match=r"'z'.*x, y"):
        add_target(index, folder, classes, "malignancy", ("z",))
    with pytest.raises(ConfigError, match="every class"):
        add_target(index, folder, classes, "malignancy", ("x", "y"))
    with pytest.raises(ConfigError, match="Did you mean 'diagnosis'"):
        add_target(index, folder, classes, "diagnoses")


def test_entries_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset("demo").name = "other"  # type: ignore[misc]
