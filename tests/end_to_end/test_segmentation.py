"""A segmentation run: files, threshold, and predicted masks that equal the scored masks."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY_FIT, all_runs, finished_run, only_run
from html_pages import asks_for_nothing
from html_pages import read as read_page
from isic_challenge_scoring.confusion import create_binary_confusion_matrix
from isic_challenge_scoring.metrics import binary_accuracy, binary_dice, binary_jaccard
from mlflow.tracking import MlflowClient
from PIL import Image

from skincancer import evaluate, fit, predict, prepare
from skincancer.data.readers import demo
from skincancer.imaging.decode import read_mask
from skincancer.metrics.names import MASK_METRICS
from skincancer.metrics.segmentation import mask_metrics
from skincancer.runs.store import connect

SEGMENT = [
    "--experiment=unet_resnet34", *TINY_FIT, "--model.backbone=tu-test_resnet", "--model.optimizer.lr=1e-2",
    "--model.tta=flips", "--data.resize=pad", "--data.split=40:60",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_demo, session_cache, tmp_path_factory):
    """A finished run shared by several tests, and its store."""
    folder = tmp_path_factory.mktemp("segmented")
    with finished_run(session_cache, folder, *SEGMENT, f"--data.root={tiny_demo}", "--trainer.max_epochs=4") as found:
        yield found


def test_run_contract(run, artifacts):
    assert run.info.status == "FINISHED"
    assert run.data.params["task"] == "segmentation"
    assert run.data.params["architecture"] == "unet"
    assert run.data.params["loss"] == "1 dice + 1 bce"
    assert run.data.params["monitor"] == "val/jaccard"
    assert {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()} == {
        "config.yaml", "classes.json", "split.csv", "dropped.csv", "environment.txt", "epochs.csv", "intervals.csv",
        "digests.csv", "fingerprints.npz", "checkpoints/best.ckpt", "predictions/val.csv", "predictions/test.csv",
        "figures/learning_curves.png",
        "figures/jaccard_histogram.png", "figures/overlays.png",
        "report.html",
    }  # fmt: skip
    page = read_page(artifacts / "report.html")
    assert asks_for_nothing(page)
    assert {"Results", "Data", "Training", "Masks", "Errors", "Predictions"} <= set(page.of("h2"))
    assert any("SYNTHETIC DATA" in text for text in page.of("p", "band"))
    epochs = pd.read_csv(artifacts / "epochs.csv")
    assert epochs["epoch"].tolist() == [1, 2, 3, 4]
    assert {f"val/{name}" for name in MASK_METRICS} <= set(epochs.columns)
    assert epochs["train/loss"].iloc[-1] < epochs["train/loss"].iloc[0]
    assert run.data.metrics["best_epoch"] == epochs["epoch"][epochs["val/jaccard"].idxmax()]


def test_metrics_and_intervals_are_those_of_the_stored_scores(run, artifacts):
    intervals = pd.read_csv(artifacts / "intervals.csv").set_index("metric")
    for part, prefix in (("val", "best"), ("test", "test")):
        table = pd.read_csv(artifacts / f"predictions/{part}.csv", dtype={"image_id": str})
        assert list(table.columns) == ["image_id", "lesion_id", *MASK_METRICS]
        for name in MASK_METRICS:
            assert run.data.metrics[f"{prefix}/{name}"] == pytest.approx(table[name].mean())
    assert intervals.loc["jaccard", "low"] < run.data.metrics["test/jaccard"] < intervals.loc["jaccard", "high"]


def test_predict_gives_the_masks_that_were_scored(run, artifacts, tiny_demo, tmp_path):
    split = pd.read_csv(artifacts / "split.csv", dtype={"image_id": str})
    tested = split.loc[split["role"] == "test", "image_id"].tolist()
    index = demo.read(tiny_demo).set_index("image_id")
    paths = [tiny_demo / index.loc[image_id, "image"] for image_id in tested]
    assert predict.main(["--run", run.info.run_id, "--out", str(tmp_path / "out"), *map(str, paths)]) == 0
    scores = pd.read_csv(artifacts / "predictions/test.csv", dtype={"image_id": str}).set_index("image_id")
    assert sorted(scores.index) == sorted(tested)
    listed = pd.read_csv(tmp_path / "out/predictions.csv", dtype={"image_id": str}).set_index("image_id")
    shapes = set()
    for image_id, path in zip(tested, paths, strict=True):
        mask = Image.open(tmp_path / f"out/masks/{image_id}_segmentation.png")
        assert mask.mode == "L"
        assert mask.size == Image.open(path).size == tuple(listed.loc[image_id, ["width", "height"]])
        shapes.add(mask.width > mask.height)
        values = np.asarray(mask)
        assert set(np.unique(values)) <= {0, 255}
        truth = np.asarray(read_mask(tiny_demo / index.loc[image_id, "mask"])) > 0
        again = mask_metrics(truth, values > 0)
        assert scores.loc[image_id, list(MASK_METRICS)].to_dict() == pytest.approx(again, rel=1e-7)
        # the challenge's own scorer, on the files as they were written
        matrix = create_binary_confusion_matrix(truth, values > 0)
        assert scores.loc[image_id, "jaccard"] == pytest.approx(binary_jaccard(matrix), abs=1e-6)
        assert scores.loc[image_id, "dice"] == pytest.approx(binary_dice(matrix), abs=1e-6)
        assert scores.loc[image_id, "pixel_accuracy"] == pytest.approx(binary_accuracy(matrix), abs=1e-6)
        assert listed.loc[image_id, "lesion_share"] == pytest.approx((values > 0).mean())
        overlay = Image.open(tmp_path / f"out/overlays/{image_id}_overlay.jpg")
        assert overlay.size == mask.size
    assert shapes == {True, False}, "the demo has wide and tall images"


def test_threshold_was_chosen_on_the_validation_part_and_is_kept(run, artifacts):
    content = torch.load(artifacts / "checkpoints/best.ckpt", weights_only=True)
    threshold = content["hyper_parameters"]["threshold"]
    assert run.data.metrics["threshold"] == pytest.approx(threshold)
    assert 0 < threshold < 1


def test_logged_model_gives_masks(run, tiny_demo):
    (path, *_) = sorted((tiny_demo / "images").iterdir())
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    found = model.predict(pd.DataFrame({"image": [str(path)]}))
    assert list(found.columns) == ["mask"] == model.metadata.get_output_schema().input_names()
    assert Image.open(io.BytesIO(found["mask"][0])).size == Image.open(path).size


def test_isic_format_is_masks_alone_and_a_folder_is_searched(run, tiny_demo, tmp_path):
    folder = tmp_path / "in put"
    folder.mkdir()
    (source, *_) = sorted((tiny_demo / "images").iterdir())
    (folder / "a.jpg").write_bytes(source.read_bytes())
    (folder / "a_segmentation.png").write_bytes(b"left alone")
    assert (
        predict.main(["--run", run.info.run_id, "--out", str(tmp_path / "out"), "--format", "isic", str(folder)]) == 0
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a_segmentation.png"]


def test_a_folder_of_artifacts_is_as_good_as_a_run(artifacts, tiny_demo, tmp_path):
    (image, *_) = sorted((tiny_demo / "images").iterdir())
    assert predict.main(["--run", str(artifacts), "--out", str(tmp_path / "out"), str(image)]) == 0
    assert (tmp_path / f"out/masks/{image.stem}_segmentation.png").is_file()


def test_predict_says_what_it_could_not_read_and_does_the_rest(run, tiny_demo, tmp_path, capsys):
    (image, *_) = sorted((tiny_demo / "images").iterdir())
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    assert predict.main(["--run", run.info.run_id, "--out", str(out), str(tmp_path / "bad.jpg"), str(image)]) == 1
    assert "1 of 2 images could not be read" in (error := capsys.readouterr().err)
    assert "bad.jpg is not an image" in error
    assert [path.stem for path in (out / "masks").iterdir()] == [f"{image.stem}_segmentation"]
    table = pd.read_csv(out / "predictions.csv", keep_default_na=False).set_index("image_id")
    assert "is not an image" in table.loc["bad", "error"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "no image is named"),
        (["/nowhere/a.jpg"], "/nowhere/a.jpg does not exist"),
        (["--format", "png", "."], "--format is 'png'; use one of full, isic"),
        (["--fromat", "isic"], "--fromat is not a known flag"),
        (["--run", "0123", "x.jpg"], "x.jpg does not exist"),
    ],
)
def test_predict_refuses(run, tmp_path, capsys, more, message):
    assert predict.main(["--run", run.info.run_id, "--out", str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err


def test_predict_refuses_two_images_of_one_id_and_unknown_runs(run, tiny_demo, tmp_path, capsys):
    (image, *_) = sorted((tiny_demo / "images").iterdir())
    (tmp_path / image.name).write_bytes(image.read_bytes())
    out = str(tmp_path / "out")
    assert predict.main(["--run", run.info.run_id, "--out", out, str(image), str(tmp_path)]) == 2
    assert "have the same image id" in capsys.readouterr().err
    assert predict.main(["--run", "0123", "--out", out, str(image)]) == 1
    assert "there is no such run" in capsys.readouterr().err
    connect(None).set_terminated(run.info.run_id, "KILLED")
    try:
        assert predict.main(["--run", run.info.run_id, "--out", out, str(image)]) == 1
        assert "is KILLED and not FINISHED" in capsys.readouterr().err
    finally:
        connect(None).set_terminated(run.info.run_id, "FINISHED")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.architecture=unett"], "model.architecture is 'unett'; choose one of"),
        (["--model.backbone=resnet344"], "Did you mean 'resnet34'"),
        (["--model.dropout=0.5"], "model.dropout is 0.5; it is for task classification"),
        (["--data.balance=undersample"], "it is for task classification"),
        (["--model.mask.threshold=1.5"], "model.mask.threshold is 1.5; it must be auto, or above 0 and below 1"),
        (["--model.loss.masks={}"], "model.loss.masks is empty"),
        (['--model.loss.masks={"dise": 1}'], "model.loss.masks: 'dise' is no loss. Did you mean 'dice'?"),
        (['--model.loss.masks={"tversky": 1}', "--model.loss.alpha=0", "--model.loss.beta=0"], "and not both 0"),
        (
            ["--model.architecture=maskrcnn", "--model.backbone=resnet50", '--model.loss.masks={"bce": 1}'],
            "learns by its own losses",
        ),
        (["--model.loss.gamma=3"], "model.loss.gamma is 3.0; it is for focal, and chosen is dice, bce"),
        (["--model.loss.alpha=0.3"], "model.loss.alpha is 0.3; it is for tversky, and chosen is dice, bce"),
        (["--model.architecture=pan", "--data.batch_size=1"], "data.batch_size is 1; pan needs at least 2"),
        (["--model.freeze=2"], "model.freeze is '2'; it must be none or all"),
        (["--training.monitor=val/auroc_macro"], "training.monitor is 'val/auroc_macro'"),
        (["--data.dataset=malignant_vs_benign"], "malignant_vs_benign is for classification, not for segmentation"),
    ],
)
def test_bad_settings_are_reported_before_any_work(capsys, flags, message):
    assert fit.main(["--experiment=unet_resnet34", *flags]) == 2
    assert message in capsys.readouterr().err


def test_masks_settings_are_refused_where_they_would_be_ignored(capsys):
    assert fit.main(["--experiment=resnet50", "--model.mask.fill_holes=true"]) == 2
    assert "model.mask.fill_holes is True; it is for task segmentation" in capsys.readouterr().err


def test_a_classifier_takes_the_encoder_of_a_segmenter_and_back(run, artifacts, tiny_demo, capsys):
    classify = ["--experiment=resnet50", *TINY_FIT, f"--data.root={tiny_demo}", "--trainer.max_epochs=1"]
    source = f"--model.weights=run:{run.info.run_id}"
    assert fit.main([*classify, "--model.backbone=test_resnet", "--model.freeze=all", source]) == 0
    assert re.search(r"(\d+) of \1 tensors of test_resnet loaded from run:", capsys.readouterr().out)
    classifier = all_runs()[-1]
    assert classifier.data.params["weights"] == f"run:{run.info.run_id}"
    folder = Path(connect(None).download_artifacts(classifier.info.run_id, "checkpoints"))
    given = torch.load(artifacts / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    taken = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    convolution = "layer1.0.conv1.weight"  # frozen, so still the segmenter's
    (original,) = [tensor for name, tensor in given.items() if name.endswith(convolution) and "encoder" in name]
    assert torch.equal(taken[f"backbone.{convolution}"], original)

    back = f"--model.weights=run:{classifier.info.run_id}"
    assert fit.main([*SEGMENT, f"--data.root={tiny_demo}", "--trainer.max_epochs=1", back]) == 0
    assert all_runs()[-1].data.params["weights"] == f"run:{classifier.info.run_id}"

    assert fit.main([*classify, "--model.backbone=test_efficientnet", source]) == 2
    assert "does not fit test_efficientnet" in capsys.readouterr().err
    assert fit.main([*classify, "--model.weights=run:0123"]) == 1
    assert "there is no such run" in capsys.readouterr().err


def test_weights_of_a_run_that_did_not_finish_are_refused(tiny_demo, store, capsys):
    client = connect(None)
    run_id = client.create_run(client.create_experiment("demo-segmentation")).info.run_id
    assert (
        fit.main(["--experiment=resnet50", *TINY_FIT, f"--data.root={tiny_demo}", f"--model.weights=run:{run_id}"]) == 1
    )
    assert "is RUNNING and not FINISHED" in capsys.readouterr().err


def test_predict_refuses_a_place_that_cannot_be_written(run, tiny_demo, tmp_path, capsys):
    (image, *_) = sorted((tiny_demo / "images").iterdir())
    (tmp_path / "file").write_text("")
    assert predict.main(["--run", run.info.run_id, "--out", str(tmp_path / "file/out"), str(image)]) == 2
    assert f"--out {tmp_path / 'file/out'} cannot be written: {tmp_path / 'file'} is a file" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/masks").write_text("in the way")
    assert predict.main(["--run", run.info.run_id, "--out", str(tmp_path / "out"), str(image)]) == 1
    assert "stopped after 0 of 1 images" in capsys.readouterr().err


def test_an_evaluation_of_its_own_test_part_gives_its_own_metrics(run, artifacts, capsys):
    assert evaluate.main([f"--run={run.info.run_id}", "--part=test"]) == 0
    found = next(one for one in all_runs() if one.data.tags["kind"] == "evaluate")
    own = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    assert {name: found.data.metrics[name] for name in own} == own
    names = {file.path for file in connect(None).list_artifacts(found.info.run_id)}
    assert {"config.yaml", "predictions", "figures", "split.csv", "intervals.csv"} <= names
    assert not {"operating_points.csv", "calibration.csv", "subgroups.csv"} & names, "it has no classes"
    assert evaluate.main([f"--run={run.info.run_id}", "--map", "a=b", "c=d"]) == 2
    assert "--map is for classes" in capsys.readouterr().err
    assert evaluate.main(["--run", run.info.run_id, str(artifacts)]) == 1
    assert "--run names 2 runs of the tasks segmentation; expected classifiers." in capsys.readouterr().err


@pytest.fixture(scope="module")
def challenge(tiny_demo, tmp_path_factory) -> Path:
    """Synthetic images in the layout of ISIC 2018 Task 1: masks without diagnoses."""
    root = tmp_path_factory.mktemp("challenge")
    images, masks = root / "ISIC2018_Task1-2_Training_Input", root / "ISIC2018_Task1_Training_GroundTruth"
    images.mkdir()
    masks.mkdir()
    for row in demo.read(tiny_demo).head(20).itertuples():
        shutil.copy(tiny_demo / row.image, images / f"{row.image_id}.jpg")
        shutil.copy(tiny_demo / row.mask, masks / f"{row.image_id}_segmentation.png")
    return root


def test_data_without_diagnoses_are_prepared_and_segmented(challenge, store, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    where = [f"--data.root={challenge}", "--data.size=32"]
    assert prepare.main(["isic2018_task1", *where, "--show", "augment", "--out", str(sheet)]) == 0
    shown = capsys.readouterr().out
    assert "with masks" in shown
    assert "(no diagnosis)" in shown
    assert sheet.is_file()
    short = ["--trainer.max_epochs=1", f"--data.root={challenge}"]
    assert fit.main([*SEGMENT, "--data.dataset=isic2018_task1", *short]) == 0
    run = only_run()
    assert run.info.status == "FINISHED"
    assert run.data.params["test_images"] == "12"  # 60 % of 20


def test_images_without_a_mask_are_left_out_and_recorded(tiny_demo, store, tmp_path):
    root = tmp_path / "some"
    shutil.copytree(tiny_demo, root)
    index = demo.read(root)
    gone = index["image_id"].iloc[0]
    (root / index["mask"].iloc[0]).unlink()
    table = pd.DataFrame({name: index[name] for name in ("image_id", "image", "mask", "diagnosis", "lesion_id")})
    table.loc[0, "mask"] = None
    table.to_csv(root / "index.csv", index=False)
    short = ["--trainer.max_epochs=1", f"--data.root={root / 'index.csv'}"]
    assert fit.main([*SEGMENT, "--data.dataset=csv", *short]) == 0
    client = connect(None)
    folder = Path(client.download_artifacts(only_run().info.run_id, ""))
    dropped = pd.read_csv(folder / "dropped.csv", dtype=str)
    assert dropped.to_dict("records") == [{"image_id": gone, "reason": "no mask"}]


def test_data_without_any_mask_are_refused(tiny_demo, store, tmp_path, capsys):
    shutil.copytree(tiny_demo / "images", tmp_path / "images")
    demo.read(tiny_demo)[["image_id", "image", "diagnosis"]].to_csv(tmp_path / "index.csv", index=False)
    assert fit.main([*SEGMENT, "--data.dataset=csv", f"--data.root={tmp_path / 'index.csv'}"]) == 2
    assert "has no masks, which segmentation needs" in capsys.readouterr().err


@pytest.mark.parametrize("value", [pytest.param(0, id="empty"), pytest.param(255, id="full", marks=pytest.mark.slow)])
def test_empty_and_full_masks_everywhere(tiny_demo, store, tmp_path, value):
    root = tmp_path / "some"
    shutil.copytree(tiny_demo, root)
    for path in (root / "masks").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), value)).save(path)
    assert fit.main([*SEGMENT, f"--data.root={root}"]) == 0
    run = only_run()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/jaccard"] == pytest.approx(1.0, abs=0.2)  # found out in a few steps


@pytest.mark.slow
def test_two_processes_score_every_image_once(tiny_demo, places):
    flags = [*SEGMENT, f"--data.root={tiny_demo}", "--trainer.devices=2"]
    done = subprocess.run([sys.executable, "-m", "skincancer.fit", *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    run = only_run()
    folder = Path(client.download_artifacts(run.info.run_id, ""))
    split = pd.read_csv(folder / "split.csv", dtype=str)
    scores = pd.read_csv(folder / "predictions/test.csv", dtype={"image_id": str})
    assert scores["image_id"].tolist() == split.loc[split["role"] == "test", "image_id"].tolist()
    assert json.loads((folder / "classes.json").read_text())["classes"]
    # one process, with the weights of the two, scores the same
    out = folder / "again"
    index = demo.read(tiny_demo).set_index("image_id")
    paths = [str(tiny_demo / index.loc[image_id, "image"]) for image_id in scores["image_id"]]
    assert predict.main(["--run", str(folder), "--out", str(out), *paths]) == 0
    for row in scores.itertuples():
        truth = np.asarray(read_mask(tiny_demo / index.loc[row.image_id, "mask"])) > 0
        mask = np.asarray(Image.open(out / f"masks/{row.image_id}_segmentation.png")) > 0
        assert row.jaccard == pytest.approx(mask_metrics(truth, mask)["jaccard"], abs=1e-3)
