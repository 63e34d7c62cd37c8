"""Test the saved view of the MLflow UI."""

import json

from skincancer import ui
from skincancer.runs.store import RunStore, connect


def test_every_experiment_has_a_view_with_main_columns(store):
    client = connect(None)
    for name in ("demo-classification", "demo-segmentation", "mine-joint"):
        RunStore(None).experiment_id(name)
    client.create_experiment("somebody else's")
    found = ui.save_views(client)
    assert set(found) == {"demo-classification", "demo-segmentation", "mine-joint"}
    tags = client.get_experiment(found["demo-classification"]).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    saved = json.loads(tags["mlflow.sharedViewState.skincancer"])
    # what MLflow's page asks of a saved view
    assert isinstance(saved["name"], str)
    assert isinstance(saved["createdAt"], int)
    columns = json.loads(saved["state"])["selectedColumns"]
    for column in ("params.`split`", "params.`balance`", "params.`backbone`", "metrics.`test/balanced_accuracy`"):
        assert column in columns
    assert "metrics.`test/jaccard`" in client.get_experiment(found["demo-segmentation"]).tags[
        "mlflow.sharedViewState.skincancer"
    ].replace("\\", "")


def test_a_changed_view_is_kept(store):
    client = connect(None)
    number = RunStore(None).experiment_id("demo-classification")
    client.set_experiment_tag(number, "mlflow.sharedViewState.skincancer", "mine")
    ui.save_views(client)
    assert client.get_experiment(number).tags["mlflow.sharedViewState.skincancer"] == "mine"
