"""Test the logged model: tables of images, serving over HTTP, registration."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pillow_heif
import pytest
import torch
from conftest import TINY_FIT, all_runs, finished_run
from image_writers import write_dicom, write_png
from mlflow.exceptions import MlflowException
from PIL import Image

from skincancer import fit, predict
from skincancer.config.resolve import resolve
from skincancer.data.readers import demo
from skincancer.errors import ConfigError, RunError
from skincancer.inference import serving
from skincancer.inference.predictor import load_predictor
from skincancer.runs.registry import parse_target, register, stored_target
from skincancer.runs.store import connect
from skincancer.system.yaml_files import dump_yaml, load_yaml

JOINT = [
    "--experiment=unet_efficientnet_lite0_joint", *TINY_FIT, "--model.backbone=tu-test_resnet", "--data.split=40:60",
    "--trainer.max_epochs=1", "--register=lesions",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_demo, session_cache, tmp_path_factory):
    """A finished joint run, registered, and its store."""
    folder = tmp_path_factory.mktemp("served")
    with finished_run(session_cache, folder, *JOINT, f"--data.root={tiny_demo}") as found:
        yield found


@pytest.fixture(scope="module")
def paths(tiny_demo) -> list[Path]:
    """Images, wide and tall."""
    index = demo.read(tiny_demo)
    found = [tiny_demo / path for path in index["image"]]
    by_shape = {Image.open(path).width > Image.open(path).height: path for path in found}
    return [by_shape[True], by_shape[False], found[3]]


def make_run(folder: Path, experiment: str, **flags) -> Path:
    """Write a run's folder with a model that was never trained."""
    from skincancer.models.tasks.classification import ClassificationTask
    from skincancer.models.tasks.segmentation import SegmentationTask

    own = {"model.backbone": "test_efficientnet" if experiment == "resnet50" else "tu-test_resnet", "data.size": 32}
    found, _ = resolve(experiment, {**own, "data.batch_size": 4, **flags})
    model = found.to_dict()["model"]
    shared = {
        "backbone": model["backbone"], "size": 32, "freeze": "none", "unfreeze_epoch": None, "optimizer": model["optimizer"],
        "loss": model["loss"], "schedule": model["schedule"], "tta": "none", "channels_last": True, "seed": 0,
    }  # fmt: skip
    torch.manual_seed(1)
    if found.task == "classification":
        task = ClassificationTask(
            **shared, classes=["benign", "malignant"], dropout=0.0, head="softmax", head_hidden=0, class_weights=None
        )
    else:
        task = SegmentationTask(**shared, architecture="unet", threshold=0.5)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(
        {"hyper_parameters": dict(task.hparams), "state_dict": task.state_dict()}, folder / "checkpoints/best.ckpt"
    )
    (folder / "config.yaml").write_text(dump_yaml(found.to_dict()))
    return folder


def load(run: Path, place: Path):
    """Save the model of a run's folder as MLflow does, and load it."""
    classes = () if "segment" in run.name else ("benign", "malignant")
    crops = bool(load_yaml(run / "config.yaml")["data"]["crop"])
    mlflow.pyfunc.save_model(
        str(place), python_model=serving.__file__, artifacts={"run": str(run)}, input_example=serving.input_example(),
        signature=serving.signature(classes, not classes, crops), pip_requirements=[],
    )  # fmt: skip
    return mlflow.pyfunc.load_model(str(place))


def images(*cells) -> pd.DataFrame:
    return pd.DataFrame({"image": list(cells)})


