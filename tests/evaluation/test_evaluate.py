"""Test evaluations: own test set, other data and classes, copies, ensembles, errors."""

import json
import shutil
import tempfile
from functools import reduce
from pathlib import Path

import html_pages
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY_FIT, all_runs, finished_run
from PIL import Image, ImageOps
from scipy.special import logsumexp
from stub_engine import StubEngine

from skincancer import evaluate, fit
from skincancer.data.catalog import HAM10000_CLASSES, HAM10000_MALIGNANT
from skincancer.data.overlap import find_overlap, read_fingerprints
from skincancer.data.readers import demo
from skincancer.engines import run_orders
from skincancer.engines.orders import Order, Result
from skincancer.errors import ConfigError, RunError
from skincancer.evaluation import external
from skincancer.imaging.quality import measure
from skincancer.runs import registry
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore, connect
from skincancer.schema.experiment import Experiment
from skincancer.system.interrupts import Interrupted
from skincancer.system.yaml_files import dump_yaml

MALIGNANT = f"--data.malignant=[{','.join(HAM10000_MALIGNANT)}]"


@pytest.fixture(scope="module")
def finished(tiny_demo, session_cache, tmp_path_factory):
    """One finished classifier that every test evaluates, and its store."""
    argv = ["--experiment=densenet169_undersample", *TINY_FIT, f"--data.root={tiny_demo}", "--data.split=40:60"]
    with finished_run(session_cache, tmp_path_factory.mktemp("finished"), *argv) as found:
        yield found


@pytest.fixture(scope="module")
def copies(tiny_demo, tmp_path_factory) -> Path:
    """Images of the demo under other names, in a table without lesions and patients."""
    root = tmp_path_factory.mktemp("copies")
    table = demo.read(tiny_demo)
    names = [f"copy_{number:03}.png" for number in range(len(table))]
    for name, image in zip(names, table["image"], strict=True):
        shutil.copy(tiny_demo / image, root / name)
    pd.DataFrame({"image": names, "diagnosis": table["diagnosis"]}).to_csv(root / "index.csv", index=False)
    return root


@pytest.fixture(scope="module")
def edited(tiny_demo, tmp_path_factory) -> Path:
    """Images of the demo, mirrored, slightly brighter and compressed again."""
    root = tmp_path_factory.mktemp("edited")
    table = demo.read(tiny_demo)
    names = [f"edited_{number:03}.jpg" for number in range(len(table))]
    for name, image in zip(names, table["image"], strict=True):
        with Image.open(tiny_demo / image) as found:
            ImageOps.mirror(found).point(lambda value: min(255, round(value * 1.05))).save(root / name, quality=80)
    pd.DataFrame({"image": names, "diagnosis": table["diagnosis"]}).to_csv(root / "index.csv", index=False)
    return root


def files(run) -> Path:
    return Path(connect(None).download_artifacts(run.info.run_id, ""))


def evaluated(*argv: str) -> tuple:
    """Evaluate; return the new run and its artifacts."""
    assert evaluate.main(list(argv)) == 0
    run = next(run for run in reversed(all_runs()) if run.data.tags["kind"] == "evaluate")
    return run, files(run)


def table_of(folder: Path, name: str = "predictions/test.csv") -> pd.DataFrame:
    return pd.read_csv(folder / name, dtype={"image_id": str, "lesion_id": str}, keep_default_na=False)


# ---------------------------------------------------------------------------------------------------------------- whole evaluations


