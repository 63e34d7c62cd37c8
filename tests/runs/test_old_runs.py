"""Test that runs and logged models made before the modules were moved still load, predict, serve and resume.

tests/fixtures/runs_before_move holds their files and the expected answers; its README.md says how they were made.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from PIL import Image

from skincancer import compare, evaluate, fit, predict
from skincancer.metrics.names import MACRO_NAMES

FIXTURE = Path(__file__).parents[1] / "fixtures/runs_before_move"
IMAGES = sorted((FIXTURE / "images").glob("*.jpg"))
RUNS = sorted(path.name for path in (FIXTURE / "runs").iterdir())
MODELS = sorted(path.name for path in (FIXTURE / "models").iterdir())
EVALUATED = sorted(path.parent.name for path in FIXTURE.glob("expected/*/evaluation.json"))
OTSU = ("svm",)  # trained with true masks, which new images do not have

TOLERANCE = 1e-5
PIXELS = 5  # that may differ in a mask

# Loads every logged model as an MLflow server does, in a process that has imported nothing of the project.
SERVE = """
import base64, json, sys, traceback
import mlflow, pandas as pd
folder, names, otsu, images = json.load(sys.stdin)
answers = {}
for name in names:
    try:
        model = mlflow.pyfunc.load_model(f"{folder}/{name}")
        table = model.predict(pd.DataFrame({"image": images}), params={"masks": "otsu"} if name in otsu else None)
        if "mask" in table:
            table["mask"] = [base64.b64encode(png).decode() for png in table["mask"]]
        answers[name] = table.to_dict("list")
    except Exception:
        answers[name] = traceback.format_exc()
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """The fixture with its demo data set unpacked and all copies of files in their places."""
    place = tmp_path_factory.mktemp("old") / "fixture"
    shutil.copytree(FIXTURE, place)
    for copy, original in json.loads((FIXTURE / "copies.json").read_text()).items():
        (place / copy).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(FIXTURE / original, place / copy)
    with zipfile.ZipFile(FIXTURE / "demo.zip") as archive:
        archive.extractall(place / "demo")
    return place


@pytest.fixture(scope="module")
def served(old) -> dict:
    """The answers of all logged models in a new process: columns of a table, or the text of an error."""
    asked = json.dumps([str(old / "models"), MODELS, OTSU, [str(path) for path in IMAGES]])
    done = subprocess.run(
        [sys.executable, "-c", SERVE], input=asked, capture_output=True, text=True, cwd=old, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("ANSWERS")[2])


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of predictions."""
    return pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False).set_index("image_id").sort_index()


def read_mask(file) -> np.ndarray:
    """Read a mask, bool (H, W)."""
    return np.asarray(Image.open(file)) > 0


def check_table(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Compare two tables: texts exactly, numbers with a tolerance."""
    assert list(table.index) == list(expected.index)
    assert list(table.columns) == list(expected.columns)
    for name in expected.columns:
        if expected[name].dtype.kind == "f":
            np.testing.assert_allclose(table[name].astype(float), expected[name], atol=TOLERANCE, rtol=0, err_msg=name)
        else:
            assert table[name].tolist() == expected[name].tolist(), name


def check_masks(masks: dict[str, np.ndarray], expected: Path) -> None:
    """Compare masks with the files of a folder; a few pixels may differ."""
    paths = sorted(expected.glob("*.png"))
    assert [f"{name}_segmentation.png" for name in sorted(masks)] == [path.name for path in paths]
    for path in paths:
        mask, truth = masks[path.name.removesuffix("_segmentation.png")], read_mask(path)
        assert mask.shape == truth.shape
        assert np.count_nonzero(mask != truth) <= PIXELS, path.name


def check_predict(run: str, name: str, out: Path) -> None:
    """Run `predict` on the three images and compare with the expected answers of a run."""
    flags = ["--masks", "otsu"] if name in OTSU else []
    assert predict.main(["--run", run, "--out", str(out), *flags, *map(str, IMAGES)]) == 0
    expected = FIXTURE / "expected" / name
    check_table(read_table(out / "predictions.csv").drop(columns="file"), read_table(expected / "predictions.csv"))
    masks = {path.stem.removesuffix("_segmentation"): read_mask(path) for path in (out / "masks").glob("*.png")}
    check_masks(masks, expected / "masks")


def import_run(folder: Path, client: MlflowClient, status: str = "FINISHED", **tags: str) -> str:
    """Write a run of the fixture into the current store; return its id."""
    content = json.loads((folder / "run.json").read_text())
    group = client.get_experiment_by_name(content["experiment"])
    number = group.experiment_id if group else client.create_experiment(content["experiment"])
    run = client.create_run(number, tags=content["tags"] | tags, run_name=content["name"])
    for key, value in content["params"].items():
        client.log_param(run.info.run_id, key, value)
    for key, value in content["metrics"].items():
        client.log_metric(run.info.run_id, key, value)
    client.log_artifacts(run.info.run_id, str(folder))
    client.set_terminated(run.info.run_id, status)
    return run.info.run_id


