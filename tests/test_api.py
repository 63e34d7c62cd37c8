"""Test every name of the Python interface on the demo."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import all_runs, make_store
from PIL import Image
from sklearn.metrics import balanced_accuracy_score

import skincancer as sc
from skincancer.imaging.decode import read_image

TINY = {
    "model.backbone": "test_efficientnet", "model.weights": "none", "data.size": 32, "data.batch_size": 8, "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu", "tracking.system_metrics": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A store that all tests of this module share."""
    return make_store(tmp_path_factory.mktemp("api") / "mlruns")


@pytest.fixture(scope="module", autouse=True)
def place(uri, session_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINCANCER_CACHE", str(session_cache))
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield


@pytest.fixture(autouse=True)
def store_of_this_module(uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)


@pytest.fixture(scope="module")
def experiment(place, tiny_demo):
    return sc.load_experiment("efficientnet_lite0", {**TINY, "data.root": str(tiny_demo)})


@pytest.fixture(scope="module")
def run(experiment):
    return sc.fit_experiment(experiment)


@pytest.fixture(scope="module")
def other(place, tiny_demo):
    return sc.fit_experiment(
        sc.load_experiment("resnet50", {**TINY, "data.root": str(tiny_demo), "trainer.max_epochs": 1})
    )


def test_import_loads_nothing_heavy_and_lists_every_name():
    code = (
        "import sys, skincancer as sc; names = dir(sc)\n"
        "heavy = [name for name in ('torch', 'pandas', 'mlflow', 'numpy') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert names == sorted(sc.__all__) and all(getattr(sc, name) is not None for name in names)\n"
        "import os; print(os.environ['MLFLOW_DISABLE_TELEMETRY'])\n"
        "try: sc.fit_experimen\n"
        "except AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["true", "module 'skincancer' has no attribute 'fit_experimen'"]


def test_an_unknown_key_has_the_nearest_key_in_its_error():
    with pytest.raises(sc.ConfigError, match=r"data\.sise is not a known key\. Did you mean 'data\.size'"):
        sc.load_experiment("resnet50", {"data.sise": 32})


def test_lists_are_tables():
    assert {"resnet50", "unet_resnet34"} <= set(sc.list_experiments()["name"])
    datasets = sc.list_datasets().set_index("name")
    assert datasets.loc["ham10000", "licence"]
    assert "nv" in datasets.loc["ham10000", "classes"].split()


def test_prepared_dataset_has_index_split_and_datamodule(experiment):
    data = sc.prepare_dataset(experiment)
    assert data.images.shape == (len(data.index), 32, 32, 3)
    assert set(data.split_table["role"]) == {"train", "val", "test"}
    batch = next(iter(data.datamodule().val_dataloader()))
    assert batch["image"].shape[1:] in ((3, 32, 32), (32, 32, 3))
    assert set(batch["label"].tolist()) <= set(range(len(data.classes)))


def test_fit_returns_a_run_with_metrics_tables_and_report(run):
    test = run.predictions("test")
    expected = balanced_accuracy_score(test["label"], test["prediction"])
    assert run.metrics["test/balanced_accuracy"] == pytest.approx(expected)
    intervals = run.intervals.set_index("metric")
    assert intervals.loc["balanced_accuracy", "low"] <= expected <= intervals.loc["balanced_accuracy", "high"]
    assert run.epochs["epoch"].tolist() == [1, 2]
    assert run.report_path.is_file()
    assert sc.load_run(run.id).metrics == run.metrics


def test_model_predicts_paths_and_arrays_alike(run, tiny_demo, tmp_path):
    model = sc.load_model(run.id)
    test = run.predictions("test").set_index("image_id")
    files = sorted(path for path in tiny_demo.rglob("*.jpg") if path.stem in test.index)[:3]
    columns = [f"p_{name}" for name in model.classes]
    by_path = model.predict([str(file) for file in files])
    assert by_path["image"].tolist() == [str(file) for file in files]
    np.testing.assert_allclose(by_path[columns], test.loc[[file.stem for file in files], columns], atol=1e-6)
    arrays = [np.asarray(read_image(file)) for file in files]
    by_array = model.predict(arrays)
    assert by_array["image"].tolist() == [0, 1, 2]
    pd.testing.assert_frame_equal(by_array.drop(columns="image"), by_path.drop(columns="image"))
    assert len(model.predict(arrays[0])) == 1
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    broken = model.predict([tmp_path / "broken.jpg", files[0]])
    assert "is not an image" in broken.loc[0, "error"]
    assert broken.loc[1, "prediction"] == by_path.loc[0, "prediction"]


def test_wrong_images_are_errors(run, tmp_path):
    model = sc.load_model(run.id)
    with pytest.raises(sc.ConfigError, match=r"image 0 is float64 \(2, 2, 3\); expected uint8"):
        model.predict([np.zeros((2, 2, 3))])
    with pytest.raises(sc.ConfigError, match="the model is a classifier"):
        model.predict([np.zeros((2, 2, 3), np.uint8)], masks=True)
    with pytest.raises(sc.DataError):
        model.predict(tmp_path / "nowhere.jpg")


def test_segmenter_predicts_masks_of_the_original_size(place, tiny_demo):
    values = {**TINY, "model.backbone": "tu-test_resnet", "trainer.max_epochs": 1, "data.root": str(tiny_demo)}
    run = sc.fit_experiment(sc.load_experiment("unet_efficientnet_lite0", values))
    image = np.asarray(Image.new("RGB", (70, 50), (200, 150, 140)))
    table = sc.load_model(run.id).predict(image, masks=True)
    mask = table.loc[0, "mask"]
    assert mask.shape == (50, 70)
    assert mask.dtype == bool
    assert table.loc[0, "lesion_share"] == mask.mean()


def test_evaluation_is_a_run_of_its_own(run, tiny_demo):
    evaluation = sc.evaluate_run(run.id, {"data.dataset": "demo", "data.root": str(tiny_demo)}, part="test")
    assert evaluation.id != run.id
    assert evaluation.metrics["test/accuracy"] == pytest.approx(run.metrics["test/accuracy"])


def test_comparison_has_tables_and_figures(run, other, capsys):
    result = sc.compare_runs([run.id, other.id], metric="auroc_macro")
    printed = capsys.readouterr().out
    assert "SYNTHETIC" in printed
    assert "┃" not in printed, "the tables are returned, not printed"
    assert result.warnings
    assert len(repr(result)) < 200
    assert set(result.table["experiment"]) == {"efficientnet_lite0", "resnet50"}
    assert len(result.pairs) == 1
    assert {"intervals", "roc"} <= set(result.figures())
    assert result.run_id in {found.info.run_id for found in all_runs()}


def test_runs_are_found_by_their_params(run, other):
    found = sc.find_runs(dataset="demo", experiment="resnet50")
    assert found["run_id"].tolist() == [other.id]
    assert found["test/accuracy"].notna().all()
    assert sc.find_runs(experiment="vit_small").empty
    with pytest.raises(sc.ConfigError, match=r"experimen is not a param .* Did you mean 'experiment'"):
        sc.find_runs(experimen="resnet50")


@pytest.mark.slow
def test_sweep_returns_trials_and_the_best_experiment(place, tiny_demo):
    values = {
        **TINY,
        "data.root": str(tiny_demo),
        "search": {"model.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    }
    study = sc.sweep_experiment(sc.load_experiment("efficientnet_lite0", values), trials=2, study="api")
    complete = study.trials[study.trials["state"] == "COMPLETE"]
    assert len(study.trials) == 2
    best = complete.loc[complete["best/auroc_macro"].idxmax()]
    assert study.best_experiment.model.optimizer.lr == pytest.approx(best["model.optimizer.lr"])
    assert study.run.id in set(sc.find_runs(kind="sweep")["run_id"])


def test_inputs_of_a_wrong_kind_are_errors(run, tmp_path):
    with pytest.raises(sc.RunError, match=r"the folder has no config\.yaml"):
        sc.load_run(tmp_path)
    with pytest.raises(sc.ConfigError, match=r"runs is '.*'; expected a list of run ids"):
        sc.compare_runs(run.id)
    with pytest.raises(sc.ConfigError, match=r"kind is 'fits'; expected one of .* Did you mean 'fit'"):
        sc.find_runs(kind="fits")
    with pytest.raises(sc.ConfigError, match=r"experiment is 'resnet50'; expected an Experiment"):
        sc.fit_experiment("resnet50")
    with pytest.raises(sc.ConfigError, match=r"data\.datset is not a known key\. Did you mean 'data\.dataset'"):
        sc.evaluate_run(run.id, {"data.datset": "demo"})
    with pytest.raises(sc.ConfigError, match=r"plugins is 'parts'; expected a list"):
        sc.load_experiment("resnet50", {"plugins": "parts"})


def test_batches_and_empty_lists_are_predicted(run, experiment):
    model, images = sc.load_model(run.id), sc.prepare_dataset(experiment).images[:3]
    assert model.predict(images)["image"].tolist() == [0, 1, 2]
    empty = model.predict([])
    assert empty.empty
    assert {"prediction", "error", *(f"p_{name}" for name in model.classes)} <= set(empty.columns)