def test_own_test_set_has_the_metrics_of_the_fit(run, artifacts, capsys):
    found, folder = evaluated(f"--run={run.info.run_id}", "--part=test")
    own = {name: value for name, value in run.data.metrics.items() if name.startswith("test/")}
    assert {name: found.data.metrics[name] for name in own} == own
    assert (folder / "predictions/test.csv").read_bytes() == (artifacts / "predictions/test.csv").read_bytes()
    assert (folder / "intervals.csv").read_bytes() == (artifacts / "intervals.csv").read_bytes()

    assert found.info.status == "FINISHED"
    assert found.info.run_name == "evaluate densenet169_undersample 40:60"
    tags, params = found.data.tags, found.data.params
    assert tags["evaluated_run"] == run.info.run_id
    for name in ("split_hash", "index_hash", "groups_hash", "synthetic"):
        assert tags[name] == run.data.tags[name]
    again = connect(None).get_run(run.info.run_id)
    assert found.info.run_id in again.data.tags["evaluated_by"].split()
    assert (params["dataset"], params["split"], params["part"]) == ("demo", "40:60", "test")
    assert (params["excluded_images"], params["mapping_kind"], params["digests"]) == ("0", "same", "true")
    assert int(params["test_images"]) == len(table_of(folder))

    for name in ("config.yaml", "split.csv", "dropped.csv", "operating_points.csv", "calibration.csv", "subgroups.csv"):
        assert (folder / name).is_file()
    for name in ("roc", "confusion_matrix", "reliability", "temperature"):
        assert (folder / f"figures/{name}.png").is_file()
    assert json.loads((folder / "classes.json").read_text()) == {
        "classes": list(HAM10000_CLASSES), "malignant": list(HAM10000_MALIGNANT),
    }  # fmt: skip
    assert (folder / "config.yaml").read_bytes() == (artifacts / "config.yaml").read_bytes()
    before, after = (pd.read_csv(place / "split.csv", dtype={"image_id": str}) for place in (artifacts, folder))
    assert (after["label"] == before["label"]).all()
    assert ((after["role"] == "test") == (before["role"] == "test")).all()

    page = html_pages.read(folder / "report.html")
    assert html_pages.asks_for_nothing(page)
    assert {"Results", "What was evaluated", "Figures", "Environment"} <= set(page.of("h2"))
    assert any("SYNTHETIC DATA" in text for text in page.of("p", "band"))
    assert any(row[:1] == ["balanced accuracy"] for row in page.rows())

    point = pd.read_csv(folder / "operating_points.csv").set_index("metric")
    assert (point["prevalence_source"] == "of these images").all()
    truth = table_of(folder)["label"].isin(HAM10000_MALIGNANT)
    assert point["prevalence"].iloc[0] == pytest.approx(truth.mean())
    assert found.data.metrics["test/specificity_at_95_sensitivity"] == pytest.approx(point.loc["specificity", "value"])
    assert found.data.metrics["temperature"] > 0
    printed = capsys.readouterr().out
    for text in ("the same classes: akiec", "a threshold from few images", "number needed to biopsy", "calibration"):
        assert text in printed


def test_a_fit_writes_digests_and_subgroups(run, artifacts):
    digests = pd.read_csv(artifacts / "digests.csv", dtype=str)
    split = pd.read_csv(artifacts / "split.csv", dtype=str, keep_default_na=False)
    assert digests["image_id"].tolist() == split.loc[split["role"] != "", "image_id"].tolist()
    assert digests["pixels"].str.fullmatch("[0-9a-f]{32}").all()
    assert digests["pixels"].is_unique
    subgroups = pd.read_csv(artifacts / "subgroups.csv", dtype=str, keep_default_na=False)
    assert set(subgroups["attribute"]) <= {"age", "sex", "site", "dx_type"}
    assert len(subgroups)


def test_a_fit_writes_small_grey_copies_of_its_images(run, artifacts):
    split = pd.read_csv(artifacts / "split.csv", dtype=str, keep_default_na=False)
    kept = read_fingerprints(artifacts / "fingerprints.npz")
    assert kept.image_id.tolist() == split.loc[split["role"].isin(["train", "val"]), "image_id"].tolist()
    assert kept.thumbnails.shape == (len(kept.image_id), 36, 36)
    assert (artifacts / "fingerprints.npz").stat().st_size < 1500 * len(kept.image_id) + 2000
    (artifacts.parent / "other.npz").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="contains no fingerprints"):
        read_fingerprints(artifacts.parent / "other.npz")