@pytest.fixture
def client(store, tmp_path, monkeypatch) -> MlflowClient:
    """A client of an empty SQLite store, which keeps artifacts of new experiments in the test's folder."""
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(store)
    return MlflowClient(store)


@pytest.mark.parametrize("name", RUNS)
def test_folder_of_a_run_predicts_as_before(old, tmp_path, name):
    check_predict(str(old / "runs" / name), name, tmp_path / "out")


@pytest.mark.parametrize("name", MODELS)
def test_logged_model_serves_as_before(served, name):
    answer = served[name]
    assert isinstance(answer, dict), answer
    table = pd.DataFrame(answer, index=pd.Index([path.stem for path in IMAGES], name="image_id"))
    expected = read_table(FIXTURE / "expected" / name / "served.csv")
    if "mask" in table:
        pngs = {image: read_mask(io.BytesIO(base64.b64decode(text))) for image, text in table.pop("mask").items()}
        check_masks(pngs, FIXTURE / "expected" / name / "masks")
    check_table(table, expected)


@pytest.mark.parametrize("name", MODELS)
def test_logged_model_has_its_old_imports(old, name):
    # A script that rewrites imports in tests/ must leave this code alone, or the tests here would prove nothing.
    text = (old / "models" / name / "serving.py").read_text()
    assert text.count("from skincancer.models.answering import load_answerer") == 2
    assert "from skincancer.images.decode import ImageFile" in text


@pytest.mark.parametrize("name", ["network", "segmenter", "svm"])
def test_registered_model_is_found_by_its_alias(old, client, tmp_path, name):
    client.create_registered_model("lesions")
    version = client.create_model_version("lesions", str(old / "models" / name))
    client.set_registered_model_alias("lesions", "candidate", version.version)
    model = mlflow.pyfunc.load_model("models:/lesions@candidate")
    params = {"masks": "otsu"} if name in OTSU else None
    table = model.predict(pd.DataFrame({"image": [str(path) for path in IMAGES]}), params=params)
    assert len(table) == len(IMAGES)
    check_predict("lesions@candidate", name, tmp_path / "out")


@pytest.mark.parametrize("name", EVALUATED)
def test_folder_of_a_run_is_evaluated_as_before(old, client, name):
    argv = ["--run", str(old / "runs" / name), "--part=test", f"--data.root={old / 'demo'}"]
    assert evaluate.main(argv) == 0
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    expected = json.loads((FIXTURE / "expected" / name / "evaluation.json").read_text())
    # These means over seven classes had the names of metrics of two classes.
    of_classes = "test/accuracy" in expected
    renamed = {f"test/{metric}": f"test/{macro}" for metric, macro in MACRO_NAMES.items()} if of_classes else {}
    expected = {renamed.get(metric, metric): value for metric, value in expected.items()}
    assert run.data.metrics == pytest.approx(expected, abs=TOLERANCE)


def test_runs_in_a_store_predict_and_are_compared(old, client, tmp_path, capsys):
    runs = [import_run(old / "runs" / name, client) for name in ("network", "svm")]
    check_predict(runs[0], "network", tmp_path / "out")
    assert compare.main(["--runs", *runs]) == 0
    printed = capsys.readouterr().out
    assert "densenet169_undersample" in printed
    assert "svm_features" in printed


def test_evaluation_by_id_names_the_run(old, client):
    run = import_run(old / "runs/network", client)
    assert evaluate.main(["--run", run, "--part=test", f"--data.root={old / 'demo'}"]) == 0
    assert client.get_run(run).data.tags["evaluated_by"]


def relocate(checkpoint: Path, old: str, new: str) -> None:
    """Replace the absolute paths that Lightning keeps in a checkpoint."""

    def replaced(value):
        if isinstance(value, dict):
            return {replaced(key): replaced(one) for key, one in value.items()}
        if isinstance(value, list):
            return [replaced(one) for one in value]
        return value.replace(old, new) if isinstance(value, str) else value

    torch.save(replaced(torch.load(checkpoint, weights_only=True)), checkpoint)


def test_interrupted_run_resumes_to_the_same_predictions(old, client, tmp_path):
    source = tmp_path / "interrupted"
    shutil.copytree(old / "interrupted", source)
    expected = source / "expected_test.csv"
    config = yaml.safe_load((source / "config.yaml").read_text())
    config["data"]["root"] = str(old / "demo")
    (source / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    run = import_run(source, client, "KILLED")
    # the working folder of a run is beside the store
    folder = Path(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")).parent / "work" / run
    shutil.copytree(source, folder)
    relocate(folder / "checkpoints/last.ckpt", "/nowhere/run", str(folder))
    client.set_tag(run, "work_folder", str(folder))
    assert fit.main(["--resume", run]) == 0
    assert client.get_run(run).info.status == "FINISHED"
    assert len(pd.read_csv(client.download_artifacts(run, "epochs.csv"))) == 2
    check_table(read_table(Path(client.download_artifacts(run, "predictions/test.csv"))), read_table(expected))
