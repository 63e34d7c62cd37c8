from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from skincancer.data.groups import count_shared_ids, merge_groups, merge_patients
from skincancer.data.index import finish_index
from skincancer.data.splits import Roles, Split, assign_roles, parse_split, split_hash
from skincancer.errors import ConfigError, DataError

LESIONS = {"akiec": 60, "bcc": 85, "bkl": 180, "df": 20, "mel": 155, "nv": 1350, "vasc": 25}


Row = tuple[str, str, str | None, str]  # image_id, lesion_id, diagnosis, part


def make_index(rows: Sequence[Row]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["image_id", "lesion_id", "diagnosis", "part"])
    return finish_index(table.assign(image=table["image_id"] + ".jpg"), dataset="x", classes=())


@pytest.fixture(scope="module")
def ham() -> pd.DataFrame:
    """Lesions in the proportions of HAM10000, with one to four images each."""
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for diagnosis, count in LESIONS.items():
        for number in range(count):
            views = int(rng.choice([1, 2, 3, 4], p=[0.74, 0.19, 0.06, 0.01]))
            rows += [(f"{diagnosis}{number}_{view}", f"L_{diagnosis}{number}", diagnosis, "") for view in range(views)]
    return make_index(rows)


def sides(index: pd.DataFrame, text: str, seed: int = 0) -> dict[str, set[str]]:
    role = assign_roles(index, parse_split(text), seed).role
    return {name: set(index["lesion_id"][role == name]) for name in ("train", "val", "test")}


@pytest.mark.parametrize("text", ["80:20", "70:30", "40:60", "99:1", "11:89", "fold:0/5", "fold:4/5", "official"])
def test_a_split_round_trips(text: str) -> None:
    assert str(parse_split(text)) == text


def test_parsed_splits() -> None:
    assert parse_split("70:30") == Split("ratio", test=30)
    assert parse_split("fold:3/10") == Split("fold", fold=3, folds=10)
    assert parse_split("official") == Split("official")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("80:30", "do not add up to 100"),
        ("0:100", "leaves the training or test set empty"),
        ("100:0", "leaves the training or test set empty"),
        ("10:90", "leaves the training or test set empty"),
        ("abc", "expected train:test"),
        ("fold:5/5", "folds are numbered from 0 to 4"),
        ("fold:0/1", "at least 2 folds"),
        ("", "expected train:test"),
        ("80:20:0", "expected train:test"),
        ("80:20\n", "expected train:test"),
        ("4820", r'80:20 as the base-60 number 4820: write "80:20" in quotes'),
        ("4230", "70:30 as the base-60 number"),
        ("offical", "Did you mean 'official'"),
    ],
)
def test_a_bad_split_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_split(text)