def test_edited_copies_of_training_images_are_excluded(run, artifacts, edited, tiny_demo, capsys):
    argv = [f"--run={run.info.run_id}", "--data.dataset=csv", f"--data.root={edited}"]
    found, folder = evaluated(*argv)
    printed = capsys.readouterr().out
    split = pd.read_csv(artifacts / "split.csv", dtype=str, keep_default_na=False).set_index("image_id")
    original = demo.read(tiny_demo)["image_id"].to_numpy()
    used = np.flatnonzero(split["role"][original].isin(["train", "val"]))
    left_out = pd.read_csv(folder / "near_duplicates.csv", dtype={"image_id": str, "like": str})
    names = {f"edited_{number:03}": original[number] for number in used}
    right = left_out[left_out["image_id"].isin(names)]
    assert len(right) >= 0.95 * len(names)
    assert len(right) >= 0.95 * len(left_out)
    assert (right["like"] == right["image_id"].map(names)).mean() > 0.9
    params = found.data.params
    assert int(params["excluded_by_near"]) == int(params["near_duplicate_images"]) == len(left_out)
    assert (params["near_duplicates"], params["fingerprints"], params["excluded_by_pixels"]) == ("exclude", "true", "0")
    assert not set(table_of(folder)["image_id"]) & set(left_out["image_id"])
    assert f"left out: {len(left_out)} images (nearly identical" in printed

    kept, folder = evaluated(*argv, "--near-duplicates=keep")
    assert (kept.data.params["near_duplicates"], kept.data.params["excluded_images"]) == ("keep", "0")
    assert kept.data.params["near_duplicate_images"] == params["near_duplicate_images"]
    assert len(table_of(folder)) == len(original)
    assert "near-duplicates of training images are evaluated" in capsys.readouterr().out


@pytest.mark.slow
def test_copies_are_found_of_a_run_on_crops_too(store, edited, tiny_demo, tmp_path):
    """The run was cropped to true masks, which the copies of its images lack."""
    argv = ["--experiment=densenet169_undersample", *TINY_FIT, f"--data.root={tiny_demo}", "--data.split=40:60"]
    assert fit.main([*argv, "--data.crop=true", "--trainer.max_epochs=1"]) == 0
    run = all_runs()[-1]
    own = tmp_path / "own"
    shutil.copytree(files(run), own)
    asked = ["--data.dataset=csv", f"--data.root={edited}", "--data.masks=otsu"]
    _, folder = evaluated(f"--run={own}", *asked)
    split = pd.read_csv(own / "split.csv", dtype=str, keep_default_na=False).set_index("image_id")
    original = demo.read(tiny_demo)["image_id"].to_numpy()
    used = {f"edited_{number:03}" for number in np.flatnonzero(split["role"][original].isin(["train", "val"]))}
    left_out = pd.read_csv(folder / "near_duplicates.csv", dtype=str)["image_id"]
    assert left_out.isin(used).sum() >= 0.95 * max(len(used), len(left_out))


def test_a_registered_model_is_evaluated_as_its_run(run):
    registry.register(connect(None), run.info.run_id, registry.parse_target("lesions"))
    found, _ = evaluated("--run=lesions@candidate", "--part=test")
    assert found.data.tags["evaluated_run"] == run.info.run_id
    assert found.data.metrics["test/accuracy"] == run.data.metrics["test/accuracy"]
    again = connect(None).get_run(run.info.run_id)
    assert found.info.run_id in again.data.tags["evaluated_by"].split()


def test_a_run_without_digests_is_reported(run, artifacts, edited, tmp_path, capsys):
    older = tmp_path / "older"
    shutil.copytree(artifacts, older)
    (older / "fingerprints.npz").unlink()
    found, folder = evaluated(f"--run={older}", "--data.dataset=csv", f"--data.root={edited}")
    assert "near-duplicates are not recognised" in capsys.readouterr().out
    assert (found.data.params["fingerprints"], found.data.params["near_duplicate_images"]) == ("false", "0")
    assert not (folder / "near_duplicates.csv").exists()


def test_fingerprints_of_an_older_run_are_reported(run, artifacts, edited, tmp_path, capsys):
    older = tmp_path / "older"
    shutil.copytree(artifacts, older)
    kept = read_fingerprints(older / "fingerprints.npz")
    np.savez_compressed(older / "fingerprints.npz", image_id=kept.image_id, thumbnails=kept.thumbnails)
    argv = ["--data.dataset=csv", f"--data.root={edited}"]
    evaluated(f"--run={older}", *argv)
    assert "near-duplicates may be other lesions" in capsys.readouterr().out
    evaluated(f"--run={artifacts}", *argv)
    assert "near-duplicates may be other lesions" not in capsys.readouterr().out


