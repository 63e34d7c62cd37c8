"""A complete fit: files of the run, reproducibility, resuming, and all ways to end."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY_FIT, all_runs, finished_run, only_run
from html_pages import asks_for_nothing
from html_pages import read as read_page
from PIL import Image
from sklearn import metrics as sklearn_metrics

from skincancer import fit
from skincancer.data.readers import demo
from skincancer.models import factory
from skincancer.models.factory import load_task
from skincancer.reports import error_analysis
from skincancer.runs.artifacts import BEST_CHECKPOINT, LAST_CHECKPOINT
from skincancer.runs.lifecycle import reap
from skincancer.runs.store import connect
from skincancer.training import recorder, trainer
from skincancer.training.callbacks import EpochRecord
from skincancer.visualization.classification import FIGURES


def arguments(root: Path, *more: str) -> list[str]:
    return ["--experiment=densenet169_undersample", f"--data.root={root}", *TINY_FIT, *more]


def run_fit(root: Path, *more: str) -> mlflow.entities.Run:
    """Fit in this process and return the run."""
    assert fit.main(arguments(root, *more)) == 0
    return only_run()


def artifact(run: mlflow.entities.Run, name: str) -> Path:
    return Path(connect(None).download_artifacts(run.info.run_id, name))


@pytest.fixture(scope="module")
def finished(tiny_demo, session_cache, tmp_path_factory):
    """A finished run shared by several tests, and its store."""
    with finished_run(session_cache, tmp_path_factory.mktemp("finished"), *arguments(tiny_demo)) as found:
        yield found


def test_run_is_named_tagged_and_finished(run):
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "densenet169_undersample 80:20 s0"
    tags = run.data.tags
    assert tags["kind"] == "fit"
    assert tags["synthetic"] == "true"
    assert tags["status_reason"] == ""
    for name in ("git_commit", "git_dirty", "groups_hash"):
        assert name in tags
    for name in ("split_hash", "index_hash", "host", "pid", "pid_namespace", "process_start", "boot_id", "heartbeat"):
        assert tags[name]
    assert not Path(tags["work_folder"]).exists(), "the working folder of a finished run is removed"


def test_params_name_what_runs_are_grouped_by(run):
    params = run.data.params
    expected = {
        "experiment": "densenet169_undersample", "task": "classification", "dataset": "demo", "target": "diagnosis",
        "split": "80:20", "split_seed": "0", "seed": "0", "backbone": "test_efficientnet", "balance": "undersample",
        "weights": "random", "size": "32", "resize": "stretch", "batch_size": "8", "max_epochs": "2", "precision": "32",
        "lr": "0.001", "monitor": "val/balanced_accuracy",
    }  # fmt: skip
    assert {name: params[name] for name in expected} == expected


def test_metrics_are_those_of_the_stored_predictions(run):
    classes = json.loads(artifact(run, "classes.json").read_text())["classes"]
    for part, prefix in (("test", "test"), ("val", "best")):
        table = pd.read_csv(artifact(run, f"predictions/{part}.csv"))
        probability = table[[f"p_{name}" for name in classes]].to_numpy()
        logits = table[[f"logit_{name}" for name in classes]].to_numpy()
        assert np.allclose(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), probability, atol=1e-7)
        found = run.data.metrics
        accuracy = sklearn_metrics.accuracy_score(table["label"], table["prediction"])
        balanced = sklearn_metrics.balanced_accuracy_score(table["label"], table["prediction"])
        auroc = sklearn_metrics.roc_auc_score(table["label"], probability / probability.sum(1, keepdims=True),
                                              multi_class="ovr", labels=sorted(classes))  # fmt: skip
        assert found[f"{prefix}/accuracy"] == pytest.approx(accuracy, abs=1e-9)
        assert found[f"{prefix}/balanced_accuracy"] == pytest.approx(balanced, abs=1e-9)
        assert found[f"{prefix}/auroc_macro"] == pytest.approx(auroc, abs=1e-7)


def test_best_epoch_is_the_one_monitored(run):
    epochs = pd.read_csv(artifact(run, "epochs.csv"))
    assert list(epochs["epoch"]) == [1, 2]
    assert run.data.metrics["best/balanced_accuracy"] == pytest.approx(epochs["val/balanced_accuracy"].max())
    assert run.data.metrics["best_epoch"] == epochs["val/balanced_accuracy"].argmax() + 1
    history = connect(None).get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == [1, 2]
    for name in ("epoch_seconds", "images_per_second", "optimizer_steps", "images_seen", "lr"):
        assert name in run.data.metrics


def test_undersampled_epochs_count_what_was_seen(run):
    split = pd.read_csv(artifact(run, "split.csv"))
    train = split[split["role"] == "train"]
    per_epoch = train["diagnosis"].value_counts().min() * 7
    epochs = pd.read_csv(artifact(run, "epochs.csv"))
    assert list(epochs["images_seen"]) == [per_epoch, 2 * per_epoch]
    assert list(epochs["optimizer_steps"]) == [-(-per_epoch // 8), 2 * -(-per_epoch // 8)]


def test_artifacts_inputs_and_split(run):
    for name in (
        "config.yaml", "classes.json", "split.csv", "dropped.csv", "epochs.csv", "intervals.csv", "environment.txt",
        "predictions/val.csv", "predictions/test.csv", "checkpoints/best.ckpt", "figures/learning_curves.png",
        "figures/confusion_matrix.png", "figures/roc.png", "figures/precision_recall.png", "figures/reliability.png",
        "errors.csv", "attention.csv", "figures/errors.png", "report.html",
    ):  # fmt: skip
        assert artifact(run, name).stat().st_size > 0, name
    split = pd.read_csv(artifact(run, "split.csv"))
    assert list(split) == ["image_id", "lesion_id", "diagnosis", "label", "role", "age", "sex", "site", "dx_type"]
    assert (split.groupby("lesion_id")["role"].nunique() == 1).all()
    test = pd.read_csv(artifact(run, "predictions/test.csv"))
    assert set(test["image_id"]) == set(split.loc[split["role"] == "test", "image_id"])
    contexts = {
        tag.value for item in run.inputs.dataset_inputs for tag in item.tags if tag.key == "mlflow.data.context"
    }
    assert contexts == {"training", "validation", "test"}
    digests = {item.dataset.digest for item in run.inputs.dataset_inputs}
    assert len(digests) == 3


def test_report_and_errors(run):
    page = read_page(artifact(run, "report.html"))
    assert asks_for_nothing(page)
    assert ["run", run.info.run_id] in page.rows()
    assert ["device", run.data.tags["device"]] in page.rows()
    shown = " ".join(page.of("p", "band"))
    assert "SYNTHETIC DATA" in shown
    assert "RANDOM FIRST WEIGHTS" in shown
    accuracy = run.data.metrics["test/accuracy"]
    assert f"{accuracy:.3f}" in next(row for row in page.rows() if row[0] == "accuracy")
    assert sum(tag == "img" and a["alt"].startswith("thumbnail of") for tag, a in page.tags) >= 16
    test = pd.read_csv(artifact(run, "predictions/test.csv"))
    assert len(pd.read_csv(artifact(run, "errors.csv"))) == (test["label"] != test["prediction"]).sum()


def test_config_artifact_repeats_the_run_bit_for_bit(run, tmp_path, new_store):
    config = shutil.copy(artifact(run, "config.yaml"), tmp_path / "again.yaml")
    before = torch.load(artifact(run, "checkpoints/best.ckpt"), weights_only=True)["state_dict"]
    new_store("again")
    assert fit.main(["--experiment", str(config)]) == 0
    again = only_run()
    assert artifact(again, "config.yaml").read_text() == Path(config).read_text()
    after = torch.load(artifact(again, "checkpoints/best.ckpt"), weights_only=True)["state_dict"]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_logged_model_gives_the_stored_predictions(run, tiny_demo):
    stored = pd.read_csv(artifact(run, "predictions/test.csv"), dtype={"image_id": str}).set_index("image_id").head(5)
    index = demo.read(tiny_demo).set_index("image_id").loc[stored.index]
    assert len(run.outputs.model_outputs) == 1
    mlflow.set_tracking_uri(connect(None).tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/{run.outputs.model_outputs[0].model_id}")
    given = model.predict(pd.DataFrame({"image": [str(tiny_demo / path) for path in index["image"]]}))
    assert given["prediction"].tolist() == stored["prediction"].tolist()
    names = [name for name in given.columns if name.startswith("p_")]
    assert np.allclose(given[names].astype(float), stored[names], atol=1e-5)


def test_figures_and_pages_that_cannot_be_written_fail_no_run(tiny_demo, store, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise Image.DecompressionBombError("too many pixels")

    monkeypatch.setitem(FIGURES, "roc", fail)
    for module, name in (
        (recorder, "learning_curves"),
        (recorder, "write_report"),
        (error_analysis, "attention_sheet"),
    ):
        monkeypatch.setattr(module, name, fail)
    fitted = run_fit(tiny_demo, "--trainer.max_epochs=1")
    assert fitted.info.status == "FINISHED"
    printed = capsys.readouterr().out
    for what in ("the figure roc", "the figure learning_curves", "the figure errors", "report.html"):
        assert f"!!! {what} could not be written\n!!! DecompressionBombError: too many pixels" in printed
    assert {path.name for path in artifact(fitted, "figures").iterdir()} == {
        "confusion_matrix.png", "precision_recall.png", "reliability.png",
    }  # fmt: skip
    names = {file.path for file in connect(None).list_artifacts(fitted.info.run_id)}
    assert {"errors.csv", "intervals.csv", "predictions", "checkpoints", "epochs.csv"} <= names
    assert "report.html" not in names
    assert len(fitted.outputs.model_outputs) == 1


def test_checkpoint_is_slim_and_safe(run):
    content = torch.load(artifact(run, "checkpoints/best.ckpt"), weights_only=True)
    assert "optimizer_states" not in content
    assert content["hyper_parameters"]["classes"][0] == "akiec"


RESUMED = [
    "--trainer.max_epochs=3",
    "--model.dropout=0.5",
    "--augment.policy=strong",
    "--model.schedule.name=one_cycle",
]


def keep_last(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Copy the last checkpoint, which a finished run does not keep."""
    export = trainer.export_best

    def export_and_keep(path: Path) -> int:
        shutil.copy(path.parent / "last.ckpt", place)
        return export(path)

    monkeypatch.setattr(trainer, "export_best", export_and_keep)


