"""Images without measurable features: broken masks stop a fit or are left out, empty masks are reported."""

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
from skincancer.schema.data import DataConfig

EMPTY = ("i03", "i04", "i11")


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Create forty images of two classes with masks, of which two are unusable and three empty."""
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


def test_unusable_masks_are_listed_in_one_error(broken):
    config = DataConfig(dataset="csv", root=str(broken), size=16)
    assert prepare_data(config, jobs=1).dropped.empty, "a run without masks ignores broken masks"
    (broken / "i02.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3 of 40 images of csv cannot be used") as caught:
        prepare_data(config, TruthOrOtsu(), jobs=1, hand_crafted=True)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for image_id, reason in {**REASONS, "i02": "i02.png is not an image"}.items():
        (line,) = (line for line in lines if f"{image_id}.png" in line)
        assert reason in line
    assert "--data.skip_bad true" in lines[-1]


def test_fit_drops_broken_masks_and_keeps_empty_masks(broken, store, capsys):
    argv = ["--experiment=knn_features", "--data.dataset=csv", f"--data.root={broken}", "--data.size=16"]
    argv += [
        "--tracking.system_metrics=false",
        "--model.classical.neighbours=3",
        "--data.skip_bad=true",
        "--data.positive=b",
    ]
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


def test_prepare_lists_unusable_masks(broken, capsys):
    assert prepare.main(["csv", f"--data.root={broken}", "--data.size=16", "--features"]) == 0
    printed = capsys.readouterr().out
    assert "40, of which 2 cannot be used" in printed
    for reason in REASONS.values():
        assert reason in printed


@pytest.fixture
def single(broken):
    """Create a data set of one image."""
    write(broken / "index.csv", "image,mask,diagnosis", "i05.png,i05_mask.png,a")
    return ["csv", f"--data.root={broken}", "--data.size=16"]


@pytest.mark.parametrize(
    "flags",
    [["--features"], ["--show=clean", "--data.clean=[hair]"], []],
    ids=["features", "show", "store"],
)
def test_prepare_of_one_image_warns_about_missing_subsets(single, flags, capsys, tmp_path):
    flags = [*flags, f"--out={tmp_path}/sheet.png"] if "--show=clean" in flags else flags
    assert prepare.main([*single, *flags]) == 0, "sheets and features need no split"
    printed = " ".join(capsys.readouterr().out.split())
    assert "the class 'a' has only 1 lesion, too few for training, validation and test" in printed
    assert "No experiment can be fitted on these images as they are" in printed
    assert (tmp_path / "sheet.png").is_file() == ("--show=clean" in flags)


def test_fit_on_one_image_fails(single, store, capsys):
    assert fit.main(["--experiment=svm_features", f"--data.dataset={single[0]}", *single[1:]]) == 2
    assert "the class 'a' has only 1 lesion, too few for training, validation and test" in capsys.readouterr().err
    assert not all_runs()


def test_features_of_one_image_are_measured_without_a_split(single, broken):
    config = DataConfig(dataset="csv", root=str(broken), size=16)
    prepared = prepare_data(config, TruthOrOtsu(), jobs=1, hand_crafted=True, whole=True)
    assert prepared.features.table["masks"].tolist() == ["truth"]
    assert prepared.features.columns(["abcd", "lbp"]).notna().all(axis=None)