def test_renamed_copies_are_excluded_and_classes_summed(run, artifacts, copies, tiny_demo, capsys):
    found, folder = evaluated(
        "--run", run.info.run_id, "--data.dataset=csv", f"--data.root={copies}", "--data.target=malignancy", MALIGNANT,
        "--prevalence=0.1",
    )  # fmt: skip
    split = pd.read_csv(artifacts / "split.csv", dtype=str, keep_default_na=False).set_index("image_id")
    original = demo.read(tiny_demo)["image_id"].to_numpy()
    role = split["role"][original].to_numpy()
    table = table_of(folder)
    assert table["image_id"].tolist() == [f"copy_{number:03}" for number in np.flatnonzero(role == "test")]
    params = found.data.params
    assert int(params["excluded_images"]) == int(params["excluded_by_pixels"]) == (role != "test").sum()
    assert params["excluded_by_image"] == "0"
    dropped = pd.read_csv(folder / "dropped.csv")
    assert (dropped["reason"] == "same pixels as a training or validation image of the run").sum() == len(dropped)

    own = table_of(artifacts).set_index("image_id").loc[original[role == "test"]]
    summed = own[[f"p_{name}" for name in HAM10000_MALIGNANT]].sum(axis=1).to_numpy()
    np.testing.assert_allclose(table["p_malignant"], summed, atol=1e-6)
    logits = logsumexp(own[[f"logit_{name}" for name in HAM10000_MALIGNANT]].to_numpy(), axis=1)
    np.testing.assert_allclose(table["logit_malignant"], logits, atol=1e-4)
    assert (table["label"] == np.where(own["label"].isin(HAM10000_MALIGNANT), "malignant", "benign")).all()
    assert params["mapping_kind"] == "malignancy"
    assert "malignant = akiec + bcc + mel of the run" in params["mapping"]
    assert found.info.experiment_id == connect(None).get_experiment_by_name("csv-classification").experiment_id

    validation = table_of(folder, "predictions/val.csv")
    point = pd.read_csv(folder / "operating_points.csv").set_index("metric")
    positives = validation.loc[validation["label"] == "malignant", "p_malignant"]
    assert point["threshold"].iloc[0] == pytest.approx(positives.min()), "95 % of so few are all of them"
    called, truth = table["p_malignant"] >= point["threshold"].iloc[0], table["label"] == "malignant"
    sensitivity, specificity = (called & truth).sum() / truth.sum(), (~called & ~truth).sum() / (~truth).sum()
    assert point.loc["sensitivity", "value"] == pytest.approx(sensitivity)
    assert point.loc["specificity", "value"] == pytest.approx(specificity)
    ppv = 0.1 * sensitivity / (0.1 * sensitivity + 0.9 * (1 - specificity))
    assert point.loc["ppv", "value"] == pytest.approx(ppv)
    assert (params["prevalence"], params["prevalence_source"]) == ("0.1", "given")
    printed = capsys.readouterr().out
    assert f"left out: {(role != 'test').sum()} images (same pixels" in printed
    assert not (folder / "subgroups.csv").exists(), "nothing is known of these lesions"


def test_flagged_images_are_reported(run, edited, capsys):
    sharpness = sorted(measure(np.asarray(Image.open(path)))["quality_sharpness"] for path in edited.glob("*.jpg"))
    rule = f"--data.quality_rules={{blurred: {(sharpness[2] + sharpness[3]) / 2}}}"
    argv = ["--data.dataset=csv", f"--data.root={edited}", "--data.quality=drop_flagged", rule]
    found, _ = evaluated(f"--run={run.info.run_id}", *argv)
    printed = capsys.readouterr().out
    assert "left out: 3 images that data.quality flags (dropped.csv contains the reasons)" in printed
    assert "cannot be used" not in printed
    assert found.data.params["dropped_images"] == "3"


