"""Test the output and the files of `skincancer prepare`."""

import pytest
from PIL import Image

from skincancer import fit, prepare
from skincancer.data.prepare import prepare_data
from skincancer.data.readers import demo
from skincancer.schema.data import DataConfig
from skincancer.visualization.previews import SHEETS


def test_prints_the_facts_of_the_data_set(tiny_demo, capsys):
    assert prepare.main(["demo", f"--data.root={tiny_demo}", "--data.size=32"]) == 0
    printed = capsys.readouterr().out
    for word in ("images", "lesions", "masks", "160×120", "licence", "citation", "akiec", "vasc", "32 px"):
        assert word in printed


def test_splits_keep_patients_together(tiny_demo, tmp_path, capsys):
    table = demo.read(tiny_demo).drop(columns="mask")
    lesions = sorted(set(table["lesion_id"]))
    known = lesions[:-6]
    patients = {lesion: str(number // 3) for number, lesion in enumerate(known)}
    table["diagnosis"] = table["diagnosis"].where(table["diagnosis"] == "nv", "mel")  # enough of each class
    (tmp_path / "images").symlink_to(tiny_demo / "images")
    table.assign(patient_id=table["lesion_id"].map(patients)).to_csv(tmp_path / "index.csv", index=False)
    config = DataConfig(dataset="csv", root=str(tmp_path), images=str(tiny_demo), split="60:40", size=32)
    index = prepare_data(config).index
    known = index[index["patient_id"] != ""]
    assert set(known["patient_id"]) == set(patients.values())
    assert (known.groupby("patient_id")["role"].nunique() == 1).all()
    assert {"train", "test"} <= set(known["role"])
    flags = [f"--data.root={tmp_path}", f"--data.images={tiny_demo}", "--data.split=60:40", "--data.size=32"]
    assert prepare.main(["csv", *flags]) == 0
    assert f"{known['patient_id'].nunique()}, of {len(known)} of the {len(index)} images" in " ".join(
        capsys.readouterr().out.split()
    )


def test_missing_data_are_reported_with_a_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert prepare.main(["ham10000"]) == 2
    message = capsys.readouterr().err
    assert "DVN/DBW86T" in message
    assert "SKINCANCER_DATA" in message
    assert "HAM10000_metadata.csv" in message


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (value, 0, 0)).save(path)


def test_a_test_set_alone_is_prepared_but_not_fitted(tmp_path, capsys):
    for number in range(4):
        picture(tmp_path / f"test/{'benign' if number % 2 else 'malignant'}/{number}.jpg", number)
    (tmp_path / "test/benign/x.svg").write_bytes(b"")
    flags = ["malignant_vs_benign", f"--data.root={tmp_path}", "--data.size=8"]
    assert prepare.main(flags) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "contains only the publisher's test set" in printed
    assert "skipped 1 file not read as images: 1 .svg" in printed
    assert fit.main(["--experiment=efficientnet_lite0", "--data.dataset", *flags]) == 2
    assert "Add the training set" in capsys.readouterr().err


def test_a_set_of_masks_is_prepared_without_diagnoses(tmp_path, capsys):
    for number in range(4):
        picture(tmp_path / f"ISBI2016_ISIC_Part1_Training_Data/ISIC_{number}.jpg", number)
        picture(tmp_path / f"ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_{number}_Segmentation.png", 255)
    flags = ["isic2016_task1", f"--data.root={tmp_path}", "--data.size=8"]
    assert prepare.main(flags) == 0
    assert "its masks are prepared for segmentation" in capsys.readouterr().out
    assert prepare.main([*flags, "--task=classification"]) == 2
    assert "has no diagnoses" in capsys.readouterr().err


def test_lists_data_sets(capsys):
    assert prepare.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in ("demo", "ham10000", "isic2018_task3", "malignant_vs_benign", "folder", "csv"):
        assert name in printed


def test_show_augment_writes_a_sheet_of_original_and_augmented_images(tiny_demo, tmp_path):
    path = tmp_path / "sheet.png"
    arguments = ["demo", f"--data.root={tiny_demo}", "--data.size=32", "--show", "augment", f"--out={path}"]
    assert prepare.main([*arguments, "--augment.policy=strong"]) == 0
    strong = Image.open(path).tobytes()
    assert prepare.main([*arguments, "--augment.policy=none"]) == 0
    with Image.open(path) as none:
        assert none.width > none.height / 2 > 100
        assert none.tobytes() != strong


def test_show_crop_writes_a_sheet_of_boxes_and_crops(tiny_demo, tmp_path):
    path = tmp_path / "sheet.png"
    arguments = [
        "demo",
        f"--data.root={tiny_demo}",
        "--data.size=32",
        "--data.crop=true",
        "--show",
        "crop",
        f"--out={path}",
    ]
    assert prepare.main(arguments) == 0
    tight = Image.open(path).tobytes()
    assert prepare.main([*arguments, "--data.crop_margin=1.0"]) == 0
    with Image.open(path) as wide:
        assert wide.height > wide.width > 300
        assert wide.tobytes() != tight


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hma10000"], "Did you mean 'ham10000'?"),
        ([], "the name of the data set is missing; expected one of demo"),
        (["demo", "--show", "clear"], "expected one of augment, crop, clean"),
        (["demo", "--show", "crop"], "--show crop requires crops. Use --data.crop true"),
        (["demo", "--out", "x.png"], "--out requires --show"),
        (["demo", "--data.sise", "3"], "Did you mean '--data.size'?"),
    ],
)
def test_wrong_input_is_rejected(arguments, message, capsys):
    assert prepare.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_names_of_sheets_are_those_of_the_previews():
    assert prepare.SHEET_NAMES == tuple(SHEETS)
