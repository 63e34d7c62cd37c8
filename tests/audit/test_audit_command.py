"""`prepare --audit` as a command: what it takes, what it refuses before its work, and what it writes."""

import os

import pandas as pd
import pytest
from pictures import picture
from PIL import Image

from skincancer import prepare
from skincancer.audit import audit, findings, report
from skincancer.errors import ConfigError, DataError
from skincancer.imaging.quality import COLUMNS, NAMES
from skincancer.schema.data import DataConfig


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Create a data set of six images with a CSV table."""
    root = tmp_path_factory.mktemp("small")
    for number in range(6):
        picture(500 + number).save(root / f"{number}.png")
    rows = [[f"{number}.png", "mel" if number % 2 else "nv"] for number in range(6)]
    pd.DataFrame(rows, columns=["image", "diagnosis"]).to_csv(root / "index.csv", index=False)
    return root


def test_audit_of_a_single_class_reports_confounding_as_not_measured(tmp_path, capsys):
    (tmp_path / "data" / "nv").mkdir(parents=True)
    for number in range(3):
        picture(500 + number).save(tmp_path / "data" / "nv" / f"{number}.png")
    assert prepare.main(["folder", f"--data.root={tmp_path / 'data'}", "--audit", f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "3 images in" in printed
    assert "Class and source: not measured, fewer than two classes" in printed


def test_interrupted_audit_prints_a_message(small, capsys, monkeypatch):
    def interrupt(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr(audit, "find_copies", interrupt)
    assert prepare.main(["csv", f"--data.root={small}", "--audit"]) == 130
    assert capsys.readouterr().err == "interrupted; rerun the same command to start again\n"


@pytest.mark.parametrize(("columns", "widest"), [("90", 90), (None, 10_000), ("wide", 10_000)])
def test_width_of_a_pipe_follows_columns(capsys, monkeypatch, columns, widest):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert prepare.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= widest
    assert any("CC BY-NC 4.0" in line for line in lines)
    assert (max(map(len, lines)) > 90) == (columns != "90"), "no cell is cut without COLUMNS"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against=ham10000"], "--against requires --audit"),
        (["--write-groups=x.csv"], "--write-groups requires --audit"),
        (["--audit", "--against.root=x"], "--against.root requires --against"),
        (["--audit", "--against=hma10000"], "Did you mean 'ham10000'?"),
        (["--audit", "--show=augment"], "Use only one of them"),
        (["--audit", "--features"], "Use only one of them"),
        (["--audit", "--data.groups=nowhere.csv"], "--audit does not use --data.groups"),
        (["--audit", "--data.clean=[hair]"], "--audit does not use --data.clean"),
        (["--audit", "--data.quality=drop_flagged"], "--audit does not use --data.quality:"),
        (["--audit", "--task=segmentation"], "--audit does not use --task"),
        (["--audit", "--experiment=resnet50"], "--audit does not use --experiment"),
        (["--audit", "--data.quality_rules={blury: 60}"], "Did you mean 'blurred'?"),
    ],
)
def test_flags_without_effect_on_an_audit_fail(arguments, message, capsys):
    assert prepare.main(["demo", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def no_work(*_args, **_more):
    raise AssertionError("the work began")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--audit", "--out=a_file"], "--out is a_file, a file; expected a folder. Use a folder"),
        (["--audit", "--out=a_file/below"], "--out a_file/below cannot be written: a_file is a file"),
        (["--audit", "--write-groups=a_folder"], "--write-groups is a_folder, a folder; expected a file. Use"),
        (["--audit", "--write-groups=a_file/groups.csv"], "--write-groups a_file/groups.csv cannot be written"),
        (["--show=augment", "--out=a_file/x.png"], "--out a_file/x.png cannot be written"),
        (["--show=augment", "--out=sheet.txt"], "--out is sheet.txt; expected a name that ends in .png"),
        (["--audit", "--against=nothing"], "--against is 'nothing', which is not in the catalog"),
        (
            ["--show=clean", "--data.clean=[hair]", "--out=a_folder"],
            "--out is a_folder, a folder; expected a file. Use",
        ),
    ],
)
def test_unwritable_output_fails_before_the_work(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("kept")
    (tmp_path / "a_folder").mkdir()
    monkeypatch.setattr(audit, "audit", no_work)
    monkeypatch.setattr(prepare, "prepare", no_work)
    assert prepare.main(["demo", *flags]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "a_file").read_text() == "kept"


def test_failed_output_file_does_not_prevent_the_others(small, tmp_path, monkeypatch, capsys):
    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_audit_page", full)
    arguments = ["csv", f"--data.root={small}", "--audit", f"--out={tmp_path}", f"--write-groups={tmp_path / 'g.csv'}"]
    assert prepare.main(arguments) == 2
    assert f"{tmp_path / 'csv_audit.html'} cannot be written: No space left on device" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"csv_audit.csv", "csv_images.csv", "g.csv"}


def test_images_table_has_quality_and_flags(small, tmp_path, capsys):
    arguments = ["csv", f"--data.root={small}", "--audit", f"--out={tmp_path}"]
    assert prepare.main([*arguments, "--data.quality_rules={resolution: 200, blurred: 0}"]) == 0
    assert f"wrote {tmp_path / 'csv_images.csv'}" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "csv_images.csv", dtype={"image_id": str}, keep_default_na=False)
    assert set(NAMES) == set(COLUMNS)
    assert {"image_id", "lesion_id", "diagnosis", "part", "width", "height", *NAMES.values()} <= set(table.columns)
    assert table["image_id"].tolist() == list("012345")
    assert set(table["flags"]) == {"resolution"}
    assert table["reasons"][0] == "too few pixels (resolution 160, below 200)"
    assert table["shorter_side_px"].eq(160).all()
    findings_table = pd.read_csv(tmp_path / "csv_audit.csv")
    assert (findings_table["finding"] == "flagged").sum() == 6


def test_confounding_is_in_the_findings(tmp_path, capsys):
    for number in range(12):
        image = picture(520 + number, texture=0.5)
        image.point(lambda value, n=number: min(255, value + 60 * (n % 2))).save(tmp_path / f"{number}.png")
    rows = "\n".join(f"{n}.png,{'nv' if n % 2 else 'mel'}" for n in range(12))
    (tmp_path / "index.csv").write_text(f"image,diagnosis\n{rows}\n")
    assert prepare.main(["csv", f"--data.root={tmp_path}", "--audit", f"--out={tmp_path / 'out'}"]) == 0
    table = pd.read_csv(tmp_path / "out/csv_audit.csv")
    assert "With so few images the interval is too narrow." in capsys.readouterr().out
    area = table[table["finding"] == "confounding"].set_index("detail")["value"]
    assert area["low end of its interval"] <= area["all features together"] <= area["high end of its interval"]
    assert area["frame_light"] > 0.9


def test_image_with_a_bad_mask_is_still_audited(tmp_path):
    for name, image in (("a", picture(1)), ("b", picture(1)), ("c", Image.new("RGB", (160, 160))), ("d", picture(2))):
        image.save(tmp_path / f"{name}.png")
    Image.new("L", (20, 20)).save(tmp_path / "small.png")
    (tmp_path / "index.csv").write_text(
        "image,diagnosis,mask\na.png,nv,small.png\nb.png,nv,\nc.png,nv,small.png\nd.png,nv,\n"
    )
    result = audit.audit(DataConfig(dataset="csv", root=str(tmp_path)), jobs=1)
    assert result.of("unreadable").empty
    bad = result.of("bad_mask").set_index("image_id")["detail"]
    assert set(bad.index) == {"a", "c"}
    assert bad["a"].startswith(f"{tmp_path / 'a.png'} is 160×160 px but its mask {tmp_path / 'small.png'} is 20×20 px")
    assert result.copies == [["a", "b"]]
    assert "c" in set(result.of("flagged")["image_id"])


def test_error_of_too_few_images_names_unreadable_files(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "index.csv").write_text("image,diagnosis\na.png,nv\nb.png,mel\n")
    with pytest.raises(DataError, match="1 readable image; an audit needs two or more") as caught:
        audit.audit(DataConfig(dataset="csv", root=str(tmp_path)), jobs=1)
    assert f"1 of 2 cannot be used:\n  {tmp_path / 'b.png'} is not an image\nFix these files" in str(caught.value)


def test_data_set_itself_is_recognised_by_its_files(small, tmp_path, monkeypatch):
    classes = tmp_path / "classes"
    for number in range(4):
        (classes / "nv mel".split()[number % 2]).mkdir(parents=True, exist_ok=True)
        picture(540 + number).save(classes / "nv mel".split()[number % 2] / f"{number}.png")
    rows = "\n".join(f"{path.relative_to(classes)},x" for path in sorted(classes.rglob("*.png")))
    (classes / "index.csv").write_text(f"image,diagnosis\n{rows}\n")
    os.symlink(small, tmp_path / "link")
    again = [
        (("csv", small), ("csv", tmp_path / "link")),
        (("csv", small), ("csv", small / "index.csv")),
        (("csv", small), ("csv", small / ".." / small.name)),
        (("folder", classes), ("csv", classes)),
    ]
    monkeypatch.setattr(findings, "find_near", no_work)
    for (name, root), (other, place) in again:
        own, against = (DataConfig(dataset=dataset, root=str(path)) for dataset, path in ((name, root), (other, place)))
        with pytest.raises(ConfigError, match="the data set itself"):
            audit.audit(own, against, jobs=1)


def test_subset_of_the_data_set_is_another_data_set(small, tmp_path):
    (small / "some.csv").write_text("image,diagnosis\n0.png,nv\n1.png,mel\n")
    own = DataConfig(dataset="csv", root=str(small / "some.csv"))
    result = audit.audit(own, DataConfig(dataset="csv", root=str(small)), jobs=1)
    assert result.of("in_other")["image_id"].tolist() == ["0", "1"]
