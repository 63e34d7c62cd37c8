"""Test that runs neither use nor change the MLflow state of the caller: variables, active run, experiment, tracking URI."""

import hashlib
import os
import sqlite3
from pathlib import Path

import mlflow
import pytest
from conftest import TINY_FIT, all_runs, make_store
from mlflow.tracking import MlflowClient
from synthetic_runs import class_predictions, finished_fit

import skincancer as sc
from skincancer import compare, evaluate, fit, sweep
from skincancer.errors import RunError
from skincancer.runs.lifecycle import start_run
from skincancer.runs.store import RunStore, connect
from skincancer.system.paths import sqlite_path

SPACE = "task: classification\nsearch: {model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}\n"


def variables(run_id: str, experiment_id: str) -> dict[str, str]:
    """Return the variables of MLflow, MLflow Projects and Databricks that could redirect a run."""
    return {
        "MLFLOW_RUN_ID": run_id,
        "MLFLOW_RUN_NAME": "another name",
        "MLFLOW_EXPERIMENT_ID": experiment_id,
        "MLFLOW_EXPERIMENT_NAME": "another experiment",
        "MLFLOW_RUN_CONTEXT": f'{{"mlflow.parentRunId": "{run_id}", "kind": "other"}}',
        "MLFLOW_REGISTRY_URI": "sqlite:////nowhere/registry.db",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "MLFLOW_ACTIVE_MODEL_ID": "m-0123",
        "DATABRICKS_HOST": "https://workspace.invalid",
        "DATABRICKS_TOKEN": "token",
        "DATABRICKS_RUNTIME_VERSION": "15.4",
    }


def content(store: str, run_id: str) -> tuple[list[tuple[object, ...]], dict[str, str]]:
    """Return all database rows of a run, and the digests of its artifacts."""
    database = sqlite_path(store)
    assert database is not None
    with sqlite3.connect(database) as connection:
        rows = [
            (table, *row)
            for table in ("runs", "params", "tags", "metrics", "latest_metrics")
            for row in connection.execute(f"SELECT * FROM {table} WHERE run_uuid = ? ORDER BY 1, 2", (run_id,))
        ]
    folder = Path(connect(store).download_artifacts(run_id, ""))
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return rows, files


def test_variables_of_mlflow_redirect_no_run(store, tiny_demo, monkeypatch):
    runs = [finished_fit("resnet50", class_predictions(seed, 60, 1.0), seed=seed) for seed in (0, 1)]
    client = connect(None)
    other = client.create_experiment("another experiment")
    before = content(store, runs[0])
    for name, value in variables(runs[0], other).items():
        monkeypatch.setenv(name, value)
    tiny = [f"--data.root={tiny_demo}", *TINY_FIT, "--trainer.max_epochs=1"]

    assert fit.main(["--experiment=resnet50", *tiny, "--seed=7", "--register=lesions"]) == 0
    (fitted,) = [run for run in all_runs() if run.data.params.get("seed") == "7"]
    assert evaluate.main([f"--run={fitted.info.run_id}", "--part=test"]) == 0
    assert compare.main(["--runs", *runs]) == 0

    assert content(store, runs[0]) == before
    assert sorted(run.data.tags["kind"] for run in all_runs()) == ["compare", "evaluate", "fit", "fit", "fit"]
    assert not client.search_runs([other])
    fitted = client.get_run(fitted.info.run_id)
    assert fitted.info.run_name == "resnet50 80:20 s7"
    assert "mlflow.parentRunId" not in fitted.data.tags
    assert not any("databricks" in name for name in fitted.data.tags)
    assert client.get_model_version_by_alias("lesions", "candidate").run_id == fitted.info.run_id
    (model,) = client.search_logged_models([fitted.info.experiment_id], filter_string="name = 'model'")
    assert (model.source_run_id, model.status) == (fitted.info.run_id, "READY")
    assert model.params["experiment"] == "resnet50"
    assert {metric.key for metric in model.metrics} >= {"test/accuracy", "best/accuracy"}


@pytest.mark.slow
def test_variables_of_mlflow_redirect_no_trial(store, tiny_demo, tmp_path, monkeypatch):
    finished = finished_fit("resnet50", class_predictions(0, 60, 1.0))
    before = content(store, finished)
    for name, value in variables(finished, connect(None).create_experiment("another experiment")).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "tiny.yaml").write_text(SPACE)
    flags = [f"--data.root={tiny_demo}", *TINY_FIT, "--trainer.max_epochs=1", "--trials=1", "--workers=1"]
    assert sweep.main([f"--experiment={tmp_path / 'tiny.yaml'}", *flags]) == 0
    assert content(store, finished) == before
    assert sorted(run.data.tags["kind"] for run in all_runs()) == ["fit", "sweep", "trial"]


def test_the_run_of_the_caller_goes_on(store, tiny_demo, tmp_path, monkeypatch):
    own = make_store(tmp_path / "own")
    flags = {"tracking.uri": store, "data.root": str(tiny_demo), "trainer.max_epochs": 1, "model.weights": "none"}
    flags |= {"model.backbone": "test_efficientnet", "data.size": 32, "trainer.accelerator": "cpu"}
    # Both are restored after the test, because `set_experiment` changes them.
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    mlflow.set_tracking_uri(own)
    experiment = mlflow.set_experiment("the caller's")
    with mlflow.start_run(run_name="the caller's run") as active:
        fitted = sc.fit_experiment(sc.load_experiment("resnet50", flags))
        assert mlflow.active_run().info.run_id == active.info.run_id
        assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == own
        mlflow.log_metric("after", 1.0)
    run = MlflowClient(own).get_run(active.info.run_id)
    assert (run.info.status, run.info.experiment_id) == ("FINISHED", experiment.experiment_id)
    assert run.info.run_name == "the caller's run"
    assert run.data.metrics == {"after": 1.0}
    assert run.outputs is None or not run.outputs.model_outputs
    assert [run.info.run_id for run in MlflowClient(own).search_runs([experiment.experiment_id])] == [run.info.run_id]
    assert fitted.record.info.status == "FINISHED"
    assert "mlflow.parentRunId" not in fitted.tags
    with mlflow.start_run() as later:
        assert later.info.experiment_id == experiment.experiment_id


def test_an_error_in_a_run_leaves_the_run_of_the_caller(store):
    with mlflow.start_run() as active:
        with pytest.raises(RunError), start_run(RunStore(), "demo", "x", {"kind": "fit"}, system_metrics=False) as run:
            raise RunError("no memory")
        assert connect(None).get_run(run.run_id).info.status == "FAILED"
        assert connect(None).get_run(active.info.run_id).info.status == "RUNNING"
    assert connect(None).get_run(active.info.run_id).info.status == "FINISHED"


def test_system_metrics_are_recorded_in_the_run(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with start_run(RunStore(), "demo", "x", {"kind": "fit"}) as run:
        for _ in range(200):
            if any(name.startswith("system/") for name in run.record.data.metrics):
                break
            run._stop.wait(0.05)
    assert any(name.startswith("system/") for name in run.record.data.metrics)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "often")
    with pytest.raises(RunError, match="MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"):
        start_run(RunStore(), "demo", "x", {"kind": "fit"}).__enter__()
