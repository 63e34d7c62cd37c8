"""`prepare --audit` finds, prints and writes faults of a data set, and splits and fits use the result."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY_FIT, only_run
from html_pages import asks_for_nothing, read
from pictures import picture
from PIL import Image

from skincancer import fit, prepare
from skincancer.audit import audit
from skincancer.audit.verdict import verdict_line
from skincancer.data.prepare import prepare_data
from skincancer.errors import ConfigError, DataError
from skincancer.runs.store import connect
from skincancer.schema.data import DataConfig

EVIL = "<script>alert(1)</script>"


def mask(*box: int, side: int = 160) -> Image.Image:
    pixels = np.zeros((side, side), np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """Create a data set with one example of every finding of an audit."""
    root = tmp_path_factory.mktemp("dirty")
    rows = []

    def add(name, diagnosis="nv", lesion="", part="train", masked="", age="50", sex="male", image=None, patient=""):
        if image is not None:
            image.save(root / f"{name}.png")
        rows.append([name, f"{name}.png", masked, diagnosis, lesion or f"L_{name}", part, age, sex, patient])

    for number in range(20):
        masked = f"m{number}.png"
        mask(20 + number, 30, 100, 110).save(root / masked)
        patient, part = {6: ("7", "train"), 8: ("7", "test")}.get(number, ("", "train"))
        diagnosis = "mel" if number % 2 else "nv"
        add(f"i{number:02d}", diagnosis, part=part, image=picture(number), masked=masked, patient=patient)
    mask(0, 0, 160, 160).save(root / "m_full.png")
    mask(0, 0, 160, 160).save(root / "m_full2.png")
    mask(0, 0, 0, 0).save(root / "m_empty.png")
    add("full", image=picture(30), masked="m_full.png")
    add("full2", image=picture(31), masked="m_full2.png")
    add("empty", image=picture(32), masked="m_empty.png")
    add("bytes")
    shutil.copy(root / "i00.png", root / "bytes.png")
    picture(1).save(root / "pixels.png", compress_level=1)
    add("pixels", "mel")
    add("flipped", "mel", part="test", image=picture(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    add(EVIL.replace("/", ""), "nv", age="", sex="unknown", image=None)
    Image.fromarray(np.asarray(picture(33).convert("L"))).save(root / "grey.png")
    rows[-1][1] = "grey.png"
    add("twin", "nv", lesion="L_i05", part="test", image=picture(34))
    for name, colour in (("black1", 0), ("black2", 0), ("white", 255)):
        add(name, image=Image.new("RGB", (160, 160), (colour,) * 3))
    add("pixel", image=Image.new("RGB", (1, 1), (200, 10, 10)))
    add("broken")
    (root / "broken.png").write_bytes(b"no image")
    columns = ["image_id", "image", "mask", "diagnosis", "lesion_id", "part", "age", "sex", "patient_id"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "index.csv", index=False)
    return root


@pytest.fixture(scope="module")
def written(dirty, session_cache, tmp_path_factory):
    """The folder that the command has written to, and what it printed."""
    folder = tmp_path_factory.mktemp("audit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINCANCER_CACHE", str(session_cache))
        import contextlib
        import io

        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            arguments = ["csv", f"--data.root={dirty}", "--audit", f"--out={folder}"]
            assert prepare.main([*arguments, f"--write-groups={folder / 'groups.csv'}"]) == 0
    return folder, printed.getvalue()


def findings_in(folder, finding):
    table = pd.read_csv(folder / "csv_audit.csv", keep_default_na=False, dtype=str)
    return table[table["finding"] == finding]


def test_copies_are_listed_by_kind(written):
    folder, printed = written
    same_file = findings_in(folder, "same_file")
    assert set(same_file["image_id"]) == {"i00", "bytes", "black1", "black2"}
    assert set(findings_in(folder, "same_pixels")["image_id"]) == {"i01", "pixels"}
    near = findings_in(folder, "near_duplicate")
    assert set(zip(near["image_id"], near["other_id"], strict=True)) == {("i02", "flipped"), ("flipped", "i02")}
    assert set(near["detail"]) == {"different lesions"}
    assert "near-duplicates" in printed


def test_copies_with_conflicting_labels_or_subsets_are_listed(written):
    folder, _ = written
    conflict = findings_in(folder, "label_conflict")
    assert dict(zip(conflict["image_id"], conflict["detail"], strict=True)) == {"i02": "nv", "flipped": "mel"}
    assert set(findings_in(folder, "copies_across_parts")["image_id"]) == {"i02", "flipped"}
    assert set(findings_in(folder, "lesion_across_parts")["image_id"]) == {"i05", "twin"}
    patients = findings_in(folder, "patient_across_parts")
    assert dict(zip(patients["image_id"], patients["detail"], strict=True)) == {"i06": "7: train", "i08": "7: test"}


def test_gaps_masks_and_unreadable_files_are_listed(written, dirty):
    folder, _ = written
    evil = EVIL.replace("/", "")
    assert set(findings_in(folder, "no_age")["image_id"]) == {evil}
    assert set(findings_in(folder, "no_sex")["image_id"]) == {evil}
    assert findings_in(folder, "no_site").empty, "a column without any value is no gap"
    assert set(findings_in(folder, "full_mask")["image_id"]) == {"full", "full2"}
    assert set(findings_in(folder, "empty_mask")["image_id"]) == {"empty"}
    assert set(findings_in(folder, "same_mask")["image_id"]) == {"full", "full2"}
    broken = findings_in(folder, "unreadable")
    assert list(broken["image_id"]) == ["broken"]
    assert str(dirty / "broken.png") in broken["detail"].iloc[0]
    images = pd.read_csv(folder / "csv_images.csv", keep_default_na=False, dtype=str).set_index("image_id")
    assert list(images.loc["broken", ["width", "height"]]) == ["", ""]
    assert list(images.loc["i00", ["width", "height"]]) == ["160", "160"]
    assert {"black1", "black2", "pixel"} <= set(findings_in(folder, "flagged")["image_id"])


def test_page_embeds_images_and_makes_no_requests(written):
    folder, _ = written
    page = read(folder / "csv_audit.html")
    assert asks_for_nothing(page)
    assert any("near-duplicates" in text.casefold() for text in page.texts)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert {"image i02", "image flipped"} <= {attributes["alt"] for attributes in pictures}
    assert all(attributes["src"].startswith("data:image/jpeg") for attributes in pictures)
    assert "<script>" not in (folder / "csv_audit.html").read_text()


def test_tables_of_the_page_have_no_empty_columns(written):
    folder, _ = written
    rows = read(folder / "csv_audit.html").rows()
    heads = [row for row in rows if row[0] == "image"]
    assert heads == [
        ["image", "other image", "description"],  # the same file
        ["image", "other image", "description"],  # the same pixels
        ["image", "other image", "correlation of detail", "description"],
        *[["image", "detail"]] * 2,  # lesions and patients in several subsets
        *[["image", "share of the image in the mask"]] * 2,  # full, empty
        ["image", "share of the image in the mask", "the same mask in"],
        ["image", "reason"],  # flagged
        ["image", "detail"],  # unreadable
    ]


def test_pairs_beyond_the_limit_are_counted_but_not_shown(written, dirty, monkeypatch, tmp_path):
    from skincancer.audit import report

    monkeypatch.setattr(report, "SHOWN_PAIRS", 1)
    result = audit.audit(DataConfig(dataset="csv", root=str(dirty)))
    page = read(report.write_audit_page(result, tmp_path / "page.html"))
    assert any("2 pairs, of which 1 are shown" in text for text in page.texts)


def test_groups_merge_lesions_and_prevent_leaks(written, dirty):
    groups = written[0] / "groups.csv"
    assert pd.read_csv(groups).groupby("group")["image_id"].apply(set).tolist() == [
        {"black1", "black2"}, {"bytes", "i00"}, {"flipped", "i02"}, {"i01", "pixels"},
    ]  # fmt: skip
    config = {"dataset": "csv", "root": str(dirty), "size": 16, "skip_bad": True}
    merged = prepare_data(DataConfig(**config, groups=str(groups)), jobs=1)
    role = merged.index.set_index("image_id")["role"]
    for first, second in (("black1", "black2"), ("bytes", "i00"), ("flipped", "i02"), ("i01", "pixels")):
        assert role[first] == role[second]
    before = prepare_data(DataConfig(**config, split="official", leaks="drop_from_train"), jobs=1)
    assert before.leaking_groups == 2, "one lesion and one patient of the publisher"
    after = prepare_data(DataConfig(**config, split="official", leaks="drop_from_train", groups=str(groups)), jobs=1)
    assert after.leaking_groups == 3
    assert set(after.dropped["image_id"]) == {"i02", "i05", "i06", "broken"}
    with pytest.raises(DataError, match="are in more than one subset"):
        prepare_data(DataConfig(**config, split="official", groups=str(groups)), jobs=1)


def test_verdict_line_counts_copies_across_subsets(written, dirty):
    config = DataConfig(dataset="csv", root=str(dirty), size=16, skip_bad=True)
    index = prepare_data(config, jobs=1).index
    apart = index.assign(role=["val" if name == "flipped" else "train" for name in index["image_id"]])
    line = verdict_line(apart, dirty)
    assert "4 groups of copies, 1 across train, val and test of this split" in line
    assert "--data.groups" in line
    together = index.assign(role="train")
    assert "4 groups of copies, none across" in verdict_line(together, dirty)
    assert "the files have changed since the last audit" in verdict_line(together.iloc[1:], dirty)


@pytest.mark.slow
def test_fit_keeps_groups_of_an_audit_together(written, dirty, store, capsys):
    groups = written[0] / "groups.csv"
    data = ["--data.dataset=csv", f"--data.root={dirty}", "--data.skip_bad=true", f"--data.groups={groups}"]
    assert fit.main(["--experiment=densenet169_undersample", *data, *TINY_FIT]) == 0
    assert "4 groups of copies, none across train, val and test" in " ".join(capsys.readouterr().out.split())
    run = only_run()
    assert len(run.data.tags["groups_hash"]) == 64
    folder = Path(connect(None).download_artifacts(run.info.run_id, ""))
    assert "4 groups of copies, none across train, val and test" in (folder / "audit.txt").read_text()
    assert "4 groups of copies, none across train, val and test" in (folder / "report.html").read_text()
    split = pd.read_csv(connect(None).download_artifacts(run.info.run_id, "split.csv")).set_index("image_id")
    for group, members in pd.read_csv(groups).groupby("group")["image_id"]:
        assert split["lesion_id"][members].nunique() == 1, group
        assert split["role"][members].nunique() == 1, group


def test_audit_searches_another_data_set(written, dirty, tmp_path, capsys):
    other = tmp_path / "other"
    for name in ("nv", "mel"):
        (other / name).mkdir(parents=True)
        for number in range(6):
            picture((50 if name == "nv" else 60) + number).save(other / name / f"{number}.jpg")
    shutil.copy(dirty / "i03.png", other / "mel/copy.png")
    picture(4).crop((4, 4, 156, 156)).resize((90, 90)).save(other / "nv/smaller.jpg", quality=80)
    arguments = ["csv", f"--data.root={dirty}", "--audit", f"--out={tmp_path}", "--against=folder"]
    assert prepare.main([*arguments, f"--against.root={other}"]) == 0
    assert "images that folder contains too" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "csv_audit_against_folder.csv")
    copies = table[table["finding"] == "in_other"].set_index("image_id")
    assert copies["other_id"].to_dict() == {"i03": "mel/copy", "i04": "nv/smaller"}
    assert copies.loc["i03", "value"] == 1
    assert "here nv, there nv" in copies.loc["i04", "detail"]
    page = read(tmp_path / "csv_audit_against_folder.html")
    assert "image nv/smaller" in {attributes.get("alt") for _, attributes in page.tags}


def test_audit_against_the_data_set_itself_fails(dirty, capsys):
    arguments = ["csv", f"--data.root={dirty}", "--audit", "--against=csv", f"--against.root={dirty}"]
    assert prepare.main(arguments) == 2
    assert "the data set itself" in capsys.readouterr().err


def test_audit_of_one_image_fails(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "index.csv").write_text("image,diagnosis\na.png,nv\n")
    with pytest.raises(DataError, match="an audit needs two or more"):
        audit.audit(DataConfig(dataset="csv", root=str(tmp_path)))


def test_audit_without_copies_writes_an_empty_table_of_groups(tmp_path, capsys):
    for number in range(6):
        picture(100 + number).save(tmp_path / f"{number}.png")
    rows = "\n".join(f"{n}.png,{'nv' if n % 2 else 'mel'}" for n in range(6))
    (tmp_path / "index.csv").write_text(f"image,diagnosis\n{rows}\n")
    groups = tmp_path / "out/groups.csv"
    arguments = ["csv", f"--data.root={tmp_path}", "--audit", f"--out={tmp_path / 'out'}", f"--write-groups={groups}"]
    assert prepare.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "not measured" in printed, "too few lesions for cross-validation"
    assert groups.read_text() == "image_id,group\n"
    config = DataConfig(dataset="csv", root=str(tmp_path), size=16, groups=str(groups))
    data = prepare_data(config, jobs=1)
    assert data.index["lesion_id"].nunique() == 6
    assert verdict_line(data.index, tmp_path).endswith("no image is a copy of another")


def test_audit_function_against_the_data_set_itself_fails(dirty):
    config = DataConfig(dataset="csv", root=str(dirty))
    with pytest.raises(ConfigError, match="--against is csv"):
        audit.audit(config, config)