def test_data_of_one_class_have_undefined_metrics(run, artifacts, tiny_demo, tmp_path, capsys):
    """A subset of the run's classes, too: nothing is renormalised, and other classes are still predicted."""
    own = table_of(artifacts).set_index("image_id")
    melanomas = own[own["label"] == "mel"]
    table = demo.read(tiny_demo).set_index("image_id")
    (tmp_path / "own").mkdir()
    names = [f"{number}.jpg" for number in range(len(melanomas))]
    for name, image_id in zip(names, melanomas.index, strict=True):
        shutil.copy(tiny_demo / table.loc[image_id, "image"], tmp_path / "own" / name)
    pd.DataFrame({"image": names, "diagnosis": "mel"}).to_csv(tmp_path / "own/index.csv", index=False)
    argv = ["--data.dataset=csv", f"--data.root={tmp_path / 'own'}"]
    found, folder = evaluated(f"--run={run.info.run_id}", *argv)
    metrics = found.data.metrics
    assert metrics["test/accuracy"] == metrics["test/recall/mel"] == (melanomas["prediction"] == "mel").mean()
    assert not {"test/auroc_macro", "test/recall/nv", "test/specificity_at_95_sensitivity"} & set(metrics)
    assert "test/sensitivity_at_95_sensitivity" in metrics
    assert set(found.data.params["mapping_kind"].split()) == {"subset"}
    p = [f"p_{name}" for name in HAM10000_CLASSES]
    np.testing.assert_allclose(table_of(folder)[p], melanomas[p], atol=1e-6)
    assert "Probabilities are not renormalised" in capsys.readouterr().out
    message = refused(capsys, 2, f"--run={run.info.run_id}", *argv, "--part=test")
    assert "expected at least 2" in message, "a split needs more"


def test_an_ensemble_is_the_mean_of_probabilities(run, artifacts, tmp_path, capsys):
    twin = tmp_path / "twin"  # the same run with other weights, of a version that wrote no digests
    shutil.copytree(artifacts, twin)
    (twin / "digests.csv").unlink()
    content = torch.load(twin / "checkpoints/best.ckpt", weights_only=True)
    bias = next(name for name in content["state_dict"] if name.startswith("head.") and name.endswith("bias"))
    content["state_dict"][bias] += torch.linspace(-2, 2, len(HAM10000_CLASSES))
    torch.save(content, twin / "checkpoints/best.ckpt")
    both, folder = evaluated("--run", run.info.run_id, str(twin), "--part=test")
    table, own = table_of(folder), table_of(artifacts)
    columns, logit = [f"p_{name}" for name in HAM10000_CLASSES], [f"logit_{name}" for name in HAM10000_CLASSES]
    shifted = own[logit].to_numpy() + np.linspace(-2, 2, len(HAM10000_CLASSES))
    other = np.exp(shifted - logsumexp(shifted, axis=1, keepdims=True))
    np.testing.assert_allclose(table[columns], (own[columns].to_numpy() + other) / 2, atol=1e-6)
    np.testing.assert_allclose(np.exp(table[logit]), table[columns], atol=1e-6)
    assert both.data.params["evaluated_runs"] == "2"
    assert both.data.params["digests"] == "false"
    assert both.data.tags["evaluated_run"] == f"{run.info.run_id} {twin}"
    assert (folder / "configs/1.yaml").is_file()
    printed = capsys.readouterr().out
    assert "pixels cannot be compared" in printed
    assert f"run {twin} has no digests.csv" in printed


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(RunError("the model gives NaN"), "FAILED", 1), (Interrupted(15), "KILLED", 143)],
)
def test_end_of_an_evaluation_is_recorded(run, monkeypatch, error, status, code):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(external, "predict_test", fail)
    before = connect(None).get_run(run.info.run_id).data.tags.get("evaluated_by", "")
    assert evaluate.main([f"--run={run.info.run_id}", "--part=test"]) == code
    newest = all_runs()[-1]
    assert newest.data.tags["kind"] == "evaluate"
    assert newest.info.status == status
    assert newest.data.tags["status_reason"]
    assert connect(None).get_run(run.info.run_id).data.tags.get("evaluated_by", "") == before