@pytest.mark.parametrize("text", ["80:20", "70:30", "40:60", "15:85", "fold:0/5", "fold:3/10"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_lesion_is_on_two_sides_and_none_is_lost(ham: pd.DataFrame, text: str, seed: int) -> None:
    parts = sides(ham, text, seed)
    assert sum(len(part) for part in parts.values()) == ham["lesion_id"].nunique() == sum(LESIONS.values())
    assert set().union(*parts.values()) == set(ham["lesion_id"])


def test_test_and_train_sets_are_nested_and_validation_is_common(ham: pd.DataFrame) -> None:
    chain = [sides(ham, text) for text in ("90:10", "80:20", "70:30", "60:40", "40:60", "15:85")]
    for small, large in itertools.pairwise(chain):
        assert small["test"] < large["test"]
        assert small["train"] > large["train"]
        assert small["val"] == large["val"]


def test_each_class_gives_its_share(ham: pd.DataFrame) -> None:
    parts = sides(ham, "80:20")
    for diagnosis, n in LESIONS.items():
        counts = {name: sum(lesion.startswith(f"L_{diagnosis}") for lesion in part) for name, part in parts.items()}
        n_test, n_val = round(n * 0.2), round(n * 0.1)
        assert counts == {"train": n - n_test - n_val, "val": n_val, "test": n_test}


def test_the_split_depends_on_its_seed_alone(ham: pd.DataFrame) -> None:
    roles = assign_roles(ham, parse_split("80:20"), 0)
    shuffled = ham.sample(frac=1, random_state=1)
    again = assign_roles(shuffled, parse_split("80:20"), 0)
    assert split_hash(shuffled, again) == split_hash(ham, roles)
    assert split_hash(ham, assign_roles(ham, parse_split("80:20"), 1)) != split_hash(ham, roles)
    assert split_hash(ham, assign_roles(ham, parse_split("70:30"), 0)) != split_hash(ham, roles)


def test_new_images_move_only_lesions_at_a_cut(ham: pd.DataFrame) -> None:
    before = sides(ham, "80:20")
    extra = make_index([(f"new{i}", f"L_new{i}", "nv", "") for i in range(100)])
    after = sides(pd.concat([ham, extra], ignore_index=True), "80:20")
    new = set(extra["lesion_id"])
    # 100 more nevi: test grows by 20 and validation by 10, so at most that many old lesions change sides. A fresh draw
    # would move some 46 % of the 1,875.
    moved = sum(len(before[name] - after[name]) for name in before)
    assert moved <= 30
    for name in ("test", "val"):
        assert after[name] - new <= before[name] | before["train"]
    assert {len(after[name]) - len(before[name]) for name in ("test", "val")} == {20, 10}


def test_folds_test_every_lesion_exactly_once(ham: pd.DataFrame) -> None:
    folds = [sides(ham, f"fold:{i}/5") for i in range(5)]
    tested = [lesion for fold in folds for lesion in fold["test"]]
    assert len(tested) == len(set(tested)) == ham["lesion_id"].nunique()
    nevi = [sum("nv" in lesion for lesion in fold["val"]) for fold in folds]
    assert nevi == [108] * 5  # a tenth of the 1,080 that are not in test


def test_a_small_case_by_hand() -> None:
    def rank(seed: int, group: str) -> str:
        return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()

    nevi = [f"n{i}" for i in range(11)]
    melanomas = ["m0", "m1", "m2"]
    index = make_index(
        [(f"{lesion}_{view}", lesion, "nv", "") for lesion in nevi for view in range(2)]
        + [(lesion, lesion, "mel", "") for lesion in melanomas]
    )
    for seed in (0, 7):
        by_rank = {
            name: sorted(group, key=lambda g: rank(seed, g)) for name, group in (("nv", nevi), ("mel", melanomas))
        }
        # 11 nevi at 70:30: round(3.3) = 3 test, round(1.1) = 1 val; 3 melanomas: round(0.9) = 1 test, max(1, 0) = 1 val
        assert sides(index, "70:30", seed) == {
            "test": {*by_rank["nv"][:3], by_rank["mel"][0]},
            "val": {by_rank["nv"][10], by_rank["mel"][2]},
            "train": {*by_rank["nv"][3:10], by_rank["mel"][1]},
        }
        # fold 1 of 3: ranks 1, 4, 7, 10 of the nevi; of the other 7 the highest max(1, round(0.7)) = 1, rank 9, is val
        assert sides(index, "fold:1/3", seed) == {
            "test": {*by_rank["nv"][1::3], by_rank["mel"][1]},
            "val": {by_rank["nv"][9], by_rank["mel"][2]},
            "train": {*(by_rank["nv"][i] for i in (0, 2, 3, 5, 6, 8)), by_rank["mel"][0]},
        }


def test_a_lesion_with_several_diagnoses_takes_the_most_frequent_then_the_rarer() -> None:
    rows: list[Row] = [(f"n{i}", f"n{i}", "nv", "") for i in range(20)]
    rows += [(f"m{i}", f"m{i}", "mel", "") for i in range(2)]
    tie: list[Row] = [("t0", "tie", "nv", ""), ("t1", "tie", "mel", "")]
    assert sides(make_index(rows + tie), "80:20")  # the tie is the third melanoma
    majority: list[Row] = [("t0", "most", "nv", ""), ("t1", "most", "mel", ""), ("t2", "most", "nv", "")]
    with pytest.raises(DataError, match="the class 'mel' has only 2 lesions"):
        assign_roles(make_index(rows + majority), parse_split("80:20"), 0)


def test_images_without_diagnoses_are_one_stratum() -> None:
    index = make_index([(f"i{i}", f"i{i}", None, "") for i in range(10)])
    assert {name: len(part) for name, part in sides(index, "80:20").items()} == {"train": 7, "val": 1, "test": 2}


@pytest.mark.parametrize(
    ("count", "text"), [(2, "80:20"), (1, "80:20"), (8, "11:89"), (4, "fold:0/5"), (4, "fold:4/5"), (2, "fold:0/2")]
)
def test_too_few_lesions_name_class_and_count(count: int, text: str) -> None:
    rows: list[Row] = [(f"n{i}", f"n{i}", "nv", "") for i in range(200)]
    rows += [(f"d{i}", f"d{i}", "df", "") for i in range(count)]
    with pytest.raises(DataError, match=rf"{text}.*the class 'df' has only {count} lesions?"):
        assign_roles(make_index(rows), parse_split(text), 0)


def official_rows(val: bool) -> list[Row]:
    rows: list[Row] = []
    for diagnosis, count in (("nv", 30), ("mel", 4)):
        rows += [(f"{diagnosis}{i}", f"{diagnosis}{i}", diagnosis, "train") for i in range(count)]
        rows += [(f"test_{diagnosis}", f"test_{diagnosis}", diagnosis, "test")]
        rows += [(f"val_{diagnosis}", f"val_{diagnosis}", diagnosis, "val")] if val else []
    return rows


def test_official_parts_are_taken_as_they_are() -> None:
    index = make_index(official_rows(val=True))
    assert list(assign_roles(index, parse_split("official"), 0).role) == list(index["part"])


@pytest.mark.parametrize("unlabelled_val", [False, True])
def test_without_a_labelled_val_part_the_top_tenth_of_train_validates(unlabelled_val: bool) -> None:
    extra: list[Row] = [("v0", "v0", None, "val")] if unlabelled_val else []
    index = make_index(official_rows(val=False) + extra)
    roles = assign_roles(index, parse_split("official"), 3)
    expected: set[str] = set()
    for diagnosis, count, n_val in (("nv", 30, 3), ("mel", 4, 1)):
        groups = [f"{diagnosis}{i}" for i in range(count)]
        expected |= set(sorted(groups, key=lambda g: hashlib.sha256(f"3:{g}".encode()).hexdigest())[-n_val:])
    assert set(index["image_id"][roles.role == "val"]) == expected
    assert set(index["image_id"][roles.role == "test"]) == {"test_nv", "test_mel"}
    assert set(index["image_id"][roles.role == ""]) == ({"v0"} if unlabelled_val else set())
    assert roles.dropped == []


def test_official_needs_parts() -> None:
    official = parse_split("official")
    with pytest.raises(DataError, match="1 images are in no official subset"):
        assign_roles(make_index([*official_rows(val=True), ("x", "x", "nv", "")]), official, 0)
    with pytest.raises(DataError, match="no labelled test set"):
        assign_roles(make_index([row for row in official_rows(val=True) if row[3] != "test"]), official, 0)
    with pytest.raises(DataError, match="'df' has no training image"):
        assign_roles(make_index([*official_rows(val=True), ("x", "x", "df", "test")]), official, 0)
    rows = [*official_rows(val=False), ("x", "x", "df", "train")]
    with pytest.raises(DataError, match="'df' has only 1 lesion,"):
        assign_roles(make_index(rows), official, 0)


@pytest.fixture
def leaking() -> pd.DataFrame:
    """One lesion in train (2 images) and test, one in train and val, one in val and test."""
    return make_index(
        [
            *official_rows(val=True),
            *[("a0", "A", "nv", "train"), ("a1", "A", "nv", "train"), ("a2", "A", "nv", "test")],
            *[("b0", "B", "nv", "train"), ("b1", "B", "nv", "val")],
            *[("c0", "C", "nv", "val"), ("c1", "C", "nv", "test")],
        ]
    )


def test_leaks_stop(leaking: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="3 lesions or patients with 7 images") as caught:
        assign_roles(leaking, parse_split("official"), 0)
    for text in ("A (a0 in train, a1 in train, a2 in test)", "drop_from_train", "allow"):
        assert text in str(caught.value)


def test_leaks_are_dropped_from_train_so_that_test_stays_whole(leaking: pd.DataFrame) -> None:
    roles = assign_roles(leaking, parse_split("official"), 0, "drop_from_train")
    assert roles.dropped == ["a0", "a1", "b0", "c0"]
    assert (roles.leaking_groups, roles.leaking_images) == (3, 7)
    role = dict(zip(leaking["image_id"], roles.role, strict=True))
    assert {image_id for image_id, name in role.items() if name == ""} == set(roles.dropped)
    kept = leaking[roles.role != ""].assign(role=roles.role[roles.role != ""])
    assert kept.groupby("lesion_id")["role"].nunique().max() == 1
    assert (roles.role == "test").sum() == (leaking["part"] == "test").sum()


def test_allowed_leaks_are_counted(leaking: pd.DataFrame) -> None:
    roles = assign_roles(leaking, parse_split("official"), 0, "allow")
    assert list(roles.role) == list(leaking["part"])
    assert (roles.leaking_groups, roles.leaking_images, roles.dropped) == (3, 7, [])


def test_leaks_by_a_wrong_name(leaking: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'allow'"):
        assign_roles(leaking, parse_split("official"), 0, "allowed")


def test_dropping_may_not_empty_a_class() -> None:
    rows = [*official_rows(val=True), ("d0", "D", "df", "train"), ("d1", "D", "df", "test")]
    with pytest.raises(DataError, match="'df' has no training image"):
        assign_roles(make_index(rows), parse_split("official"), 0, "drop_from_train")


def test_merged_groups_are_joined_through_chains(tmp_path: Path) -> None:
    index = make_index(
        [
            ("a", "L3", "nv", ""),
            ("a2", "L3", "nv", ""),
            ("b", "L2", "nv", ""),
            ("c", "L1", "nv", ""),
            ("d", "L0", "nv", ""),
        ]
    )
    table = tmp_path / "groups.csv"
    table.write_text("image_id,group\na,g1\nb,g1\na2,g2\nc,g2\n")  # L3 and L2 by g1, L3 and L1 by g2
    merged, digest = merge_groups(index, table)
    assert dict(zip(merged["image_id"], merged["lesion_id"], strict=True)) == {
        "a": "L1",
        "a2": "L1",
        "b": "L1",
        "c": "L1",
        "d": "L0",
    }
    assert merged["lesion_id"].dtype == object
    assert index["lesion_id"].tolist() == ["L3", "L3", "L2", "L1", "L0"]
    reordered = tmp_path / "reordered.csv"
    reordered.write_text("group,image_id,note\ng2,c,x\ng1,a,\ng2,a2,\ng1,b,\n")
    assert merge_groups(index, reordered)[1] == digest
    reordered.write_text("image_id,group\na,g1\nb,g1\n")
    assert merge_groups(index, reordered)[1] != digest


def test_a_group_named_like_a_lesion_is_not_that_lesion(tmp_path: Path) -> None:
    index = make_index([("a", "L1", "nv", ""), ("b", "L2", "nv", ""), ("c", "L3", "nv", "")])
    table = tmp_path / "groups.csv"
    table.write_text("image_id,group\na,L3\nb,L3\n")
    assert merge_groups(index, table)[0]["lesion_id"].tolist() == ["L1", "L1", "L3"]


@pytest.mark.parametrize("unknown", ["", "NA", " nan ", "None", "N/A", "unknown", "NULL", "-", "?"])
def test_an_unknown_group_merges_nothing(tmp_path: Path, unknown: str) -> None:
    index = make_index([("a", "L1", "nv", ""), ("b", "L2", "nv", ""), ("c", "L3", "nv", "")])
    table = tmp_path / "groups.csv"
    table.write_text("image_id,group\nb,g\nc,g\n")
    expected = merge_groups(index, table)
    table.write_text(f"image_id,group\na,{unknown}\nb,g\nc,g\na,{unknown}\n")
    merged, digest = merge_groups(index, table)
    assert merged["lesion_id"].tolist() == expected[0]["lesion_id"].tolist() == ["L1", "L2", "L2"]
    assert digest == expected[1]


def of_patients(*patients: str) -> pd.DataFrame:
    """Five images of the lesions L1, L1, L2, 7 and L3, with a patient each."""
    rows = [(name, lesion, "nv", "") for name, lesion in zip("abcde", ("L1", "L1", "L2", "7", "L3"), strict=True)]
    return make_index(rows).assign(patient_id=pd.Series(patients, dtype=object))


def test_lesions_of_a_patient_are_one() -> None:
    index = of_patients("7", "7", "7", "", "8")  # a lesion of nobody is called as the patient is
    assert merge_patients(index)["lesion_id"].tolist() == ["patient 7", "patient 7", "patient 7", "7", "patient 8"]
    assert index["lesion_id"].tolist() == ["L1", "L1", "L2", "7", "L3"]
    nobody = of_patients("", "", "", "", "")
    assert merge_patients(nobody)["lesion_id"].tolist() == ["L1", "L1", "L2", "7", "L3"]


def test_a_lesion_id_of_two_patients_is_two_lesions() -> None:
    """As in PAD-UFES-20, where 250 lesion ids belong to several patients."""
    index = of_patients("7", "8", "7", "", "")
    assert count_shared_ids(index) == 1
    assert merge_patients(index)["lesion_id"].tolist() == ["patient 7", "patient 8", "patient 7", "7", "L3"]
    assert count_shared_ids(of_patients("7", "7", "8", "", "")) == 0


def test_a_lesion_of_a_known_and_an_unknown_patient_is_refused() -> None:
    with pytest.raises(
        DataError, match="lesion L1 have the patients '', '7'; expected a patient for all of them or for none"
    ):
        merge_patients(of_patients("7", "", "", "", ""))


def test_bad_group_tables(tmp_path: Path) -> None:
    index = make_index([("a", "a", "nv", ""), ("b", "b", "nv", "")])
    table = tmp_path / "groups.csv"
    for text, message in (
        ("image_id,group\na,g\nx,g\ny,g\n", "contains 2 images that are not in the data set: x, y"),
        ("image,group\na,g\n", "no column image_id"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=message):
            merge_groups(index, table)
    with pytest.raises(DataError, match=r"absent\.csv, which is not a file"):
        merge_groups(index, tmp_path / "absent.csv")


def test_the_split_hash_covers_ids_and_roles() -> None:
    index = make_index([("a", "a", "nv", ""), ("b", "b", "nv", "")])
    expected = hashlib.sha256(b'[["a", "train"], ["b", "test"]]').hexdigest()
    assert split_hash(index, Roles(np.array(["train", "test"], dtype=object))) == expected
