"""Files and MLflow records of finished runs."""

import gc
import json
import re

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import CLASSES, class_predictions, finished_fit, mask_predictions

from skincancer.errors import RunError
from skincancer.runs.finished import FinishedRun, weights_file
from skincancer.runs.lifecycle import start_run
from skincancer.runs.store import RunStore

EXPERIMENT = "densenet169_undersample"


def test_a_run_id_gives_the_record_and_the_tables(store):
    predictions = class_predictions(1, 60, 1.0)
    run = FinishedRun(run_id := finished_fit(EXPERIMENT, predictions, tags={"index_hash": "x"}))
    assert run.id == run_id
    assert (run.params["task"], run.tags["index_hash"], run.metrics["images_seen"]) == ("classification", "x", 1600)
    assert (run.task, run.classes, run.is_network, run.dataset.name) == ("classification", CLASSES, True, "demo")
    table = run.predictions("test")
    assert table["image_id"].tolist() == predictions["image_id"].tolist()
    assert table["label"].tolist() == predictions["label"].tolist()
    assert run.epochs["epoch"].tolist() == [1, 2]
    assert run.has("epochs.csv")
    assert run.has("predictions/test.csv")
    assert not run.has("predictions/val.csv")
    assert not run.has("crops.csv")
    assert run.table("crops.csv") is None
    assert run.mask_sources == frozenset()
    with pytest.raises(RunError, match=f"run {run_id} in .* has no artifact 'report.html'"):
        _ = run.report_path


def test_files_are_downloaded_on_demand_and_deleted_later(store):
    run = FinishedRun(finished_fit(EXPERIMENT, class_predictions(1, 60, 1.0)))
    folder = run.folder
    assert list(folder.iterdir()) == []
    assert run.settings["model.backbone"] == "densenet169"
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    del run
    gc.collect()
    assert not folder.exists()


def test_a_folder_needs_no_store(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    mask_predictions(1, 20, 0.8).to_csv(tmp_path / "test.csv", index=False)
    (tmp_path / "predictions").mkdir()
    (tmp_path / "test.csv").rename(tmp_path / "predictions/test.csv")
    (tmp_path / "config.yaml").write_text("task: segmentation\n")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b"], "malignant": ["b"]}))
    pd.DataFrame({"image_id": ["1", "2"], "lesion_id": ["1", "2"], "role": ["test", ""]}).to_csv(
        tmp_path / "split.csv", index=False
    )
    run = FinishedRun(tmp_path)
    assert run.classes == (), "a segmenter has none"
    assert run.malignant == ("b",)
    assert run.split["image_id"].tolist() == ["1"]
    assert run.validation is None
    assert np.isfinite(run.predictions("test")["jaccard"]).all()
    assert run.folder == tmp_path
    with pytest.raises(RunError, match=r"the folder has no intervals\.csv; use a run id, or a folder of all artifacts"):
        _ = run.intervals
    with pytest.raises(RunError, match="is not a run in MLflow; use a run id"):
        _ = run.metrics
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(RunError, match=r"its files cannot be read: JSONDecodeError"):
        _ = FinishedRun(tmp_path).malignant
    assert not (tmp_path / "mlruns").exists(), "the store has not been opened"


def test_a_registered_model_gives_its_files_and_those_of_its_run(store):
    run_id = finished_fit(EXPERIMENT, class_predictions(1, 60, 1.0))
    client = RunStore().client
    client.create_registered_model("lesions")
    version = client.create_model_version("lesions", f"runs:/{run_id}", run_id).version
    client.set_registered_model_alias("lesions", "candidate", version)
    run = FinishedRun("lesions@candidate")
    assert run.id == run_id
    assert run.metrics["images_seen"] == 1600
    assert run.classes == CLASSES
    assert run.has("epochs.csv")
    assert not run.has("crops.csv")


def test_runs_without_results_are_refused(store):
    client = RunStore().client
    with pytest.raises(RunError, match="there is no such run"):
        FinishedRun("0" * 32)
    with pytest.raises(RunError, match="is RUNNING and not FINISHED"), start_run(RunStore(), "demo", "x", {}) as run:
        FinishedRun(run.run_id)
    run_id = finished_fit(EXPERIMENT, class_predictions(1, 60, 1.0))
    client.delete_run(run_id)
    with pytest.raises(RunError, match=re.escape(f"mlflow runs restore --run-id {run_id}")):
        FinishedRun(run_id)


def test_weights_of_a_run_are_a_local_file_while_the_block_runs(store):
    with start_run(RunStore(), "demo", "x", {"kind": "fit"}, system_metrics=False) as run:
        run.write_text("checkpoints/best.ckpt", "weights")
    with weights_file(f"run:{run.run_id}", RunStore()) as path:
        assert path.read_text() == "weights"
    assert not path.exists()
    for weights in ("auto", "none", "best.ckpt"):
        with weights_file(weights, RunStore()) as path:
            assert path is None


def test_a_writer_writes_into_its_own_store(store, tmp_path):
    first, second = RunStore().open(), RunStore(f"sqlite:///{tmp_path}/other/mlflow.db").open()
    assert second.client.tracking_uri != first.uri
    with start_run(first, "demo", "x", {"kind": "fit"}, system_metrics=False) as run:
        run.write_classes(["a", "b"], ["b"])
        run.write_table("table.csv", pd.DataFrame({"a": [1.5]}))
        run.log_results({"good": 0.5, "undefined": float("nan")})
        run.figure_path("roc").write_bytes(b"png")
        run.log_folder("figures")
    finished = FinishedRun(run.run_id, first)
    assert finished.metrics == {"good": 0.5}
    assert "git_commit" in finished.tags
    assert finished.has("figures/roc.png")
    assert finished.table("table.csv")["a"].tolist() == [1.5]
    assert finished.malignant == ("b",)