# ------------------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--run is missing"),
        (["--run=a", "--part=val"], "--part is 'val'; use one of all, test"),
        (["--run=a", "--data.split=70:30"], "--data.split requires --part test"),
        (["--run=a", "--prevalence=10"], "--prevalence is 10.0; expected a share"),
        (["--run", "a", "a"], "--run names a twice"),
        (["--run=a", "--map", "melanoma"], "--map is melanoma; expected TARGET=CLASS+CLASS"),
        (["--run=a", "--data.sise=3"], "--data.sise is not a known flag. Did you mean '--data.size'"),
        (["--run=a", "--model.tta=d4"], "--model.tta is not a known flag"),
    ],
)  # fmt: skip
def test_invalid_flags_are_refused(capsys, argv, message):
    assert evaluate.main(argv) == 2
    assert message in capsys.readouterr().err


def refused(capsys, code: int, *argv: str) -> str:
    count = len(all_runs())
    assert evaluate.main(list(argv)) == code
    assert len(all_runs()) == count, "no run was started"
    return capsys.readouterr().err


def test_runs_that_cannot_be_evaluated(run, capsys, tmp_path):
    assert "there is no such run" in refused(capsys, 1, "--run=0123")
    client = connect(None)
    other = client.create_run(run.info.experiment_id, tags={"kind": "compare"})
    assert "is RUNNING and not FINISHED" in refused(capsys, 1, f"--run={other.info.run_id}")
    client.set_terminated(other.info.run_id)
    assert "of kind 'compare', which contains no model" in refused(capsys, 1, f"--run={other.info.run_id}")
    empty = client.create_run(run.info.experiment_id, tags={"kind": "fit"})
    client.set_terminated(empty.info.run_id)
    assert "'config.yaml'" in refused(capsys, 1, f"--run={empty.info.run_id}")
    for one in (other, empty):
        client.delete_run(one.info.run_id)
    (tmp_path / "folder").mkdir()
    assert "the folder has no config.yaml" in refused(capsys, 1, f"--run={tmp_path / 'folder'}")


def test_preprocessing_is_fixed_by_the_run(run, capsys):
    message = refused(capsys, 2, f"--run={run.info.run_id}", "--data.size=64")
    assert "--data.size is fixed by the run to 32" in message


def test_classes_that_cannot_be_mapped_show_both_sets(run, capsys, tmp_path, tiny_demo):
    for name in ("melanocytic", "other"):
        (tmp_path / "own" / name).mkdir(parents=True)
        shutil.copy(next(tiny_demo.rglob("*.jpg")), tmp_path / "own" / name / "a.jpg")
    argv = [f"--run={run.info.run_id}", "--data.dataset=folder", f"--data.root={tmp_path / 'own'}"]
    message = refused(capsys, 2, *argv)
    for text in ("akiec, bcc, bkl, df, mel, nv, vasc", "melanocytic, other", "--map"):
        assert text in message
    assert "does not contain other" in refused(
        capsys, 2, *argv, "--map", "melanocytic=mel+nv", "rest=akiec+bcc+bkl+df+vasc"
    )


def test_data_of_training_images_alone_are_refused(run, artifacts, capsys, copies, tmp_path, tiny_demo):
    split = pd.read_csv(artifacts / "split.csv", dtype=str, keep_default_na=False).set_index("image_id")
    original = demo.read(tiny_demo)["image_id"].to_numpy()
    table = pd.read_csv(copies / "index.csv")
    table = table[split["role"][original].to_numpy() != "test"]
    shutil.copytree(copies, tmp_path / "seen")
    table.to_csv(tmp_path / "seen/index.csv", index=False)
    argv = [f"--run={run.info.run_id}", "--data.dataset=csv", f"--data.root={tmp_path / 'seen'}"]
    assert f"all {len(table)} images have been seen" in refused(capsys, 2, *argv)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.assign(p_mel=table["p_mel"] + 0.5),
            "the probabilities of 7 of 7 images are no numbers from 0 to 1 that sum to 1",
        ),
        (lambda table: table.drop(columns="p_mel"), "it has no column p_mel"),
        (lambda table: table.assign(label="melanoma"), "label melanoma is none of the classes"),
        (lambda table: table.assign(logit_mel=np.inf), "the logits of 7 images .* are not finite"),
    ],
)
def test_changed_predictions_are_refused(run, artifacts, tmp_path, change, message):
    folder = tmp_path / "run"
    shutil.copytree(artifacts, folder)
    table = table_of(folder, "predictions/val.csv")
    assert len(table) == 7
    change(table).to_csv(folder / "predictions/val.csv", index=False)
    with pytest.raises(RunError, match=message):
        external.load_fit(str(folder), RunStore(None))