def signal_at_epoch(monkeypatch: pytest.MonkeyPatch, number: int, epoch: int) -> None:
    """Send this process a signal in the middle of an epoch (from 0), once."""
    original = EpochRecord.on_train_batch_end

    def hook(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.current_epoch == epoch and self._images >= 16:
            monkeypatch.setattr(EpochRecord, "on_train_batch_end", original)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(EpochRecord, "on_train_batch_end", hook)


@pytest.mark.parametrize("ema", [pytest.param("0.0", marks=pytest.mark.slow), "0.9"])
def test_resumed_run_equals_the_uninterrupted_one(tiny_demo, tmp_path, monkeypatch, new_store, ema):
    first_store = new_store("first")
    more = [*RESUMED, f"--training.ema_decay={ema}"]
    keep_last(monkeypatch, tmp_path / "whole.ckpt")
    whole = run_fit(tiny_demo, *more)

    second_store = new_store("second")
    monkeypatch.setattr(trainer, "export_best", trainer.export_best)
    keep_last(monkeypatch, tmp_path / "resumed.ckpt")
    signal_at_epoch(monkeypatch, signal.SIGTERM, epoch=2)
    assert fit.main(arguments(tiny_demo, *more)) == 143
    killed = only_run()
    assert killed.info.status == "KILLED"
    assert killed.data.tags["status_reason"] == "interrupted by SIGTERM"
    assert fit.main(["--resume", killed.info.run_id]) == 0
    resumed = only_run()
    assert resumed.info.run_id == killed.info.run_id
    assert resumed.info.status == "FINISHED"

    one, two = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("whole", "resumed"))
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])
    assert one["global_step"] == two["global_step"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", first_store)
    first = artifact(whole, "predictions/test.csv").read_text()
    epochs = pd.read_csv(artifact(whole, "epochs.csv"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", second_store)
    assert artifact(resumed, "predictions/test.csv").read_text() == first
    same = ["epoch", "train/loss", "val/loss", "val/auroc_macro", "optimizer_steps", "images_seen"]
    pd.testing.assert_frame_equal(pd.read_csv(artifact(resumed, "epochs.csv"))[same], epochs[same], check_exact=True)


def test_sigint_before_the_first_epoch_ends_resumes_from_the_start(tiny_demo, store, monkeypatch, capsys):
    signal_at_epoch(monkeypatch, signal.SIGINT, epoch=0)
    assert fit.main(arguments(tiny_demo)) == 130
    run = only_run()
    assert run.info.status == "KILLED"
    assert "Traceback" not in capsys.readouterr().err
    assert fit.main(["--resume", run.info.run_id, "--seed=5"]) == 1
    assert "seed: the run has 0, requested is 5" in capsys.readouterr().err
    assert fit.main(["--resume", run.info.run_id]) == 0
    assert only_run().info.status == "FINISHED"


def test_killed_between_fit_and_test_and_resumed(tiny_demo, store, monkeypatch):
    import pytorch_lightning as pl

    test = pl.Trainer.test

    def interrupted(self, *args, **kwargs):
        monkeypatch.setattr(pl.Trainer, "test", test)
        os.kill(os.getpid(), signal.SIGTERM)
        return test(self, *args, **kwargs)

    monkeypatch.setattr(pl.Trainer, "test", interrupted)
    assert fit.main(arguments(tiny_demo)) == 143
    run = only_run()
    assert run.info.status == "KILLED"
    assert fit.main(["--resume", run.info.run_id]) == 0
    run = only_run()
    assert run.info.status == "FINISHED"
    assert len(pd.read_csv(artifact(run, "epochs.csv"))) == 2


def test_error_in_the_middle_ends_failed_with_the_reason(tiny_demo, store, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise OSError("disk on fire")

    monkeypatch.setattr(trainer, "export_best", broken)
    assert fit.main(arguments(tiny_demo)) == 1
    assert "error: disk on fire" in capsys.readouterr().err
    run = only_run()
    assert run.info.status == "FAILED"
    assert run.data.tags["status_reason"] == "OSError: disk on fire"


def test_resume_refuses_what_is_done_or_unknown(run, capsys):
    assert fit.main(["--resume", run.info.run_id]) == 1
    assert "FINISHED" in capsys.readouterr().err
    assert fit.main(["--resume", "0" * 32]) == 1
    assert "no such run" in capsys.readouterr().err


def test_resume_refuses_changed_data(tiny_demo, store, tmp_path, monkeypatch, capsys):
    root = tmp_path / "copy"
    shutil.copytree(tiny_demo, root)
    table = "\n".join(
        f"images/{path.name},{path.stem},{path.stem},{label}"
        for path, label in zip(sorted((root / "images").iterdir()), ["nevus", "melanoma"] * 30, strict=False)
    )
    (root / "index.csv").write_text("image,image_id,lesion_id,diagnosis\n" + table + "\n")
    (root / "metadata.csv").unlink()
    signal_at_epoch(monkeypatch, signal.SIGTERM, epoch=1)
    assert fit.main(arguments(root, "--data.dataset=csv")) == 143
    run = only_run()
    (root / "index.csv").write_text("image,image_id,lesion_id,diagnosis\n" + table.rsplit("\n", 4)[0] + "\n")
    assert fit.main(["--resume", run.info.run_id]) == 1
    assert "index_hash of the run is" in capsys.readouterr().err
    assert only_run().info.status == "KILLED"


def test_run_stopped_before_its_first_epoch_ended_starts_again_from_its_first_weights(
    tiny_demo, store, tmp_path, monkeypatch
):
    import timm

    torch.manual_seed(1)
    state = timm.create_model("test_efficientnet", num_classes=0).state_dict()
    weights = tmp_path / "first.pt"
    torch.save(state, weights)
    # With a learning rate near 0 the final weights equal the first weights.
    more = [f"--model.weights={weights}", "--model.optimizer.lr=1e-12", "--trainer.max_epochs=1"]
    signal_at_epoch(monkeypatch, signal.SIGTERM, epoch=0)
    assert fit.main(arguments(tiny_demo, *more)) == 143
    run_id = only_run().info.run_id
    assert fit.main(["--resume", run_id]) == 0
    assert only_run().data.params["weights"] == "file:first.pt"
    after = torch.load(artifact(only_run(), "checkpoints/best.ckpt"), weights_only=True)["state_dict"]
    assert torch.allclose(after["backbone.conv_stem.weight"], state["conv_stem.weight"], atol=1e-6)


def test_run_whose_first_weights_are_not_available_is_not_started_again(tiny_demo, store, monkeypatch, capsys):
    signal_at_epoch(monkeypatch, signal.SIGTERM, epoch=0)
    assert fit.main(arguments(tiny_demo)) == 143
    run_id = only_run().info.run_id
    has = factory.load_backbone
    monkeypatch.setattr(factory, "load_backbone", lambda *a: dataclasses.replace(has(*a), source="imagenet (x)"))
    assert fit.main(["--resume", run_id]) == 1
    assert "its first weights were 'random' and now they are 'imagenet (x)'" in capsys.readouterr().err


@pytest.mark.slow
def test_sigkill_leaves_a_run_that_is_reaped_and_resumed(tiny_demo, tmp_path):
    command = [sys.executable, "-m", "skincancer.fit", *arguments(tiny_demo, "--trainer.max_epochs=200")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline:
        runs = all_runs()
        if runs and runs[0].data.metrics.get("images_seen", 0) > 0:
            break
        time.sleep(0.5)
    assert fit.main(["--resume", only_run().info.run_id]) == 1, "a run with a live owner is refused"
    process.kill()
    process.wait()
    run = only_run()
    assert run.info.status == "RUNNING"
    assert reap(connect(None)) == [run.info.run_id]
    run = only_run()
    assert run.info.status == "KILLED"
    assert "process exited" in run.data.tags["status_reason"]
    assert (Path(run.data.tags["work_folder"]) / LAST_CHECKPOINT).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_from_outside_end_the_process_with_the_right_code(tiny_demo, number, code):
    command = [sys.executable, "-m", "skincancer.fit", *arguments(tiny_demo, "--trainer.max_epochs=200")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time() + 120
    while time.time() < deadline and not (all_runs() and all_runs()[0].data.metrics.get("images_seen", 0) > 0):
        time.sleep(0.5)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in output
    assert only_run().info.status == "KILLED"


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [[], ["--experiment=unet_resnet34", "--model.backbone=tu-test_resnet"]],
    ids=["classification", "segmentation"],
)
def test_compiled_network_trains_and_its_checkpoint_is_a_plain_one(more, tiny_demo, store, monkeypatch):
    # The eager backend is enough to test that compiled code runs and gives the same record. Inductor takes minutes.
    compiled = []
    original = torch.nn.Module.compile

    def with_eager_backend(module, *args, **kwargs):
        compiled.append(type(module).__name__)
        original(module, *args, backend="eager", **kwargs)

    monkeypatch.setattr(torch.nn.Module, "compile", with_eager_backend)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert fit.main([*arguments(tiny_demo, "--trainer.max_epochs=1", "--model.compile=true"), *more]) == 0
    assert len(compiled) == 1
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    run = only_run()
    assert run.info.status == "FINISHED"
    names = torch.load(artifact(run, BEST_CHECKPOINT), weights_only=True)["state_dict"]
    assert not any("_orig_mod" in name for name in names)
    load_task(artifact(run, BEST_CHECKPOINT))