def mask_of(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert image.mode == "L"
    return np.asarray(image)


def expected(out: Path, run, paths) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Return the table of predict."""
    assert predict.main(["--run", str(run), "--out", str(out), *map(str, paths)]) == 0
    table = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    return table, [np.asarray(Image.open(out / f"masks/{path.stem}_segmentation.png")) for path in paths]


def test_joint_model_gives_what_predict_gives(run, paths, tmp_path):
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    table, masks = expected(tmp_path / "out", run.info.run_id, paths)
    names = [name for name in table.columns if name.startswith("p_")]
    text = base64.b64encode(paths[1].read_bytes()).decode()
    broken = base64.encodebytes(paths[2].read_bytes()).decode()  # in lines
    for cells in ([str(path) for path in paths], [path.read_bytes() for path in paths], [str(paths[0]), text, broken]):
        found = model.predict(images(*cells))
        assert list(found.columns) == ["prediction", *names, "mask"] == model.metadata.get_output_schema().input_names()
        assert found["prediction"].tolist() == table["prediction"].tolist()
        np.testing.assert_allclose(found[names].astype(float), table[names], rtol=1e-6, atol=0)
        for png, mask in zip(found["mask"], masks, strict=True):
            assert np.array_equal(mask_of(png), mask)
    inline = model.predict(images(f"data:image/jpeg;base64,{text}"))
    assert np.array_equal(mask_of(inline["mask"][0]), masks[1])


def test_logged_model_has_no_pickle_and_no_real_image(run, paths):
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/model"))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".cloudpickle"))]
    assert {"artifacts/run/config.yaml", "artifacts/run/classes.json", "artifacts/run/checkpoints/best.ckpt"} <= files
    model = mlflow.models.Model.load(str(folder))
    example = model.load_input_example(str(folder))
    (row,) = example["image"]
    assert np.ptp(np.asarray(Image.open(io.BytesIO(base64.b64decode(row))))) == 0, "grey"
    assert len(mlflow.pyfunc.load_model(str(folder)).predict(example)) == 1


def test_classifier_and_segmenter_return_their_own_columns(paths, tmp_path):
    run = make_run(tmp_path / "classifier", "resnet50")
    found = load(run, tmp_path / "a").predict(images(*map(str, paths)))
    assert list(found.columns) == ["prediction", "p_benign", "p_malignant"]
    assert (found["p_benign"] + found["p_malignant"]).tolist() == pytest.approx([1, 1, 1])
    answers = list(load_predictor(str(run)).predict(paths))
    np.testing.assert_allclose(found[["p_benign", "p_malignant"]], [answer.probability for answer in answers])
    run = make_run(tmp_path / "segmenter", "unet_resnet34")
    found = load(run, tmp_path / "b").predict(images(*map(str, paths)))
    assert list(found.columns) == ["mask"]
    for png, path in zip(found["mask"], paths, strict=True):
        assert mask_of(png).shape[::-1] == Image.open(path).size
        assert set(np.unique(mask_of(png))) <= {0, 255}


@pytest.mark.parametrize("source", ["run:segmenter", "otsu"])
def test_cropped_run_contains_its_mask_source(paths, tmp_path, source):
    run = make_run(tmp_path / "cropped", "resnet50", **{"data.crop": True, "data.masks": source})
    if source != "otsu":
        make_run(run / "segmenter", "unet_resnet34")
    model = load(run, tmp_path / "model")
    for path in tmp_path.glob("cropped/**/*.ckpt"):
        path.unlink()  # the model needs nothing of the run any more
    found = model.predict(images(*map(str, paths)))
    answers = list(load_predictor(str(tmp_path / "model/artifacts/cropped")).predict(paths))
    np.testing.assert_allclose(found["p_malignant"], [answer.probability[1] for answer in answers])
    by_otsu = model.predict(images(*map(str, paths)), params={"masks": "otsu"})
    assert (by_otsu["p_malignant"] == found["p_malignant"]).all() == (source == "otsu")
    with pytest.raises(MlflowException, match="masks is 'run:else'; expected otsu or empty"):
        model.predict(images(str(paths[0])), params={"masks": "run:else"})


def test_run_on_true_masks_requires_a_mask_source(paths, tmp_path):
    run = make_run(tmp_path / "cropped", "resnet50", **{"data.crop": True, "data.masks": "truth"})
    model = load(run, tmp_path / "model")
    with pytest.raises(MlflowException, match="was trained on images cropped to their true masks"):
        model.predict(images(str(paths[0])))
    assert len(model.predict(images(str(paths[0])), params={"masks": "otsu"})) == 1


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "/nowhere/a.jpg",
            "image of row 1 is '/nowhere/a.jpg'; use the bytes of an image file, their base64 text, or a path",
        ),
        (base64.b64encode(b"no image").decode(), "image of row 1 is not an image"),
        (b"", r"image of row 1 is empty \(0 bytes\)"),
        (None, "image of row 1 is NoneType"),
        (7, "image of row 1 is int"),
    ],
)
def test_bad_images_are_reported_by_row(paths, tmp_path, cell, message):
    context = type("Context", (), {"artifacts": {"run": str(make_run(tmp_path / "classifier", "resnet50"))}})
    model = serving.Model()
    model.load_context(context)
    with pytest.raises(MlflowException, match=message):
        model.predict(context, pd.DataFrame({"image": pd.Series([str(paths[0]), cell], dtype=object)}))


@pytest.mark.parametrize("kind", ["heic", "avif", "dicom", "sixteen bits"])
def test_formats_of_phones_and_clinics_are_served(paths, tmp_path, kind):
    run, file = make_run(tmp_path / "classifier", "resnet50"), tmp_path / f"a.{kind}"
    pixels = np.asarray(Image.open(paths[0]).convert("RGB"))
    if kind == "heic":
        pillow_heif.from_pillow(Image.open(paths[0])).save(file, quality=95)
    elif kind == "avif":
        Image.open(paths[0]).save(file, quality=95)
    elif kind == "dicom":
        write_dicom(file, pixels, "RGB")
    else:
        file = tmp_path / "a.png"
        write_png(file, pixels.astype(np.uint16) * 16)
    context = type("Context", (), {"artifacts": {"run": str(run)}})
    model = serving.Model()
    model.load_context(context)
    cells = [paths[0].read_bytes(), file.read_bytes(), base64.b64encode(file.read_bytes()).decode(), str(file)]
    answers = model.predict(context, pd.DataFrame({"image": pd.Series(cells, dtype=object)}))["p_malignant"]
    # Lossy compression changes some pixels a little.
    np.testing.assert_allclose(answers, [answers[0]] * 4, atol=0.01)
    assert predict.main(["--run", str(run), "--out", str(tmp_path / "out"), str(file)]) == 0
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    np.testing.assert_allclose(table["p_malignant"], answers[1], rtol=1e-4)


class Malicious:
    """Runs code when it is unpickled."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self):
        return os.mkdir, (str(self.touched),)


def test_a_malicious_checkpoint_is_not_unpickled(tmp_path):
    run = make_run(tmp_path / "classifier", "resnet50")
    load(run, tmp_path / "model")
    checkpoint = tmp_path / "model/artifacts/classifier/checkpoints/best.ckpt"
    torch.save({"evil": Malicious(tmp_path / "touched")}, checkpoint)
    with pytest.raises(Exception, match="holds pickled objects"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    assert not (tmp_path / "touched").exists()


def test_registered_model_predicts_without_its_run(run, paths, tmp_path):
    client = connect(None)
    version = client.get_model_version_by_alias("lesions", "candidate")
    assert version.run_id == run.info.run_id
    assert client.get_run(run.info.run_id).data.tags["register"] == "lesions@candidate"
    assert client.get_run(run.info.run_id).data.tags["registered_version"] == str(version.version)
    table, masks = expected(tmp_path / "run", run.info.run_id, paths)
    client.delete_run(run.info.run_id)
    try:
        again, same = expected(tmp_path / "registered", "lesions@candidate", paths)
    finally:
        client.restore_run(run.info.run_id)
    pd.testing.assert_frame_equal(table, again)
    assert all(np.array_equal(one, other) for one, other in zip(masks, same, strict=True))


def test_alias_moves_to_the_newest_version(run):
    client = connect(None)
    assert register(client, run.info.run_id, parse_target("lesions@moved")) == "2"
    assert register(client, run.info.run_id, parse_target("lesions@moved")) == "3"
    aliases = client.get_registered_model("lesions").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"candidate": "1", "moved": "3"}


def test_refusal_by_the_registry_keeps_the_run(run, monkeypatch):
    def refuse(*_, **__):
        raise MlflowException("not today")

    monkeypatch.setattr("mlflow.tracking.MlflowClient.create_model_version", refuse)
    with pytest.raises(
        RunError, match=r"is finished and complete, but its model could not be registered as a@b: not today"
    ):
        register(connect(None), run.info.run_id, parse_target("a@b"))
    assert connect(None).get_run(run.info.run_id).info.status == "FINISHED"


def test_resumed_run_keeps_its_register_flag(store):
    client = connect(None)
    experiment = client.create_experiment("some")
    for tags, expected_text in (({"register": "lesions@champion"}, "lesions@champion"), ({}, None)):
        made = client.create_run(experiment, tags=tags)
        assert stored_target(client, made.info.run_id) == expected_text


@pytest.mark.parametrize(
    ("text", "target"), [("lesions", ("lesions", "candidate")), ("skin lesions@champion", ("skin lesions", "champion"))]
)
def test_targets_are_parsed(text, target):
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", " ", "a/b", "a:b", "..", "@champion", "a@", "a@latest", "a@v3", "a@b c", "a@b@c"])
def test_names_that_mlflow_does_not_take_are_refused_before_any_work(text, capsys):
    with pytest.raises(ConfigError, match="--register is"):
        parse_target(text)
    assert fit.main(["--experiment=resnet50", "--register", text]) == 2
    assert "--register is" in capsys.readouterr().err


def test_store_without_registry_is_refused_before_any_work(store, tiny_demo, monkeypatch, capsys):
    from skincancer.data import prepare

    def none(*_, **__):
        raise MlflowException("no registry here")

    monkeypatch.setattr("mlflow.tracking.MlflowClient.search_registered_models", none)
    monkeypatch.setattr(prepare, "prepare_data", lambda *_, **__: pytest.fail("long work began"))
    assert fit.main(["--experiment=resnet50", *TINY_FIT, f"--data.root={tiny_demo}", "--register=lesions"]) == 1
    assert "has no model registry: no registry here" in " ".join(capsys.readouterr().err.split())
    assert not all_runs()


def ask(port: int, content: dict) -> list[dict]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["predictions"]


@pytest.mark.slow
def test_mlflow_serves_it_over_http(run, paths, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", f"runs:/{run.info.run_id}/model", "--env-manager", "local",
        "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    # the server is started by its name
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = tmp_path / "server.txt"
    with open(log, "wb") as file:
        server = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=tmp_path, env={**os.environ, "PATH": path}, start_new_session=True
        )
    try:
        end = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                    break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(1)
        rows = [[base64.b64encode(path.read_bytes()).decode()] for path in paths]
        said = ask(port, {"dataframe_split": {"columns": ["image"], "data": rows}})
        bad = {"dataframe_records": [{"image": base64.b64encode(b"no image").decode()}]}
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(port, bad)
        assert refused.value.code == 400
        assert "image of row 0 is not an image" in refused.value.read().decode()
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)
    table, masks = expected(tmp_path / "out", run.info.run_id, paths)
    names = [name for name in table.columns if name.startswith("p_")]
    for answer, row, mask in zip(said, table.to_dict("records"), masks, strict=True):
        assert answer["prediction"] == row["prediction"]
        assert [answer[name] for name in names] == pytest.approx([row[name] for name in names], rel=1e-6)
        assert np.array_equal(mask_of(base64.b64decode(answer["mask"])), mask)