# ----------------------------------------------------------------------------------------------------------- without any network


def images(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image_id", "lesion_id", "pixels"])


def test_used_images_are_recognised():
    split = images(("a", "L1", "p1"), ("b", "L2", "p2"), ("ISIC_1", "HAM_1", "p3"), ("t", "L4", "p4")).assign(
        role=["train", "val", "train", "test"]
    )
    new = images(
        ("a", "L9", "x"), ("n", "L2", "x"), ("c", "c", "p2"), ("d", "d", "p4"), ("t", "L4", "x"), ("ISIC_1", "y", "x"),
        ("ISIC_2", "HAM_1", "x"), ("b", "L2", "p1"),
    )  # fmt: skip
    assert find_overlap(new, split, True).tolist() == ["image", "lesion", "pixels", "", "", "image", "lesion", "pixels"]
    assert find_overlap(new, split, False).tolist() == ["", "", "pixels", "", "", "image", "lesion", "pixels"]
    assert find_overlap(new.drop(columns="pixels"), split, False).tolist()[2] == "", "no digests, no comparison"


def finished_run_of(tmp_path, masks_by=(), segmenter=None, **stored) -> FinishedRun:
    """Write the config and the mask sources of a run, without its other files."""
    content = Experiment().to_dict()
    for key, value in {"data.dataset": "ham10000", "training.monitor": "val/accuracy", **stored}.items():
        *sections, name = key.split(".")
        reduce(dict.__getitem__, sections, content)[name] = value
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    (folder / "config.yaml").write_text(dump_yaml(content))
    (folder / "crops.csv").write_text("\n".join(["masks", *masks_by]))
    if segmenter:
        shutil.copytree(segmenter, folder / "segmenter")
    return FinishedRun(folder)


def test_crops_have_the_mask_source_of_the_run(tmp_path):
    crop = {"data.crop": True, "data.crop_margin": 0.1}
    other = {"data.dataset": "malignant_vs_benign"}

    def masks(run, **flags):
        return external.plan(
            run, {**other, **{key.replace("__", "."): value for key, value in flags.items()}}
        ).data.masks

    assert masks(finished_run_of(tmp_path, **crop, masks_by={"truth", "empty"})) == "truth", "not Otsu's, unasked"
    assert masks(finished_run_of(tmp_path, **crop, masks_by={"truth", "otsu"})) == "auto"
    assert masks(finished_run_of(tmp_path, **crop, masks_by={"truth"}), data__masks="otsu") == "otsu"
    for name in ("config.yaml", "checkpoints/best.ckpt", "split.csv"):
        (tmp_path / "segmenter" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "segmenter" / name).touch()
    run = finished_run_of(tmp_path, **crop, **{"data.masks": "run:gone"}, segmenter=tmp_path / "segmenter")
    assert masks(run) == f"run:{run.folder / 'segmenter'}"
    assert external.plan(run, other).data.crop_margin == 0.1
    with pytest.raises(ConfigError, match=r"data.masks is 'otsu'; it is for data.crop true"):
        masks(finished_run_of(tmp_path), data__masks="otsu")


def test_other_data_do_not_inherit_keys_of_the_training_data(tmp_path):
    own = {"data.root": str(tmp_path), "data.groups": "groups.csv", "data.malignant": ["mel"], "data.skip_bad": True}
    run = finished_run_of(
        tmp_path, **own, **{"data.balance": "undersample", "data.target": "malignancy", "data.size": 96}
    )
    other = external.plan(run, {"data.dataset": "isic2018_task3"})
    assert (other.data.root, other.data.groups, other.data.malignant, other.data.skip_bad) == (None, None, [], False)
    assert (other.data.size, other.data.target, other.data.balance) == (96, "malignancy", "none")
    same = external.plan(run, {})
    assert (same.data.root, same.data.malignant) == (str(tmp_path), ["mel"])
    assert external.same_files(run, same)
    assert not external.same_files(run, other)
    gone = finished_run_of(tmp_path, **{"data.root": str(tmp_path / "gone")})
    assert external.plan(gone, {}).data.root is None, "trained on another machine"


def notes(run: FinishedRun, **flags) -> list[str]:
    planned = external.plan(run, {key.replace("__", "."): value for key, value in flags.items()})
    return [title for title, _ in external.Evaluation((run,), (planned,), (), (), pd.DataFrame(), True).notes]


def test_warnings_of_an_evaluation(tmp_path):
    run = finished_run_of(tmp_path)
    assert notes(run) == notes(run, data__dataset="isic2018_task3") == []
    assert notes(run, data__dataset="malignant_vs_benign") == ["this is no external validation"]
    other = finished_run_of(tmp_path, **{"data.dataset": "malignant_vs_benign"})
    assert notes(other, data__dataset="ham10000") == ["this is no external validation"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do it")
def test_an_unsupported_precision_is_replaced(tmp_path):
    run = finished_run_of(tmp_path, **{"trainer.precision": "16-mixed"})
    assert external.plan(run, {}).trainer.precision == "32"
    assert notes(run) == ["another precision"]


def test_folders_of_one_catalog_name_are_not_the_same_files(tmp_path):
    run = finished_run_of(tmp_path, **{"data.dataset": "folder", "data.root": str(tmp_path)})
    assert external.same_files(run, external.plan(run, {}))
    assert not external.same_files(run, external.plan(run, {"data.root": str(tmp_path.parent)}))


def test_data_of_another_task_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="isic2018_task1 is for segmentation, not for classification"):
        external.plan(finished_run_of(tmp_path), {"data.dataset": "isic2018_task1"})


def test_several_runs_are_evaluated_each_with_the_same_flags(run, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "other"
    shutil.copytree(files(run), folder)
    orders: list[Order] = []

    def work(order: Order) -> Result:
        orders.append(order)
        # The arguments are a command line of evaluate.
        return Result("complete") if evaluate.main(order.argv) == 0 else Result("failed", reason="exit code 1")

    monkeypatch.setattr(run_orders, "make_engine", lambda *_: StubEngine(work, workers=2))
    flags = [
        "--part=test",
        "--prevalence=0.1",
        "--plugin=json",
        MALIGNANT,
        "--map",
        "malignant=mel+bcc",
        "benign=nv+bkl+df+akiec+vasc",
    ]
    before = len(all_runs())
    assert evaluate.main(["--run", run.info.run_id, str(folder), "--each", "--workers=2", *flags]) == 0
    assert "--plugin=json" in orders[0].argv
    assert [order.argv[:2] for order in orders] == [("--run", run.info.run_id), ("--run", str(folder))]
    assert len(all_runs()) == before + 2
    assert "(2 of 2)" in capsys.readouterr().out
    newest = next(found for found in reversed(all_runs()) if found.data.tags["kind"] == "evaluate")
    assert set(table_of(files(newest))["label"]) <= {"0", "1", "malignant", "benign"}


@pytest.mark.slow
def test_runs_are_evaluated_in_their_own_processes(run, tmp_path, capsys):
    folder = tmp_path / "other"
    shutil.copytree(files(run), folder)
    before = len(all_runs())
    assert evaluate.main(["--run", run.info.run_id, str(folder), "--each", "--workers=2", "--part=test"]) == 0
    assert len(all_runs()) == before + 2
    assert "(2 of 2)" in capsys.readouterr().out
    assert evaluate.main(["--run", run.info.run_id, "0" * 32, "--each"]) == 1
    assert "there is no such run" in capsys.readouterr().err
    assert evaluate.main(["--run", run.info.run_id, "--workers=2"]) == 2
    assert "Add --each" in capsys.readouterr().err
