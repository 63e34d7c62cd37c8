"""Test compare on written runs: entries, pairs, differences, files and pages."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from stub_engine import StubEngine
from synthetic_runs import CLASSES, class_predictions, finished_fit, mask_predictions

from skincancer import compare
from skincancer.comparison import published, report, tables
from skincancer.comparison import request as request_module
from skincancer.comparison.entries import Entry
from skincancer.comparison.load import load_run
from skincancer.comparison.predictions import ClassScores
from skincancer.comparison.report import warnings
from skincancer.engines import run_orders
from skincancer.engines.orders import CONFIG, Order, Result
from skincancer.errors import ConfigError, RunError
from skincancer.metrics.names import is_mask_metric
from skincancer.runs.search import Query, find_runs, runs_by_id
from skincancer.runs.store import RunStore, connect
from skincancer.system.console import make_console

A, B = "densenet169_undersample", "resnet50_oversample"


@pytest.fixture
def quiet():
    console = make_console()
    console.quiet = True
    return console


def files(run_id, tmp_path):
    return Path(
        connect(None).download_artifacts(run_id, "", str(tmp_path / "got") if (tmp_path / "got").mkdir() else None)
    )


def balanced(predictions):
    return balanced_accuracy_score(predictions["label"], predictions["prediction"])


def test_a_table_of_two_experiments_and_three_splits(store, quiet, tmp_path, capsys):
    kept = {}
    for split, n in (("80:20", 200), ("70:30", 300), ("40:60", 600)):  # nested test sets: the first 200 are common
        for number, name in enumerate((A, B)):
            kept[name, split] = class_predictions(10 * number + n, n, 1.0 + 0.5 * number)
            finished_fit(name, kept[name, split], split=split, params={"train_images": 1000 - n})
    splits = ("80:20", "70:30", "40:60")
    run_id, _ = compare.compare(request_module.Request((A, B), splits, metrics=("balanced_accuracy", "auroc_macro")))
    text = capsys.readouterr().out
    assert "SYNTHETIC" in text.upper()
    assert "experiments against each other" in text

    found = files(run_id, tmp_path)
    table = pd.read_csv(found / "compare.csv").set_index(["metric", "experiment", "split"])
    for (name, split), predictions in kept.items():
        row = table.loc["balanced_accuracy", name, split]
        assert row["value"] == pytest.approx(balanced(predictions), abs=1e-8)
        assert row["common_value"] == pytest.approx(balanced(predictions[:200]), abs=1e-8)
        assert row["low"] < row["value"] < row["high"]
        assert (row["n_images"], row["common_images"]) == (len(predictions), 200)
        area = roc_auc_score(
            predictions["label"], predictions[[f"p_{c}" for c in CLASSES]], multi_class="ovr", labels=CLASSES
        )
        assert table.loc["auroc_macro", name, split]["value"] == pytest.approx(area, abs=1e-6)
    pairs = pd.read_csv(found / "compare_tests.csv")
    assert len(pairs) == 6  # three splits, two metrics
    first = pairs[(pairs["split"] == "70:30") & (pairs["metric"] == "balanced_accuracy")].iloc[0]
    assert first["difference"] == pytest.approx(balanced(kept[A, "70:30"]) - balanced(kept[B, "70:30"]), abs=1e-8)
    assert first["low"] <= first["difference"] <= first["high"]
    assert first["n_images"] == 300
    expected = np.maximum.accumulate(np.sort(pairs["p"][:3]) * [3, 2, 1]).clip(max=1)
    assert np.sort(pairs["p_holm"][:3]) == pytest.approx(expected)

    beside = pd.read_csv(found / "compare_published.csv")
    assert list(beside["published"]) == pytest.approx([0.912, 0.877, 0.828, 0.830, 0.809, 0.816])
    assert set(beside["data"]) == {"other data"}  # the demo is not HAM10000
    right = np.mean(kept[A, "80:20"]["label"] == kept[A, "80:20"]["prediction"])
    assert beside["ours"][0] == pytest.approx(right, abs=1e-8)

    page = (found / "compare.html").read_text()
    for words in ("SYNTHETIC DATA", "balanced accuracy", "82.9", "200 common images", "data:image/png"):
        assert words in page
    assert not re.search(r'(src|href)="https?:', page)
    assert {path.name for path in (found / "figures").iterdir()} == {
        "intervals.png", "roc.png", "calibration.png", "learning_curves.png", "training_size.png",
    }  # fmt: skip
    latex = (found / "compare.tex").read_text()
    assert r"densenet169\_undersample" in latex
    assert r"\toprule" in latex
    run = connect(None).get_run(run_id)
    assert (run.info.status, run.data.tags["kind"], run.data.params["compared"]) == ("FINISHED", "compare", "6")
    linked = pd.read_csv(found / "runs.csv")["run_id"]
    assert all(run in run_.data.tags["compared_runs"] for run_ in [run] for run in linked)
    assert f"/runs/{linked[0]})" in run.data.tags["mlflow.note.content"]


def load(experiment, split="80:20", metric="balanced_accuracy"):
    query = Query(experiment, split, {}, {})
    return Entry(
        experiment,
        split,
        tuple(load_run(RunStore(None), run, metric) for run in find_runs(RunStore(None), "demo", query)),
    )


def test_seeds_are_summarised_and_paired_by_their_means(store):
    scores = {}
    for name, strength in ((A, 1.0), (B, 1.6)):
        for seed in (0, 1, 2):
            scores[name, seed] = class_predictions(100 * seed + len(name), 300, strength)
            finished_fit(name, scores[name, seed], seed=seed)
    cells = [load(A), load(B)]
    table = tables.entries_table(cells, "balanced_accuracy").set_index("experiment")
    values = [balanced(scores[A, seed]) for seed in (0, 1, 2)]
    assert table.loc[A, "value"] == pytest.approx(np.mean(values), abs=1e-8)
    assert table.loc[A, "sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-8)
    assert table.loc[A, "seeds"] == "0 1 2"
    pair = tables.pairs_table(cells, "balanced_accuracy").iloc[0]
    other = [balanced(scores[B, seed]) for seed in (0, 1, 2)]
    assert pair["difference"] == pytest.approx(np.mean(values) - np.mean(other), abs=1e-8)
    assert pair["seed"] == 0
    assert 0 < pair["p"] < 0.001
    right = {name: (scores[name, 0]["label"] == scores[name, 0]["prediction"]).to_numpy() for name in (A, B)}
    lesion = scores[A, 0]["lesion_id"]
    net = pd.Series(right[A].astype(int) - right[B].astype(int)).groupby(lesion).sum()
    assert (pair["first_only"], pair["second_only"]) == ((net > 0).sum(), (net < 0).sum())


def test_tables_name_the_positive_class(store):
    for seed, name in enumerate((A, B)):
        finished_fit(name, class_predictions(seed, 60, 1.0, ("nevus", "melanoma")), classes=("nevus", "melanoma"))
    compared = tables.compare_entries([load(A), load(B)], ("sensitivity",), "folder")
    assert compared.table["positive"].tolist() == ["melanoma", "melanoma"]
    assert next(sheet.title for sheet in report.sheets(compared)).startswith("sensitivity (melanoma), each run")
    with pytest.raises(ConfigError, match="--metric is 'recall_macro'; for 2 classes it is called sensitivity"):
        tables.compare_entries([load(A)], ("recall_macro",), "folder")


def test_folds_are_pooled_out_of_fold(store):
    whole = class_predictions(3, 300, 1.2)
    for fold in range(3):
        finished_fit(A, whole[fold::3], split=f"fold:{fold}/3")
    table = tables.entries_table([load(A, "fold:*/3")], "balanced_accuracy")
    assert table["value"][0] == pytest.approx(balanced(whole), abs=1e-8)
    assert table["n_images"][0] == 300
    assert np.isnan(table["sd"][0])  # folds are no seeds


def test_a_missing_fold_is_named(store):
    whole = class_predictions(3, 90, 1.2)
    for fold in (0, 2):
        finished_fit(A, whole[fold::3], split=f"fold:{fold}/3")
    with pytest.raises(RunError, match=r"2 of 3 folds are there \(fold:0/3, fold:2/3\)"):
        _ = load(A, "fold:*/3").scores


def test_masks_are_compared_by_their_means(store, quiet, tmp_path):
    first, second = mask_predictions(0, 80, 0.8), mask_predictions(1, 80, 0.7)
    finished_fit("unet_resnet34", first, classes=())
    finished_fit("fcn_resnet50", second, classes=())
    run_id, _ = compare.compare(request_module.Request(("unet_resnet34", "fcn_resnet50")), console=quiet)
    found = files(run_id, tmp_path)
    pair = pd.read_csv(found / "compare_tests.csv").iloc[0]
    assert pair["metric"] == "jaccard"
    assert pair["difference"] == pytest.approx(first["jaccard"].mean() - second["jaccard"].mean(), abs=1e-8)
    assert "mcnemar_p" not in pair
    assert not (found / "figures/roc.png").exists()


def test_newest_run_of_a_seed_with_the_flags_counts(store):
    old = finished_fit(A, class_predictions(1, 60, 1.0), flags={"data.size": 48})
    new = finished_fit(A, class_predictions(2, 60, 1.0))
    assert [run.info.run_id for run in find_runs(RunStore(None), "demo", Query(A, "80:20", {}, {}))] == [new]
    assert [run.info.run_id for run in find_runs(RunStore(None), "demo", Query(A, "80:20", {}, {"data.size": 48}))] == [
        old
    ]
    assert find_runs(RunStore(None), "demo", Query(A, "80:20", {}, {}, seeds=(7,))) == []
    assert find_runs(RunStore(None), "ham10000", Query(A, "80:20", {}, {})) == []


def test_runs_of_several_pages_are_found(store, monkeypatch):
    monkeypatch.setattr("skincancer.runs.search.PAGE", 2)
    given = [finished_fit(A, class_predictions(seed, 30, 1.0), seed=seed) for seed in range(5)]
    assert [run.info.run_id for run in find_runs(RunStore(None), "demo", Query(A, "80:20", {}, {}))] == given


def test_explicit_runs_replace_others_and_have_distinct_names(store, quiet, tmp_path):
    old = finished_fit(A, class_predictions(1, 60, 1.0))
    new = finished_fit(A, class_predictions(2, 60, 1.0))
    run_id, _ = compare.compare(request_module.Request((A,), runs=(old,)), console=quiet)
    assert connect(None).get_run(run_id).data.tags["compared_runs"] == old
    run_id, _ = compare.compare(request_module.Request(runs=(old, new)), console=quiet)
    table = pd.read_csv(files(run_id, tmp_path) / "compare.csv")
    assert list(table["experiment"]) == [f"{A} {old[:8]}", f"{A} {new[:8]}"]


def test_explicit_runs_of_other_settings_are_separate_entries(store, quiet, tmp_path):
    slow = [finished_fit(A, class_predictions(seed, 60, 1.0), seed=seed, params={"lr": "0.001"}) for seed in (0, 1)]
    fast = [finished_fit(A, class_predictions(seed, 60, 2.0), seed=seed, params={"lr": "0.1"}) for seed in (0, 2)]
    run_id, _ = compare.compare(request_module.Request(runs=(*slow, *fast)), console=quiet)
    table = pd.read_csv(files(run_id, tmp_path) / "compare.csv").set_index("experiment")
    assert table["seeds"].to_dict() == {f"{A} (lr 0.001)": "0 1", f"{A} (lr 0.1)": "0 2"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"params": {"split_seed": 1}}, "split seeds differ"),
        ({"tags": {"groups_hash": "merged"}}, "groups of lesions differ"),
        ({"classes": CLASSES[:-1]}, "classes differ"),
    ],
)
def test_runs_that_cannot_be_paired_are_not_tested(store, capsys, changed, said):
    few = changed.get("classes", CLASSES)
    one = finished_fit(A, class_predictions(1, 60, 1.0))
    two = finished_fit(B, class_predictions(1, 60, 1.0, few), **changed)
    compare.compare(request_module.Request(runs=(one, two)))
    text = capsys.readouterr().out
    assert f"Nothing could be paired: their {said}" in text
    assert "experiments against each other" not in text


def test_no_common_images(store, capsys):
    one = finished_fit(A, class_predictions(1, 60, 1.0))
    two = finished_fit(B, class_predictions(1, 60, 1.0, first=1000))
    compare.compare(request_module.Request(runs=(one, two)))
    assert "no test image is common to all of them" in capsys.readouterr().out


def test_differences_between_runs_are_reported(store, capsys):
    one = finished_fit(A, class_predictions(1, 60, 1.0), params={"size": 128, "weights": "imagenet"})
    two = finished_fit(B, class_predictions(1, 60, 1.0)[lambda t: t["label"] != "df"], tags={"index_hash": "other"})
    three = finished_fit(B, class_predictions(1, 60, 1.0), seed=1, params={"monitor": "val/accuracy"})
    compare.compare(request_module.Request(runs=(one, two, three)))
    text = capsys.readouterr().out
    for words in (
        "image size differs: 128",
        "first weights differs",
        "index of images differs",
        "no test image of df",
        "its runs differ in monitor",
    ):
        assert words in text


def test_different_labels_of_an_image_are_refused(store, quiet):
    predictions = class_predictions(1, 60, 1.0)
    other = predictions.copy()
    other.loc[5, "label"] = "mel" if other.loc[5, "label"] != "mel" else "nv"
    runs = (finished_fit(A, predictions), finished_fit(B, other))
    with pytest.raises(RunError, match="other labels or lesions"):
        compare.compare(request_module.Request(runs=runs), console=quiet)


def broken(predictions, column, value):
    predictions = predictions.copy()
    predictions.loc[3, column] = value
    return predictions


@pytest.mark.parametrize(
    ("predictions", "more", "said"),
    [
        (class_predictions(0, 30, 1), {"leave_out": ["predictions/test.csv"]}, "no artifact 'predictions/test.csv'"),
        (mask_predictions(0, 30, 0.8), {}, "no column label"),
        (broken(class_predictions(0, 30, 1), "p_nv", 0.9), {}, "that sum to 1, such as image IMG_000003"),
        (broken(class_predictions(0, 30, 1), "label", "wart"), {}, "label wart is none of the classes"),
    ],
)
def test_a_run_that_cannot_be_read_is_named(store, quiet, predictions, more, said):
    run_id = finished_fit(A, predictions, **more)
    with pytest.raises(RunError, match=f"run {run_id}.*{said}"):
        compare.compare(request_module.Request((A,)), console=quiet)


def test_explicit_runs_must_be_finished_fits(store):
    client = connect(None)
    with pytest.raises(RunError, match="there is no such run"):
        runs_by_id(RunStore(None), ["0" * 32])
    running = client.create_run(client.create_experiment("x"), tags={"kind": "fit"}).info.run_id
    with pytest.raises(RunError, match="is RUNNING and not FINISHED"):
        runs_by_id(RunStore(None), [running])
    client.set_terminated(running)
    client.set_tag(running, "kind", "sweep")
    with pytest.raises(RunError, match="of kind 'sweep'"):
        runs_by_id(RunStore(None), [running])
    with pytest.raises(RunError, match="names a run twice"):
        runs_by_id(RunStore(None), [running, running])


def test_deleted_runs_are_not_used(store, quiet):
    run_id = finished_fit(A, class_predictions(1, 30, 1.0))
    connect(None).delete_run(run_id)
    with pytest.raises(RunError, match=f"run {run_id}.*deleted"):
        runs_by_id(RunStore(None), [run_id])
    with pytest.raises(RunError, match="no finished run"):
        compare.compare(request_module.Request((A,)), console=quiet)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--experiments is missing"),
        (["--experiments", "densnet169_undersample"], "Did you mean 'densenet169_undersample'"),
        (["--experiments", A, "--splits", "80:30"], "do not add up to 100"),
        (["--experiments", A, "--metric", "balanced_acuracy"], "Did you mean 'balanced_accuracy'"),
        (["--experiments", A, "--metric", "accuracy", "jaccard"], "some are of masks and some of classes"),
        (["--experiments", A, "--data.split", "70:30"], "is not a flag of compare; use --splits"),
        (["--experiments", A, "--data.siez", "70"], "data.siez is not a known flag"),
        (["--experiments", A, "--dataset", "ham1000"], "Did you mean 'ham10000'"),
        (["--experiment", A], "are not flags of compare; use --experiments"),
        (["--experiments", A, "--workers", "2"], "Add --run-missing"),
        (["--experiments", A, "--run-missing", "--gpus-per-trial", "3"], "--gpus-per-trial is 3.0"),
        (["--experiments", A], "no finished run of densenet169_undersample 80:20 on demo"),
    ],
)
def test_invalid_flags_are_refused(store, capsys, arguments, said):
    assert compare.main(arguments) in (1, 2)
    assert said in capsys.readouterr().err


def test_missing_runs_are_reported_and_others_compared(store, capsys):
    finished_fit(A, class_predictions(1, 60, 1.0))
    assert compare.main(["--experiments", A, B, "--splits", "80:20", "70:30"]) == 0
    assert f"{A} 70:30, {B} 80:20, {B} 70:30 are left out" in capsys.readouterr().out


def with_engine(monkeypatch, work) -> None:
    """Let a function do the work of the fits of missing runs. A slow test runs fit itself."""
    monkeypatch.setattr(run_orders, "make_engine", lambda *_: StubEngine(work, workers=2))


def test_missing_runs_are_trained_with_the_flags_and_once(store, monkeypatch, quiet, tmp_path):
    trained = []

    def train(order: Order) -> Result:
        assert order.argv == ("--experiment", CONFIG)
        content = yaml.safe_load(order.config)
        assert content["data"]["size"] == 48
        assert content["tracking"]["uri"] is None, "it may contain a password"
        name, split, seed = content["name"], content["data"]["split"], content["seed"]
        trained.append((name, split, seed))
        if split == "70:30" and name == B:
            return Result("failed", reason="exit code 1: no space left")
        finished_fit(name, class_predictions(len(trained), 60, 1.0), split=split, seed=seed, flags={"data.size": 48})
        return Result("complete")

    with_engine(monkeypatch, train)
    request = request_module.Request((A, B), ("80:20", "70:30"), flags={"data.size": 48})
    with pytest.raises(
        RunError, match=r"(?s)1 of 4 missing runs failed.*resnet50_oversample 70:30 s0: exit code 1: no space left"
    ):
        compare.compare(request, run_missing=True, console=quiet)
    assert trained == [(A, "80:20", 0), (A, "70:30", 0), (B, "80:20", 0), (B, "70:30", 0)]
    trained.clear()
    two = request_module.Request((A,), ("80:20",), seeds=(0, 4), flags={"data.size": 48})
    compare.compare(two, run_missing=True, console=quiet)
    assert trained == [(A, "80:20", 4)]


def test_names_are_escaped(store, quiet, tmp_path):
    path = tmp_path / '<b>a, "b" & é_$x.yaml'
    path.write_text("task: classification\n")
    finished_fit(str(path), class_predictions(1, 60, 1.0))
    run_id, _ = compare.compare(request_module.Request((str(path),), metrics=("accuracy",)), console=quiet)
    found = files(run_id, tmp_path)
    page = (found / "compare.html").read_text()
    assert "<b>a" not in page
    assert "&lt;b&gt;a" in page
    assert r"\& é\_\$x" in (found / "compare.tex").read_text()
    with (found / "compare.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["experiment"] == path.stem


@pytest.mark.slow
def test_a_missing_run_is_trained(tiny_demo, store, capfd):
    flags = [
        "--data.root",
        str(tiny_demo),
        "--data.size",
        "32",
        "--model.backbone",
        "test_efficientnet",
        "--model.weights",
        "none",
    ]
    flags += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--tracking.system_metrics", "false"]
    assert compare.main(["--experiments", A, "--run-missing", *flags]) == 0
    assert "each run on its own test images" in capfd.readouterr().out
    assert compare.main(["--experiments", A, *flags]) == 0
    assert "training" not in capfd.readouterr().out.split("runs")[0]


@pytest.mark.parametrize(
    ("metric", "masks"),
    [
        ("jaccard", True),
        ("mask_sensitivity", True),
        ("sensitivity", False),
        ("accuracy", False),
        ("recall/nv", False),
        ("hd95", True),
    ],
)
def test_metrics_of_masks_and_of_classes(metric, masks):
    assert is_mask_metric(metric) is masks


def test_published_figures_keep_contradictions():
    (line,) = published.protocols(["first study"])
    for words in ("82.9", "80.3 (F1 80.8)", "81.2 (F1 81.56)", "10.1109/ACCESS.2023.3274848"):
        assert words in line
    cells = pd.DataFrame(
        [
            {
                "experiment": "vgg16_frozen",
                "split": "official",
                "metric": "accuracy",
                "value": 0.88,
                "low": 0.85,
                "high": 0.91,
                "departures": "",
            }
        ]
    )
    table = published.published_table(cells, "malignant_vs_benign")
    row = table.iloc[0]
    assert (row["published"], row["data"], row["remark"]) == (0.98, "malignant_vs_benign", "49 of 50 images")
    # Wilson's interval by hand
    p, n, z = 0.98, 50, 1.959963985
    centre, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n),
    )
    assert (row["published_low"], row["published_high"]) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_sensitivity_of_two_tasks_is_refused(store, quiet):
    finished_fit("unet_resnet34", mask_predictions(0, 30, 0.8), classes=())
    with pytest.raises(RunError, match="cannot be compared by accuracy"):
        compare.compare(request_module.Request(("unet_resnet34",), metrics=("accuracy",)), console=quiet)


def test_an_out_folder_that_cannot_be_made(store, quiet, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out"):
        compare.compare(request_module.Request((A,)), out=tmp_path / "file" / "out", console=quiet)


def two_classes(label, right):
    """Return probabilities that predict the label if `right`, otherwise the other class."""
    prediction = np.where(right, label, 1 - np.asarray(label))
    return np.where(prediction[:, None] == [0, 1], 0.9, 0.1)


def model_difference(metric, label, first, second, groups):
    names = np.array([f"{number:05}" for number in range(len(label))], dtype=object)
    lesions = np.asarray(groups, dtype=object)
    one, other = (ClassScores(names, lesions, label, p, ("benign", "malignant")) for p in (first, second))
    return tables.paired_difference(metric, [one], [other])


def test_difference_of_accuracies_has_the_interval_of_paired_proportions():
    rng = np.random.default_rng(5)
    label = np.repeat([0, 1], 1500)
    hard = rng.random(3000) < 0.4  # what is hard for one is hard for the other
    first = ~(hard & (rng.random(3000) < 0.5))
    second = ~(hard & (rng.random(3000) < 0.6))
    groups = [str(number) for number in range(3000)]
    value, low, high, _ = model_difference(
        "accuracy", label, two_classes(label, first), two_classes(label, second), groups
    )
    assert value == pytest.approx(first.mean() - second.mean())
    # Wald's interval of paired proportions, from the images on which the two differ, in each stratum
    difference = first.astype(float) - second.astype(float)
    error = np.sqrt(sum(difference[label == side].var() * 1500 for side in (0, 1))) / 3000
    assert low == pytest.approx(value - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.1 * error)
    unpaired = np.sqrt((first.var() + second.var()) / 3000)
    assert high - low < 0.9 * 2 * 1.96 * unpaired, "the pairing must narrow it"


def test_difference_of_a_model_and_itself_is_nothing_and_changes_sign_with_the_order():
    rng = np.random.default_rng(6)
    label = rng.integers(0, 2, 200)
    groups = rng.integers(0, 80, 200).astype(str)
    first, second = (two_classes(label, rng.random(200) < share) for share in (0.9, 0.7))
    for metric in ("balanced_accuracy", "auroc_macro"):
        assert model_difference(metric, label, first, first, groups) == (0, 0, 0, 1)
        value, low, high, p = model_difference(metric, label, first, second, groups)
        again = model_difference(metric, label, second, first, groups)
        assert again == pytest.approx((-value, -high, -low, p), abs=0.002)
        assert low < value < high


def test_difference_of_an_unknown_metric_is_refused():
    label = np.array([0, 1, 0, 1])
    p = two_classes(label, np.array([True, True, False, True]))
    with pytest.raises(ValueError, match=r"metric is 'acuracy'; expected one of accuracy, balanced_accuracy"):
        model_difference("acuracy", label, p, p, ["a", "b", "c", "d"])


def test_explicit_segmenters_are_compared_by_their_metric(store, quiet, tmp_path):
    runs = tuple(
        finished_fit("unet_resnet34", mask_predictions(seed, 20, 0.8), classes=(), seed=seed) for seed in (0, 1)
    )
    run_id, _ = compare.compare(request_module.Request(runs=runs), console=quiet)
    assert set(pd.read_csv(files(run_id, tmp_path) / "compare.csv")["metric"]) == {"jaccard"}
    classifier = finished_fit(A, class_predictions(1, 30, 1.0))
    with pytest.raises(ConfigError, match="the tasks are segmentation, classification, which have no metric in common"):
        compare.compare(request_module.Request(runs=(runs[0], classifier)), console=quiet)


def test_missing_folds_of_each_seed_are_trained(store, monkeypatch, quiet):
    whole = class_predictions(3, 90, 1.2)
    finished_fit(A, whole[0::3], split="fold:0/3", seed=4)
    trained = []

    def train(order: Order) -> Result:
        content = yaml.safe_load(order.config)
        split, seed = content["data"]["split"], content["seed"]
        trained.append((split, seed))
        finished_fit(A, whole[int(split[5]) :: 3], split=split, seed=seed)
        return Result("complete")

    with_engine(monkeypatch, train)
    compare.compare(request_module.Request((A,), ("fold:*/3",)), run_missing=True, console=quiet)
    assert trained == [("fold:1/3", 4), ("fold:2/3", 4)]


def test_deviations_from_the_experiment_are_reported(store, capsys, tmp_path):
    """Metrics of another backbone must not be called DenseNet169 next to published ones."""
    finished_fit(
        A, class_predictions(1, 60, 1.0), params={"backbone": "resnet18", "balance": "undersample", "lr": 0.001}
    )
    finished_fit(B, class_predictions(2, 60, 1.0), params={"backbone": "resnet50", "balance": "oversample"})
    run_id, _ = compare.compare(request_module.Request((A, B), metrics=("accuracy",)))
    said = f"{A} deviates from its file: backbone resnet18 instead of densenet169 (80:20)"
    text = capsys.readouterr().out
    assert said in text
    assert f"{B} deviates" not in text
    table = pd.read_csv(files(run_id, tmp_path) / "compare_published.csv", keep_default_na=False)
    assert list(table["remark"]) == ["ours: backbone resnet18 instead of densenet169", ""]


def test_classical_runs_have_no_deviations(store, capsys):
    """Their backbone is the classifier, and hand-crafted features have their own size."""
    made = {
        "svm_features": {"backbone": "svm", "size": 256, "masks": "auto"},
        "svm_deep": {"backbone": "svm", "size": 64},
        "knn_features": {"backbone": "svm", "size": 256, "masks": "auto"},
    }
    for number, (name, params) in enumerate(made.items()):
        finished_fit(name, class_predictions(number, 60, 1.0), params=params)
    compare.compare(request_module.Request(tuple(made), metrics=("accuracy",)))
    text = capsys.readouterr().out
    assert "knn_features deviates from its file: backbone svm instead of knn" in text
    assert "svm_features deviates" not in text
    assert "svm_deep deviates" not in text
    assert "masks of crops or features differs" not in text


def test_an_out_file_is_refused_before_the_search(tmp_path, store, capsys):
    (tmp_path / "file").write_text("precious")
    assert compare.main(["--runs", "a", "b", f"--out={tmp_path / 'file'}"]) == 2
    assert f"--out is {tmp_path / 'file'}, a file; expected a folder. Use a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"


def test_unknown_lesions_of_the_test_images_are_reported():
    def comparison(*lesions):
        scores = SimpleNamespace(image_id=np.array(["a", "b"], object), lesion_id=np.array(lesions, object))
        entry = SimpleNamespace(scores=[scores, scores])
        return SimpleNamespace(entries=[entry, entry], synthetic=False, obstacle="", differences=[])

    assert warnings(comparison("L1", "L2")) == []
    [text] = warnings(comparison("a", "b"))
    assert text.startswith("Lesions of the test images: the data have no lesion ids")
    [text] = warnings(comparison("L1", "b"))
    assert text.startswith("Lesions of the test images: 1 of 2 images have no lesion id")
