"""Two classes: fit, evaluation, report and comparison use and name the positive class."""

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY_FIT, all_runs, finished_run
from pictures import picture
from sklearn.metrics import average_precision_score, precision_score, recall_score

from skincancer import evaluate, fit
from skincancer.runs.store import connect

FIT = ["--experiment=efficientnet_lite0", "--data.dataset=folder", *TINY_FIT, "--trainer.max_epochs=1"]


def make_folder(root: Path, *classes: str) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for seed in range(24):
            picture(1000 * number + seed, (40, 40)).save(root / name / f"{name}_{seed}.png")
    return root


@pytest.fixture(scope="module")
def moles(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("moles"), "melanoma", "nevus")


@pytest.fixture(scope="module")
def finished(moles, session_cache, tmp_path_factory):
    with finished_run(session_cache, tmp_path_factory.mktemp("finished"), *FIT, f"--data.root={moles}") as found:
        yield found


def artifact(run, name: str) -> Path:
    return Path(connect(None).download_artifacts(run.info.run_id, name))


def test_figures_are_of_the_malignant_class(run):
    content = json.loads(artifact(run, "classes.json").read_text())
    assert content == {"classes": ["nevus", "melanoma"], "malignant": [], "positive": "melanoma"}
    table = pd.read_csv(artifact(run, "predictions/test.csv"))
    expected = {
        "sensitivity": recall_score(table["label"], table["prediction"], pos_label="melanoma"),
        "specificity": recall_score(table["label"], table["prediction"], pos_label="nevus"),
        "precision": precision_score(table["label"], table["prediction"], pos_label="melanoma", zero_division=0),
        "average_precision": average_precision_score(table["label"] == "melanoma", table["p_melanoma"]),
    }
    assert {name: run.data.metrics[f"test/{name}"] for name in expected} == pytest.approx(expected)
    assert "test/average_precision_macro" not in run.data.metrics


def test_tables_name_the_positive_class(run, moles, capsys):
    page = artifact(run, "report.html").read_text()
    for title in ("sensitivity (melanoma)", "specificity (melanoma)", "average precision (melanoma)"):
        assert title in page
    assert evaluate.main(["--run", run.info.run_id]) == 0
    printed = capsys.readouterr().out
    assert "the positive class is melanoma" in printed
    assert "sensitivity (melanoma)" in printed
    evaluation = all_runs()[-1]
    assert evaluation.data.params["positive"] == "melanoma"
    validation = pd.read_csv(artifact(run, "predictions/val.csv"))
    positives = validation.loc[validation["label"] == "melanoma", "p_melanoma"]
    # Of fewer than twenty positives, 95 % sensitivity needs every one.
    assert len(positives) < 20
    assert evaluation.data.metrics["threshold_at_95_sensitivity"] == pytest.approx(positives.min())


def test_other_data_map_by_name(run, tmp_path):
    root = make_folder(tmp_path / "other", "Melanoma", "Nevus")
    argv = ["--run", run.info.run_id, "--near_duplicates=keep", "--data.dataset=folder", f"--data.root={root}"]
    assert evaluate.main(argv) == 0
    table = pd.read_csv(artifact(all_runs()[-1], "predictions/test.csv"))
    assert set(table["label"]) == {"nevus", "melanoma"}
    assert (table["label"].str.capitalize() == table["image_id"].str.split("/").str[0]).all()


def test_fit_asks_where_names_do_not_decide(tmp_path, capsys):
    root = make_folder(tmp_path / "data", "a", "b")
    assert fit.main([*FIT, f"--data.root={root}"]) == 2
    assert "Set --data.positive to 'a' or 'b'" in " ".join(capsys.readouterr().err.split())
    assert not all_runs()


@pytest.mark.parametrize("flag", ["--data.malignant=[1]", "--data.positive=1", "--data.positive=0"])
def test_labels_may_be_numbers(tmp_path, flag):
    root = make_folder(tmp_path / "data", "0", "1")
    assert fit.main([*FIT, f"--data.root={root}", flag, "--trainer.limit_train_batches=1"]) == 0
    (run,) = all_runs()
    content = json.loads(artifact(run, "classes.json").read_text())
    assert content["positive"] == flag[-1].replace("]", "1")
    assert content["malignant"] == (["1"] if "malignant" in flag else [])
    assert content["classes"][1] == content["positive"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.malignant=[melanoma, nevus]"], "contains every class"),
        (["--data.positive=nevi"], "expected one of the classes melanoma, nevus"),
        (["--data.positive=nevus", "--data.malignant=[melanoma]"], "'melanoma' is the malignant class"),
        (["--training.monitor=val/recall_macro"], "for 2 classes it is called val/sensitivity"),
    ],
)
def test_fit_refuses_before_training(moles, flags, message, capsys):
    assert fit.main([*FIT, f"--data.root={moles}", *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not all_runs()
