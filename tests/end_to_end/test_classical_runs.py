"""A run of a classical classifier, from fit to predict, evaluate, report and serving."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import all_runs, finished_run, only_run
from PIL import Image

from skincancer import evaluate, fit, sweep
from skincancer import predict as predict_verb
from skincancer.comparison.entries import Entry
from skincancer.comparison.load import load_run
from skincancer.comparison.tables import entries_table
from skincancer.config.resolve import resolve
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.feature_table import measure
from skincancer.data.index import load_index
from skincancer.errors import ConfigError, RunError, WeightsError
from skincancer.inference.classical_model import ClassicalModel
from skincancer.inference.model import load_segmenter, load_trained
from skincancer.inference.predictor import load_predictor
from skincancer.inference.serving import Model, input_example
from skincancer.metrics.prediction_files import read_predictions
from skincancer.models.deep_features import DeepFeatures
from skincancer.predict import predict
from skincancer.runs.artifacts import BACKBONE_FILE, CLASSICAL_CHECKPOINT, DIGESTS_FILE
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore, connect
from skincancer.system.yaml_files import load_yaml

FIT = ["--experiment=svm_features", "--data.size=32", "--tracking.system_metrics=false"]


@pytest.fixture(scope="module")
def finished(session_cache, tiny_demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classical")
    with finished_run(
        session_cache, folder, *FIT, f"--data.root={tiny_demo}", "--model.classical.features=[abcd,lbp]"
    ) as made:
        yield made


def test_run_keeps_the_contract(run, artifacts):
    assert run.info.status == "FINISHED"
    params, metrics = run.data.params, run.data.metrics
    keys = ("size", "backbone", "features", "C", "gamma", "weights", "masks", "split", "balance")
    assert {key: params[key] for key in keys} == {
        "size": "256", "backbone": "svm", "features": "abcd+lbp", "C": "1.0", "gamma": "scale", "weights": "none", "masks": "auto",
        "split": "80:20", "balance": "class_weights",
    }  # fmt: skip
    assert int(params["masks_truth"]) == len(pd.read_csv(artifacts / "masks.csv"))
    assert not {"lr", "max_epochs", "trees", "loss", "augment"} & set(params), "what it has not"
    assert run.data.tags["kind"] == "fit"
    assert {"split_hash", "index_hash", "synthetic", "git_commit"} <= set(run.data.tags)
    for name in ("best/balanced_accuracy", "test/balanced_accuracy", "test/auroc_macro", "test/ece"):
        assert 0 <= metrics[name] <= 1
    assert "best_epoch" not in metrics
    files = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml", "classes.json", "split.csv", "dropped.csv", DIGESTS_FILE, "masks.csv", "intervals.csv", "errors.csv",
        "environment.txt", "report.html", "predictions/val.csv", "predictions/test.csv", CLASSICAL_CHECKPOINT,
        "figures/confusion_matrix.png", "figures/roc.png", "figures/reliability.png",
    }  # fmt: skip
    assert not {"epochs.csv", "figures/learning_curves.png", "checkpoints/best.ckpt"} & files
    assert load_yaml(artifacts / "config.yaml")["model"]["classifier"] == "svm"


def test_predictions_are_those_of_the_test_part(artifacts):
    classes = json.loads((artifacts / "classes.json").read_text())["classes"]
    table, label, probability = read_predictions(artifacts / "predictions/test.csv", classes)
    logits = table[[f"logit_{name}" for name in classes]].to_numpy()
    assert np.exp(logits) == pytest.approx(probability, abs=1e-6)
    assert (label >= 0).all()
    split = pd.read_csv(artifacts / "split.csv").set_index("image_id")["role"]
    assert set(split[table["image_id"]]) == {"test"}


def test_report_says_what_was_fitted(artifacts):
    page = (artifacts / "report.html").read_text()
    for text in (
        "svm",
        "abcd+lbp",
        "in true masks (data.masks: auto)",
        "features are measured on whole images of 256 px",
    ):
        assert text in page
    for text in ("learning rate", "the input of the network", "with a Grad-CAM overlay", "epochs"):
        assert text not in page.split("Configuration</h2>")[0]


def test_predict_requires_a_mask_source_and_predicts_as_the_fit(run, artifacts, tiny_demo, tmp_path):
    with pytest.raises(ConfigError, match=r"was trained on images measured in their true masks \(data.masks truth\)"):
        predict(run.info.run_id, [tiny_demo / "images"], tmp_path / "out")
    said = predict(run.info.run_id, [tiny_demo / "images"], tmp_path / "out", masks="otsu")
    assert said.bad == 0
    table = pd.read_csv(tmp_path / "out/predictions.csv").set_index("image_id")
    classes = json.loads((artifacts / "classes.json").read_text())["classes"]
    assert table[[f"p_{name}" for name in classes]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)
    # the model takes the features of new files as those of the fit: in true masks it says what the run says of its test part
    test = pd.read_csv(artifacts / "predictions/test.csv").set_index("image_id").filter(like="p_")
    index, _ = load_index(catalog_entry("demo"), tiny_demo)
    model = load_trained(run.info.run_id, RunStore(None))
    for name, image, mask in index.set_index("image_id").loc[test.index[:4], ["image", "mask"]].itertuples():
        for source, said_before in (("truth", test.loc[name]), ("otsu", table.loc[name].filter(like="p_"))):
            found = measure(tiny_demo / image, tiny_demo / mask, source, families=model.families)
            features = np.array([[found[column] for column in model.columns]], dtype=np.float32)
            assert model.predict(features).probability[0] == pytest.approx(said_before.to_numpy(float), abs=1e-6)


@pytest.mark.slow
def test_features_of_cleaned_images_are_those_of_new_files_too(tiny_demo, store, tmp_path):
    flags = ["--model.classical.features=[colour]", "--data.clean=[contrast]", "--data.masks=otsu"]
    assert fit.main([*FIT, f"--data.root={tiny_demo}", *flags]) == 0
    run = only_run()
    finished = FinishedRun(run.info.run_id)
    own = finished.file("predictions/test.csv")
    expected = pd.read_csv(own).set_index("image_id").filter(like="p_")
    assert predict(run.info.run_id, [tiny_demo / "images"], tmp_path / "out").bad == 0
    said = pd.read_csv(tmp_path / "out/predictions.csv").set_index("image_id").loc[expected.index, expected.columns]
    assert said.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-6)
    assert run.data.params["clean"] == "contrast"


def test_predict_of_files_that_show_nothing(run, tmp_path):
    black, bad = tmp_path / "black.png", tmp_path / "bad.png"
    Image.new("RGB", (1, 1)).save(black)
    bad.write_bytes(b"no image")
    answers = list(load_predictor(run.info.run_id, masks="otsu").predict([black, bad]))
    assert answers[0].probability.sum() == pytest.approx(1), "no lesion: every feature is the training images' median"
    assert answers[1].error == "is not an image"
    assert [answer.masks for answer in answers] == ["empty", ""]


def test_predict_tells_of_images_in_which_nothing_could_be_measured(run, tiny_demo, tmp_path, capsys):
    Image.new("RGB", (40, 30)).save(tmp_path / "black.png")
    some = next(iter(sorted((tiny_demo / "images").iterdir())))
    arguments = ["--run", run.info.run_id, "--masks", "otsu", "--out", str(tmp_path / "out")]
    assert predict_verb.main([*arguments, str(tmp_path / "black.png"), str(some)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no lesion found" in printed
    assert "the mask contains no lesion in 1 of the images: their features were replaced by the medians" in printed
    said = pd.read_csv(tmp_path / "out/predictions.csv", keep_default_na=False).set_index("image_id")
    assert said["masks"].to_dict() == {"black": "empty", some.stem: "otsu"}
    assert predict_verb.main([*arguments, str(some)]) == 0
    assert "no lesion found" not in capsys.readouterr().out


def test_evaluate_on_the_runs_own_test_part_gives_the_runs_own_metrics(run, artifacts, tiny_demo):
    again = evaluate.evaluate([run.info.run_id], {"data.root": str(tiny_demo)}, part="test")
    client = connect(None)
    found = client.get_run(again).data
    for name in ("balanced_accuracy", "auroc_macro", "ece"):
        assert found.metrics[f"test/{name}"] == pytest.approx(run.data.metrics[f"test/{name}"], abs=1e-9)
    assert found.params["backbone"] == "svm"
    assert found.params["masks"] == "truth", "those of the run's own images"


def test_evaluate_reports_the_mask_source_of_features(run, tiny_demo, capsys):
    for masks, differs in (("truth", False), ("otsu", True)):
        flags = {"data.root": str(tiny_demo), "data.masks": masks}
        evaluate.evaluate([run.info.run_id], flags, part="test")
        printed = " ".join(capsys.readouterr().out.split())
        assert f"measured in: {len(list((tiny_demo / 'images').iterdir()))} by" in printed
        warned = "the run was trained on features measured in masks of truth, but here they are of otsu" in printed
        assert warned is differs


def test_size_of_stored_images_is_reported_not_to_be_that_of_features():
    _, notes = resolve("svm_features", {"data.size": 96})
    assert any("hand-crafted features use a fixed image size" in note for note in notes)
    assert not any("fixed image size" in note for note in resolve("svm_deep", {"data.size": 96})[1])


def test_run_is_compared_without_epochs(run):
    found = load_run(RunStore(None), run, "balanced_accuracy")
    assert found.epochs.empty
    entry = Entry("svm_features", "80:20", (found,))
    assert len(found.scores) == int(run.data.params["test_images"])
    assert entries_table([entry], "balanced_accuracy")["value"].item() == pytest.approx(
        run.data.metrics["test/balanced_accuracy"]
    )


def test_served_model_answers(run, artifacts):
    served = Model()
    served.load_context(type("Context", (), {"artifacts": {"run": str(artifacts)}}))
    images, params = input_example(takes_masks=True)
    assert served.predict(None, images, params).columns[0] == "prediction"


def test_logged_model_takes_the_parameter_masks(run):
    import mlflow

    (model,) = mlflow.search_logged_models(experiment_ids=[run.info.experiment_id], output_format="list")
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    assert "masks" in str(loaded.metadata.signature.params)
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 150, 140)).save(stream, "png")
    answer = loaded.predict(pd.DataFrame({"image": [stream.getvalue()]}), params={"masks": "otsu"})
    assert answer.filter(like="p_").to_numpy().sum() == pytest.approx(1)


def test_it_is_no_segmenter(run):
    with pytest.raises(RunError, match=r"data.masks: the task of run .* is classification"):
        load_segmenter(run.info.run_id, RunStore(None), "data.masks")
    assert isinstance(load_trained(run.info.run_id, RunStore(None)), ClassicalModel)


def test_model_of_other_features_is_refused(run, artifacts, tmp_path):
    shutil.copytree(artifacts, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("    - lbp\n", "    - glcm\n"))
    with pytest.raises(
        WeightsError, match=r"fitted on \d+ features and 7 classes; this version computes \d+ features of abcd, glcm"
    ):
        ClassicalModel(tmp_path)


def test_class_of_one_training_lesion_is_reported_before_the_run_starts(tiny_demo, store, capsys):
    assert fit.main([*FIT, f"--data.root={tiny_demo}", "--data.split=40:60"]) == 2
    assert "the training set has only one lesion of akiec" in capsys.readouterr().err.replace("\n", " ")
    assert not all_runs()


def test_run_is_not_resumed():
    experiment = resolve("svm_features", {})[0]
    with pytest.raises(RunError, match=r"--resume 0123: svm is fitted in one step and cannot be resumed"):
        fit.fit(experiment, resume="0123")


def test_the_same_twice_gives_the_same_predictions(run, artifacts, tiny_demo, new_store):
    new_store("again")
    assert fit.main([*FIT, f"--data.root={tiny_demo}", "--model.classical.features=[abcd,lbp]"]) == 0
    again = connect(None).download_artifacts(only_run().info.run_id, "predictions/test.csv")
    with open(again, "rb") as file:
        assert file.read() == (artifacts / "predictions/test.csv").read_bytes()


def test_deep_features_come_with_their_backbone(tiny_demo, store, monkeypatch):
    deep = ["--experiment=svm_deep", "--data.size=32", "--model.backbone=test_efficientnet", "--model.weights=none"]
    assert fit.main([*deep, f"--data.root={tiny_demo}", "--data.batch_size=8", "--tracking.system_metrics=false"]) == 0
    run = only_run()
    assert run.data.params["features"] == "deep: test_efficientnet"
    assert run.data.params["weights"] == "random"
    once = DeepFeatures.measure
    monkeypatch.setattr(DeepFeatures, "measure", None)  # what a second run has no need for: the features are kept
    again = [*deep, f"--data.root={tiny_demo}", "--data.batch_size=8", "--tracking.system_metrics=false"]
    assert fit.main([*again, "--model.classical.C=2"]) == 0
    monkeypatch.setattr(DeepFeatures, "measure", once)
    assert fit.main([*again, "--seed=5"]) == 0, "other weights have features of their own"
    first, _, other = sorted(all_runs(), key=lambda one: one.info.start_time)
    assert first.info.run_id == run.info.run_id
    assert other.data.metrics["test/auroc_macro"] != run.data.metrics["test/auroc_macro"]
    assert "masks" not in run.data.params
    folder = Path(connect(None).download_artifacts(run.info.run_id, ""))
    # The weights are random, so only the weights saved in the run give the same predictions.
    test = pd.read_csv(folder / "predictions/test.csv").set_index("image_id")
    files = {path.stem: path for path in (tiny_demo / "images").iterdir()}
    answers = load_predictor(run.info.run_id).predict([files[name] for name in test.index])
    answered = np.stack([answer.probability for answer in answers])
    assert answered == pytest.approx(test.filter(like="p_").to_numpy(), abs=1e-6)
    (folder / BACKBONE_FILE).write_bytes(b"no weights")
    with pytest.raises(WeightsError, match=r"backbone.safetensors: these are not the weights of test_efficientnet"):
        load_predictor(str(folder))


@pytest.mark.slow
def test_sweep_over_its_own_space(tiny_demo, store):
    arguments = [f"--data.root={tiny_demo}", "--data.size=32", "--tracking.system_metrics=false", "--trials=2"]
    assert sweep.main(["--experiment=svm_features", *arguments]) == 0
    trials = [run for run in all_runs() if run.data.tags.get("kind") == "trial"]
    assert len(trials) == 2
    assert len({run.data.params["C"] for run in trials}) == 2
    for run in trials:
        assert run.info.status == "FINISHED"
        assert "best/balanced_accuracy" in run.data.metrics
        assert not [name for name in run.data.metrics if name.startswith("test/")], "the test part is not looked at"
