"""Images in which no hand-made feature can be measured: broken masks stop a fit, or are left out; empty ones are told and kept."""

import numpy as np
import pandas as pd
import pytest
from conftest import all_runs, only_run, write
from PIL import Image

from skincancer import fit, prepare
from skincancer.data.mask_sources import TruthOrOtsu
from skincancer.data.prepare import prepare_data
from skincancer.errors import DataError
from skincancer.runs.store import connect
from skincancer.schema import DataConfig

EMPTY = ("i03", "i04", "i11")


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Forty images of two classes with masks: of two images these cannot be used, and of three they are empty."""
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "broken"
    root.mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        name, dark = f"i{number:02}", number % 2
        pixels = rng.integers(180, 220, (24, 32, 3), dtype=np.uint8)
        pixels[8:16, 8:24] = rng.integers(60 + 40 * dark, 100 + 40 * dark, (8, 16, 3))
        Image.fromarray(pixels).save(root / f"{name}.png")
        mask = np.zeros((24, 32), dtype=np.uint8)
        mask[7:17, 7:25] = 255 * (name not in EMPTY)
        Image.fromarray(mask).save(root / f"{name}_mask.png")
        rows.append(f"{name}.png,{name}_mask.png,{'ab'[dark]}")
    (root / "i00_mask.png").write_bytes(b"no mask")
    Image.new("L", (20, 20), 255).save(root / "i01_mask.png")
    write(root / "index.csv", "image,mask,diagnosis", *rows)
    return root


REASONS = {"i00": "i00_mask.png, which is not an image", "i01": "is 32×24 px but its mask"}


def test_masks_that_cannot_be_used_stop_with_one_list(broken):
    config = DataConfig(dataset="csv", root=str(broken), size=16)
    assert prepare_data(config, jobs=1).dropped.empty, "whoever reads no mask is not kept by one"
    (broken / "i02.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3 of 40 images of csv cannot be used") as told:
        prepare_data(config, TruthOrOtsu(), jobs=1, hand_crafted=True)
    lines = str(told.value).splitlines()
    assert len(lines) == 5
    for image_id, reason in {**REASONS, "i02": "i02.png is not an image"}.items():
        (line,) = (line for line in lines if f"{image_id}.png" in line)
        assert reason in line
    assert "--data.skip_bad true" in lines[-1]


def test_a_fit_leaves_broken_masks_out_and_keeps_empty_ones(broken, store, capsys):
    argv = ["--experiment=knn_features", "--data.dataset=csv", f"--data.root={broken}", "--data.size=16"]
    argv += ["--tracking.system_metrics=false", "--model.classical.neighbours=3", "--data.skip_bad=true"]
    assert fit.main(argv) == 0
    run, printed = only_run(), " ".join(capsys.readouterr().out.split())
    assert (run.data.params["dropped_images"], run.data.params["masks_empty"]) == ("2", "3")
    client = connect(None)
    dropped = pd.read_csv(client.download_artifacts(run.info.run_id, "dropped.csv")).set_index("image_id")["reason"]
    assert {name: REASONS[name] in dropped[name] for name in dropped.index} == dict.fromkeys(REASONS, True)
    split = pd.read_csv(client.download_artifacts(run.info.run_id, "split.csv"), keep_default_na=False)
    role = split.set_index("image_id")["role"]
    assert (role[list(REASONS)] == "").all()
    assert (role[list(EMPTY)] != "").all()
    counts = role[list(EMPTY)].value_counts()
    assert f"3 images ({', '.join(f'{count} {name}' for name, count in counts.items())}) have a mask without" in printed
    assert "35 by true masks, 3 by empty masks" in printed


def test_prepare_names_what_could_not_be_measured(broken, capsys):
    assert prepare.main(["csv", f"--data.root={broken}", "--data.size=16", "--features"]) == 0
    printed = capsys.readouterr().out
    assert "40, of which 2 cannot be used" in printed
    for reason in REASONS.values():
        assert reason in printed


@pytest.fixture
def single(broken):
    """A data set of one image."""
    write(broken / "index.csv", "image,mask,diagnosis", "i05.png,i05_mask.png,a")
    return ["csv", f"--data.root={broken}", "--data.size=16"]


@pytest.mark.parametrize(
    "flags",
    [["--features"], ["--show=clean", "--data.clean=[hair]"], []],
    ids=["features", "show", "store"],
)
def test_prepare_of_one_image_says_that_it_has_no_three_parts(single, flags, capsys, tmp_path):
    flags = [*flags, f"--out={tmp_path}/sheet.png"] if "--show=clean" in flags else flags
    assert prepare.main([*single, *flags]) == 0, "pictures and features can be had all the same"
    told = " ".join(capsys.readouterr().out.split())
    assert "the class 'a' has only 1 lesion, too few for training, validation and test" in told
    assert "No experiment can be fitted on these images as they are" in told
    assert (tmp_path / "sheet.png").is_file() == ("--show=clean" in flags)


def test_fit_on_one_image_is_refused(single, store, capsys):
    assert fit.main(["--experiment=svm_features", f"--data.dataset={single[0]}", *single[1:]]) == 2
    assert "the class 'a' has only 1 lesion, too few for training, validation and test" in capsys.readouterr().err
    assert not all_runs()


def test_one_image_is_measured_where_no_parts_are_needed(single, broken):
    """As for an evaluation of every image."""
    found = prepare_data(
        DataConfig(dataset="csv", root=str(broken), size=16), TruthOrOtsu(), jobs=1, hand_crafted=True, whole=True
    )
    assert found.features.table["masks"].tolist() == ["truth"]
    assert found.features.columns(["abcd", "lbp"]).notna().all(axis=None)
