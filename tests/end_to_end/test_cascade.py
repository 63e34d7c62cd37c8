"""A classifier on images cropped by true masks, by Otsu's threshold, and by a segmentation run."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY_FIT, all_runs, finished_run, only_run
from PIL import Image

from skincancer import evaluate, fit, predict, prepare
from skincancer.data import prepare as prepare_module
from skincancer.data.overlap import count_overlap
from skincancer.data.prepare import prepare_data
from skincancer.data.readers import demo
from skincancer.errors import DataError
from skincancer.imaging.crop import crop_box
from skincancer.imaging.decode import read_mask
from skincancer.inference.model import mask_source
from skincancer.runs.store import connect
from skincancer.schema.data import DataConfig

SEGMENT = [
    "--experiment=unet_resnet34", *TINY_FIT, "--model.backbone=tu-test_resnet", "--model.optimizer.lr=1e-2",
    "--data.resize=pad", "--data.split=40:60", "--model.mask.largest_component=true", "--trainer.max_epochs=4",
]  # fmt: skip
CLASSIFY = ["--experiment=densenet169_undersample", *TINY_FIT, "--data.crop=true", "--trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def finished(tiny_demo, session_cache, tmp_path_factory):
    """A finished segmenter and its store."""
    folder = tmp_path_factory.mktemp("segmented")
    with finished_run(session_cache, folder, *SEGMENT, f"--data.root={tiny_demo}") as found:
        yield found


@pytest.fixture
def segmenter(run) -> str:
    """Run id of a finished segmenter in the current store."""
    return run.info.run_id


def newest():
    return all_runs()[-1]


def artifact(run, name: str) -> Path:
    return Path(connect(None).download_artifacts(run.info.run_id, name))


def data(root, **changed):
    config = DataConfig(root=str(root), size=32, crop=True, **changed)
    return prepare_data(config, mask_source(config, None), jobs=1)


def test_true_masks_crop_the_store(tiny_demo):
    found = data(tiny_demo, masks="truth", crop_margin=0.1)
    row = int(np.flatnonzero(found.index["role"] == "train")[3])
    mask = np.asarray(read_mask(tiny_demo / found.index["mask"][row])) > 0
    box = crop_box(mask, 0.1)
    assert tuple(found.store.table.loc[row, ["left", "top", "right", "bottom"]]) == box
    with Image.open(tiny_demo / found.index["image"][row]) as image:
        assert (found.index["width"][row], found.index["height"][row]) == image.size
        cut = np.asarray(image.convert("RGB").crop(box).resize((32, 32), Image.Resampling.BILINEAR))
    assert (found.store.images[row] == cut).all()
    assert set(found.store.table["masks"]) == {"truth"}


def test_stores_of_other_masks_and_margins_are_others(tiny_demo):
    plain = prepare_data(DataConfig(root=str(tiny_demo), size=32), jobs=1)
    folders = {
        plain.store.folder, data(tiny_demo).store.folder, data(tiny_demo, masks="otsu").store.folder,
        data(tiny_demo, crop_margin=0.3).store.folder,
    }  # fmt: skip
    assert len(folders) == 4
    assert data(tiny_demo).store.folder == data(tiny_demo, masks="truth").store.folder, "every image has a mask"
    same = data(tiny_demo)
    assert (plain.index_hash, plain.split_hash) == (same.index_hash, same.split_hash)


def test_changed_mask_makes_another_store(tiny_demo, tmp_path):
    root = tmp_path / "demo"
    shutil.copytree(tiny_demo, root)
    before = data(root, masks="truth")
    path = root / before.index["mask"][0]
    image = np.asarray(Image.open(path))
    Image.fromarray(np.roll(image, 5, axis=1)).save(path)
    assert data(root, masks="truth").store.folder != before.store.folder


def test_images_without_mask_are_cropped_by_otsu_or_refused(tiny_demo, tmp_path):
    root = tmp_path / "demo"
    shutil.copytree(tiny_demo, root)
    table = demo.read(root)
    table.loc[[0, 5], "mask"] = ""
    table.to_csv(root / "some.csv", index=False)
    some = {"dataset": "csv"}
    counts = data(root / "some.csv", **some).store.table["masks"].value_counts()
    assert counts.to_dict() == {"truth": len(table) - 2, "otsu": 2}
    with pytest.raises(DataError, match=f"masks is truth, but 2 of {len(table)} images of csv have no mask"):
        data(root / "some.csv", **some, masks="truth")


def test_segmenter_crops_as_predict_segments(segmenter, tiny_demo, tmp_path, capsys):
    assert (
        fit.main(
            [
                *CLASSIFY,
                f"--data.root={tiny_demo}",
                f"--data.masks=run:{segmenter}",
                "--data.split=40:60",
                "--data.crop_margin=0",
            ]
        )
        == 0
    )
    run = newest()
    crops = pd.read_csv(artifact(run, "crops.csv"), dtype={"image_id": str}).set_index("image_id")
    index = demo.read(tiny_demo).set_index("image_id")
    chosen = index.index[:16].tolist()  # two full batches: in another company an image rounds otherwise
    out = tmp_path / "out"
    paths = [str(tiny_demo / index.loc[name, "image"]) for name in chosen]
    assert predict.main(["--run", segmenter, "--out", str(out), "--format", "isic", *paths]) == 0
    boxes = []
    for name in chosen:
        mask = np.asarray(Image.open(out / f"{name}_segmentation.png")) > 0
        expected = crop_box(mask, 0.0) or (0, 0, mask.shape[1], mask.shape[0])
        boxes.append(tuple(crops.loc[name, ["left", "top", "right", "bottom"]]))
        assert boxes[-1] == expected
        assert crops.loc[name, "masks"].startswith("run:" if mask.any() else "empty")
    assert len(set(boxes)) > 3, "more than the whole frames, wide and tall"

    params = run.data.params
    assert (params["crop"], params["masks"], params["crop_margin"]) == ("True", f"run:{segmenter}", "0.0")
    assert params["segmenter_saw_test_images"] == "0", "the same split: no test image was seen"
    printed = " ".join(capsys.readouterr().out.split())
    assert "the segmenter has seen" not in printed
    assert f"images cropped to the lesion: {len(index)} by run:{segmenter}; margin 0%" in printed


@pytest.mark.slow
def test_run_keeps_a_segmenter_that_predicts(segmenter, tiny_demo, tmp_path, monkeypatch):
    assert fit.main([*CLASSIFY, f"--data.root={tiny_demo}", f"--data.masks=run:{segmenter}", "--data.split=40:60"]) == 0
    kept = artifact(newest(), "segmenter")
    shutil.copytree(kept, tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    assert fit.main([*CLASSIFY, f"--data.root={tiny_demo}", "--data.masks=run:folder", "--data.split=40:60"]) == 0
    assert newest().data.params["masks"] == f"run:{tmp_path}/folder", "the same from any working directory"
    of_folder = artifact(newest(), "segmenter/checkpoints/best.ckpt")
    assert of_folder.read_bytes() == (kept / "checkpoints/best.ckpt").read_bytes()
    image = str(tiny_demo / demo.read(tiny_demo)["image"].iloc[0])
    for run, out in ((segmenter, tmp_path / "a"), (str(kept), tmp_path / "b")):
        assert predict.main(["--run", run, "--out", str(out), "--format", "isic", image]) == 0
    (name,) = [path.name for path in (tmp_path / "a").iterdir()]
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
def test_an_evaluation_crops_by_the_runs_own_copy_of_the_segmenter(segmenter, tiny_demo, tmp_path):
    assert fit.main([*CLASSIFY, f"--data.root={tiny_demo}", f"--data.masks=run:{segmenter}", "--data.split=40:60"]) == 0
    run = newest()
    assert evaluate.main(["--run", run.info.run_id, "--part=test"]) == 0
    own = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    found = newest()
    assert found.data.tags["kind"] == "evaluate"
    assert {name: found.data.metrics[name] for name in own} == own
    assert found.data.params["masks"] == f"run:{segmenter}"


@pytest.mark.slow
def test_segmenter_that_saw_test_images_is_reported(segmenter, tiny_demo, capsys):
    assert (
        fit.main(
            [
                *CLASSIFY,
                f"--data.root={tiny_demo}",
                f"--data.masks=run:{segmenter}",
                "--data.split_seed=7",
                "--data.split=40:60",
            ]
        )
        == 0
    )
    run = newest()
    seen = int(run.data.params["segmenter_saw_test_images"])
    ours = pd.read_csv(artifact(run, "split.csv"), dtype=str)
    theirs = pd.read_csv(Path(connect(None).download_artifacts(segmenter, "split.csv")), dtype=str)
    used = set(theirs.loc[theirs["role"].isin(["train", "val"]), "lesion_id"])
    assert seen == sum(lesion in used for lesion in ours.loc[ours["role"] == "test", "lesion_id"]) > 0
    printed = capsys.readouterr().out
    assert "the segmenter was trained on test images" in printed
    assert f"{seen} test images show lesions" in " ".join(printed.split())


def test_across_data_sets_only_isic_ids_are_the_same_image():
    index = pd.DataFrame(
        {
            "image_id": ["ISIC_1", "ISIC_2", "7", "8"],
            "lesion_id": ["a", "b", "c", "d"],
            "role": ["test", "train", "test", "test"],
        }
    )
    split = pd.DataFrame(
        {"image_id": ["ISIC_1", "ISIC_2", "7"], "lesion_id": ["a", "b", "d"], "role": ["train", "val", "train"]}
    )
    assert count_overlap(index, split, same_dataset=False) == 1
    assert count_overlap(index, split, same_dataset=True) == 3, "within a data set by image and by lesion"


def test_folder_without_its_split_is_refused_before_any_work(segmenter, tiny_demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare_module, "open_store", lambda *_, **__: pytest.fail("long work began"))
    for name in ("config.yaml", "checkpoints/best.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(Path(connect(None).download_artifacts(segmenter, name)), tmp_path / name)
    error = refused(capsys, f"--data.root={tiny_demo}", f"--data.masks=run:{tmp_path}")
    assert "the folder has no split.csv; use a run id, or a folder of all artifacts" in error


def test_mask_source_of_crops_is_reported(tiny_demo, tmp_path, capsys):
    root = tmp_path / "demo"
    shutil.copytree(tiny_demo, root)
    table = demo.read(root)
    table.loc[[0, 5], "mask"] = ""
    table.to_csv(root / "some.csv", index=False)
    flags = [f"--data.root={root / 'some.csv'}", "--data.size=32", "--data.crop=true"]
    assert prepare.main(["csv", *flags]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{len(table) - 2} by true masks, 2 by masks by Otsu's threshold; margin 20%" in printed


def refused(capsys, *arguments) -> str:
    assert fit.main([*CLASSIFY, *arguments]) != 0
    return " ".join(capsys.readouterr().err.split())


def test_unknown_run_is_refused(store, tiny_demo, capsys, monkeypatch):
    monkeypatch.setattr(prepare_module, "open_store", lambda *_, **__: pytest.fail("long work began"))
    error = refused(capsys, f"--data.root={tiny_demo}", "--data.masks=run:0123")
    assert "run 0123: there is no such run" in error


def test_unfinished_run_is_refused(store, tiny_demo, capsys):
    client = connect(None)
    run = client.create_run(client.create_experiment("some"))
    error = refused(capsys, f"--data.root={tiny_demo}", f"--data.masks=run:{run.info.run_id}")
    assert f"run {run.info.run_id} is RUNNING and not FINISHED" in error


@pytest.mark.slow
def test_crops_by_a_classifier_are_refused(store, tiny_demo, capsys):
    plain = [flag for flag in CLASSIFY if "crop" not in flag]
    assert fit.main([*plain, f"--data.root={tiny_demo}"]) == 0
    classifier = only_run().info.run_id
    error = refused(capsys, f"--data.root={tiny_demo}", f"--data.masks=run:{classifier}")
    assert f"data.masks run:{classifier}: the task of run {classifier} is classification" in error
    assert "use a run of task segmentation or joint" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.masks=mine"], "data.masks is 'mine'; it must be auto, truth, otsu, or run:RUN_ID"),
        (["--data.masks=run:"], "data.masks is 'run:'; it must be auto, truth, otsu, or run:RUN_ID"),
        (["--data.crop_margin=-0.1"], "data.crop_margin is -0.1; it must be from 0 to 5"),
        (["--data.crop=false", "--data.masks=otsu"], "data.masks is 'otsu'; it is for data.crop true"),
        (["--data.crop=false", "--data.crop_margin=0.4"], "data.crop_margin is 0.4; it is for data.crop true"),
    ],
)
def test_wrong_values_are_refused(flags, message, capsys):
    assert message in refused(capsys, *flags)


def test_segmentation_takes_no_crop(capsys):
    assert fit.main([*SEGMENT, "--data.crop=true"]) != 0
    assert "data.crop is True; it is for task classification" in capsys.readouterr().err
