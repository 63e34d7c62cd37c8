"""Lesions in an audit: ids of the publisher and of another data set, leakage, patient conflicts."""

import contextlib
import io

import numpy as np
import pandas as pd
import pytest
from html_pages import read
from pictures import EDITS, picture

from skincancer import prepare
from skincancer.audit import audit
from skincancer.audit.audit import GroupLeakage, count_across, count_shared, groups_from_other
from skincancer.audit.report import lesion_texts
from skincancer.audit.verdict import verdict_line
from skincancer.data.groups import group_rows, known_lesions, unite
from skincancer.data.prepare import prepare_data
from skincancer.schema.data import DataConfig


def save(root, rows, **more):
    root.mkdir(exist_ok=True)
    for name, image, *_ in rows:
        image.save(root / f"{name}.png")
    table = pd.DataFrame(
        [[name, f"{name}.png", *rest] for name, _, *rest in rows],
        columns=["image_id", "image", "diagnosis", *more["columns"]],
    )
    table.to_csv(root / "index.csv", index=False)
    return root


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Create a data set without lesion ids, and a second one with ids and copies of the images."""
    root = tmp_path_factory.mktemp("lesions")
    pictures = [picture(400 + number) for number in range(12)]
    parts = ["train"] * 8 + ["test"] * 4
    own = [(f"o{n:02}", pictures[n], "mel" if n % 2 else "nv", parts[n]) for n in range(12)]
    lesions = ["A", "B", "C", "C", "D", "E", "F", "G", "A", "H", "", ""]  # A is in both subsets, C in one
    edited = [EDITS["darker"](EDITS["resize"](image)) for image in pictures]
    other = [(f"x{n:02}", edited[n], "nv", lesions[n]) for n in range(12)]
    return (
        save(root / "own", own, columns=["part"]),
        save(root / "other", other, columns=["lesion_id"]),
    )


@pytest.fixture(scope="module")
def compared(both, session_cache, tmp_path_factory):
    """Run an audit and return its output folder and console output."""
    own, other = both
    folder, printed = tmp_path_factory.mktemp("audit"), io.StringIO()
    arguments = ["csv", f"--data.root={own}", "--audit", "--against=csv", f"--against.root={other}", f"--out={folder}"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("SKINCANCER_CACHE", str(session_cache))
        assert prepare.main([*arguments, f"--write-groups={folder / 'groups.csv'}"]) == 0
    return folder, " ".join(printed.getvalue().split())


def test_lesions_by_the_other_data_set_are_listed(compared):
    folder, printed = compared
    table = pd.read_csv(folder / "csv_audit_against_csv.csv", keep_default_na=False)
    lesions = table[table["finding"] == "lesion_by_other"]
    assert dict(zip(lesions["image_id"], lesions["detail"], strict=True)) == {
        "o00": "A: train", "o08": "A: test", "o02": "C: train", "o03": "C: train",
    }  # fmt: skip
    assert lesions.set_index("image_id")["other_id"]["o08"] == "x08"
    across = table[table["finding"] == "across_parts_by_other"]
    assert set(across["image_id"]) == {"o00", "o08"}
    assert (
        "10 images here show 8 lesions of csv; 2 of these have several images here (4 in all), and 1 are in several"
        in printed
    )
    shared = "1 of the 4 images of the test subset (25.0 %; 50.0 % of the 2 with a known lesion) show a lesion that is also in train"
    assert shared in printed
    assert shared in " ".join(table.loc[table["finding"] == "lesions", "detail"])
    page = read(folder / "csv_audit_against_csv.html")
    assert any(shared in text for text in page.texts)
    assert "o08, A: test" in page.texts


def test_written_groups_merge_lesions_by_the_other_data_set(compared, both):
    groups = compared[0] / "groups.csv"
    assert pd.read_csv(groups).groupby("group")["image_id"].apply(set).tolist() == [{"o00", "o08"}, {"o02", "o03"}]
    config = {"dataset": "csv", "root": str(both[0]), "size": 16, "split": "official", "leaks": "drop_from_train"}
    assert prepare_data(DataConfig(**config), jobs=1).leaking_groups == 0
    assert prepare_data(DataConfig(**config, groups=str(groups)), jobs=1).leaking_groups == 1


def test_lesions_with_several_images_are_a_finding(both, compared):
    result = audit.audit(DataConfig(dataset="csv", root=str(both[1])), jobs=1)
    assert result.counts("several_of_lesion") == (4, 2)
    assert lesion_texts(result) == [
        "Lesions: 12 images of 10 lesions; 2 lesions have several images (4 in all): "
        "a split by image would leak, a split by lesion does not."
    ]
    assert "Lesions: the data set has no lesion ids" in compared[1]


def test_lesion_of_two_patients_is_a_finding_and_no_error(tmp_path):
    rows = [(f"p{n}", picture(430 + n), "nv", lesion, patient) for n, (lesion, patient) in enumerate(
        [("L1", "7"), ("L1", "8"), ("L2", "7"), ("L3", ""), ("L4", "9"), ("L4", "")]
    )]  # fmt: skip
    root = save(tmp_path / "data", rows, columns=["lesion_id", "patient_id"])
    conflicts = audit.audit(DataConfig(dataset="csv", root=str(root)), jobs=1).of("patient_conflict")
    assert dict(zip(conflicts["image_id"], conflicts["detail"], strict=True)) == {
        "p0": "L1: 7", "p1": "L1: 8", "p4": "L4: 9", "p5": "L4: no patient",
    }  # fmt: skip


def test_confounding_groups_images_by_patient(tmp_path, monkeypatch):
    rows = [(f"p{n}", picture(440 + n), "nv", lesion, patient) for n, (lesion, patient) in enumerate(
        [("L1", ""), ("L1", ""), ("L2", "7"), ("L3", "7"), ("L4", "8")]
    )]  # fmt: skip
    rows.append(("copy", picture(444), "nv", "L5", ""))
    root = save(tmp_path / "data", rows, columns=["lesion_id", "patient_id"])
    people = {}

    def measured(diagnosis, facts, groups, classes):
        people.update(zip(facts["image_id"], groups, strict=True))
        return None, "not here"

    monkeypatch.setattr(audit, "measure_confounding", measured)
    audit.audit(DataConfig(dataset="csv", root=str(root)), jobs=1)
    groups = pd.Series(people).groupby(people).groups.values()
    assert {frozenset(members) for members in groups} == {
        frozenset({"p0", "p1"}), frozenset({"p2", "p3"}), frozenset({"p4", "copy"}),
    }  # fmt: skip


def test_unite_merges_names_by_groups_and_by_equal_names():
    names = np.array(["c", "b", "c", "a", "d"], dtype=object)
    assert unite(names, []).tolist() == names.tolist()
    assert unite(names, [[0, 1], [4, 1]]).tolist() == ["b", "b", "b", "a", "b"]
    assert group_rows(pd.Series(["x", "", "y", "x", ""])) == [[0, 3]]


def test_groups_from_other_uses_known_lesions_only():
    other = pd.DataFrame({"image_id": ["1", "2", "3", "4"], "lesion_id": ["L", "2", "3", "3"]})
    assert known_lesions(other).tolist() == [True, False, True, True]
    assert groups_from_other(other, {0: 0, 1: 1, 3: 2}, 4).tolist() == ["L", "", "", "3"]


def test_verdict_line_contains_lesions_by_the_other_data_set(compared, both, session_cache, monkeypatch):
    monkeypatch.setenv("SKINCANCER_CACHE", str(session_cache))
    index = prepare_data(DataConfig(dataset="csv", root=str(both[0]), size=16, split="official"), jobs=1).index
    line = verdict_line(index, both[0])
    assert "2 lesions by csv, 1 across train, val and test of this split: keep them together with --data.groups" in line
    assert "1 lesion in several of the publisher's subsets" in line


def test_count_shared_counts_images_of_the_later_subset():
    part = pd.Series(["train", "train", "val", "test", "test", "test", ""])
    lesion = np.array(["a", "b", "a", "b", "b", "c", "c"], dtype=object)
    known = np.array([True, True, True, True, False, False, True])
    assert count_across(part, lesion) == 2
    assert count_shared(part, lesion, known) == [
        GroupLeakage("test", "train", 2, 3, 1, 1),
        GroupLeakage("val", "train", 1, 1, 1, 1),
    ]
