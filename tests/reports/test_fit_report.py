"""Test report.html of written runs: sections of every task, escaped strings, no requests."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from html_pages import asks_for_nothing, read
from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunInputs, RunTag
from PIL import Image

from skincancer.metrics.names import MASK_METRICS
from skincancer.reports.fit_report import NO_DEVICE, write_report
from skincancer.runs.artifacts import REPORT_FILE
from skincancer.schema.data import DataConfig
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import ModelConfig
from skincancer.system.yaml_files import dump_yaml

NASTY = "<script>alert(1)</script>,\"'& $x$ 皮膚"
ID = "0" * 31 + "7"
CLASSES = {"classification": ["<b>nv</b>", "mel, \"x\""], "joint": ["<b>nv</b>", "mel, \"x\""], "segmentation": []}  # fmt: skip


def entities(params, tags, metrics=None):
    info = RunInfo(ID, "1", "me", "RUNNING", 1_790_000_000_000, None, "active", artifact_uri="")
    data = RunData(
        [Metric(name, value, 0, 0) for name, value in (metrics or {}).items()],
        [Param(name, value) for name, value in params.items()], [RunTag(name, value) for name, value in tags.items()],
    )  # fmt: skip
    return Run(info, data, RunInputs([]))


@pytest.fixture
def write_run(tmp_path):
    """A function that writes a run and returns its folder and record."""

    def write(task="classification", params=None, tags=None, metrics=None, **data):
        folder, rng, classes = tmp_path / task, np.random.default_rng(0), CLASSES[task]
        (folder / "predictions").mkdir(parents=True)
        (folder / "figures").mkdir()
        settings = DataConfig(**({"dataset": "ham10000", "size": 64} | data))
        model = ModelConfig(architecture="" if task == "classification" else "unet")
        experiment = Experiment(name=NASTY, description=NASTY, task=task, data=settings, model=model)
        (folder / "config.yaml").write_text(dump_yaml(experiment.to_dict()), encoding="utf-8")
        (folder / "classes.json").write_text(json.dumps({"classes": classes}))
        ids = [f"{NASTY} {number}" if number % 10 == 0 else f"{number:03d}" for number in range(200)]
        ids[151] = "NA"
        lesions = [f"<i>lesion</i> {number // 2}" for number in range(200)]
        roles = np.repeat(["train", "val", "test", ""], [100, 20, 76, 4])
        label = rng.integers(0, max(1, len(classes)), 200)
        split = pd.DataFrame({"image_id": ids, "lesion_id": lesions, "diagnosis": "", "label": label, "role": roles})
        split.to_csv(folder / "split.csv", index=False)
        test = split[split["role"] == "test"].reset_index(drop=True)
        table = test[["image_id", "lesion_id"]].copy()
        if classes:
            p = rng.dirichlet(np.ones(2), len(test))
            table["label"], table["prediction"] = np.array(classes)[test["label"]], np.array(classes)[p.argmax(1)]
            table[[f"p_{name}" for name in classes]] = p
        prefix = "mask_" if task == "joint" else ""
        if task != "classification":
            for name in MASK_METRICS:
                table[prefix + name] = rng.random(len(test))
        if task == "joint":  # images of which only one is known
            table.loc[::5, "label"] = ""
            table.loc[1::5, [prefix + name for name in MASK_METRICS]] = np.nan
        table.to_csv(folder / "predictions/test.csv", index=False)
        intervals = pd.DataFrame({"metric": ["accuracy", NASTY], "value": [0.8125, np.nan], "low": [0.7, np.nan],
                                  "high": [0.9, np.nan], "n_resamples": [2000, 0]})  # fmt: skip
        intervals.to_csv(folder / "intervals.csv", index=False)
        pd.DataFrame({"epoch": [1, 2]}).to_csv(folder / "epochs.csv", index=False)
        pd.DataFrame({"image_id": ids[-4:], "reason": NASTY}).to_csv(folder / "dropped.csv", index=False)
        (folder / "environment.txt").write_text(f"# Python 3.11, {NASTY}\ntorch==2.0\n{NASTY}==1\n", encoding="utf-8")
        names = [
            "learning_curves",
            *(["confusion_matrix", "roc", "precision_recall", "reliability", "errors"] if classes else []),
        ]
        names += ["jaccard_histogram", "overlays"] if task != "classification" else []
        for name in names:
            Image.new("RGB", (30, 20), "navy").save(folder / f"figures/{name}.png")
        if classes:
            wrong = table[(table["label"] != table["prediction"]) & (table["label"] != "")]
            errors = wrong[["image_id", "lesion_id", "label", "prediction"]].assign(
                p_label=0.0001, p_prediction=0.9999, loss=9.21
            )
            errors.to_csv(folder / "errors.csv", index=False)
            attention = table[["image_id", "lesion_id"]].assign(sample=True, attention_in_mask=0.5, mask_share=0.25)
            attention.insert(2, "class", table["prediction"])
            attention.to_csv(folder / "attention.csv", index=False)
            groups = pd.DataFrame({"attribute": NASTY, "group": ["a", "a", "b"], "n_images": [40, 40, np.nan],
                                   "n_lesions": ["30", "30", "<20"], "metric": ["accuracy", "auroc", np.nan],
                                   "value": [0.5, 0.625, np.nan], "low": [0.4, np.nan, np.nan], "high": [0.6, np.nan, np.nan]})  # fmt: skip
            groups.to_csv(folder / "subgroups.csv", index=False)
        known = {"weights": NASTY, "loss": "cross_entropy"} | (params or {})
        marked = {"git_commit": NASTY, "git_dirty": "true", "device": NASTY, "index_hash": "abc"} | (tags or {})
        run = entities(known, marked, {"best_epoch": 2.0, "images_seen": 1234.0, **(metrics or {})})
        return folder, run

    return write


def thumbnails(image_ids):
    return {name: np.full((8, 8, 3), 99, np.uint8) for name in image_ids if not name.endswith("1")}


HEADINGS = {
    "classification": ["Results", "Data", "Training", "Classes", "Calibration", "Subgroups", "Errors", "Predictions"],
    "segmentation": ["Results", "Data", "Training", "Masks", "Errors", "Predictions"],
    "joint": ["Results", "Data", "Training", "Classes", "Calibration", "Masks", "Subgroups", "Errors", "Predictions"],
}
LAST = ["Configuration", "Environment", "Data licence and citation"]


@pytest.mark.parametrize("task", HEADINGS)
def test_all_sections_exist_and_strings_are_escaped(write_run, task):
    folder, run = write_run(task)
    path = write_report(folder, run, thumbnails)
    assert path == folder / REPORT_FILE
    page = read(path)
    assert page.of("h2") == [*HEADINGS[task], *LAST]
    assert asks_for_nothing(page)
    assert {tag for tag, _ in page.tags}.isdisjoint({"b", "i"})
    text = " ".join(page.texts)
    # the name in the title, the metric, the dropped reason, an id, weights, commit, device, the description, environment
    assert text.count(NASTY) > 8
    assert "<b>nv</b>" in text or task == "segmentation"
    assert NO_DEVICE in page.texts
    assert "CC BY-NC 4.0" in text
    assert "Sci Data 5, 180161" in text
    assert not page.of("p", "band")
    assert "WITH CHANGES THAT ARE NOT COMMITTED" in text
    assert "1,234" in text


def test_unknown_values_of_an_image_are_dashes(write_run):
    folder, run = write_run("joint")
    rows = [row for row in read(write_report(folder, run, thumbnails)).rows() if len(row) == 8 and row[0] in ("", "–")]
    unlabelled = [row for row in rows if row[2] == "–"]
    unmasked = [row for row in rows if row[-1] == "–"]
    assert 0 < len(unlabelled) < 30
    assert 0 < len(unmasked) < 30
    assert all((row[3], row[6]) == ("–", "–") and row[4] in CLASSES["joint"] for row in unlabelled)


def test_numbers_are_those_of_the_files(write_run):
    folder, run = write_run()
    page = read(write_report(folder, run, thumbnails))
    rows = page.rows()
    split = pd.read_csv(folder / "split.csv", keep_default_na=False)
    for number, name in enumerate(CLASSES["classification"]):
        counted = []
        for role in ("train", "val", "test"):
            chosen = split[(split["role"] == role) & (split["label"] == number)]
            counted += [str(len(chosen)), str(chosen["lesion_id"].nunique())]
        assert [name, *counted] in rows
    assert ["accuracy", "0.812", "0.700 – 0.900"] in rows
    assert [NASTY, "–", "–"] in rows
    assert ["lesions with images in more than one role (split.csv)", "0 of 98"] in rows
    assert [NASTY, "a", "40", "30", "0.500 [0.400, 0.600]", "0.625"] in rows
    assert f"Not shown, because of few lesions: {NASTY} b (<20 lesions)." in page.texts
    assert ["of the map, inside the true mask", "0.500"] in [row[:2] for row in rows]
    assert ["data.size", "64", "224"] in rows
    assert ["data.dataset", "ham10000", "demo"] in rows
    predicted = [row for row in rows if row[-1] in ("right", "WRONG")]
    test = pd.read_csv(folder / "predictions/test.csv", dtype={"image_id": str}, keep_default_na=False).set_index(
        "image_id"
    )
    assert len(predicted) == 30
    for _, image_id, truth, p_truth, prediction, p_prediction, right in predicted:
        row = test.loc[image_id]
        assert (truth, prediction) == (row["label"], row["prediction"])
        assert right == ("right" if truth == prediction else "WRONG")
        assert float(p_truth) == pytest.approx(row[f"p_{truth}"], abs=6e-4)
        assert float(p_prediction) == pytest.approx(row[f"p_{prediction}"], abs=6e-4)
    errors = [row for row in rows if row[-1] == "9.210"]
    assert len(errors) == 12
    assert errors[0][3] == "<0.001"
    assert "<0.001" in path_text(folder)


def path_text(folder):
    from html import unescape

    return unescape((folder / REPORT_FILE).read_text(encoding="utf-8"))


def test_worst_masks_come_first(write_run):
    folder, run = write_run("segmentation", metrics={"threshold": 0.35})
    rows = read(write_report(folder, run, thumbnails)).rows()
    test = pd.read_csv(folder / "predictions/test.csv", dtype={"image_id": str}).sort_values("jaccard")
    listed = [row[1] for row in rows if len(row) == 7 and row[0] in ("", "–") and row[1] != "image"]
    assert listed[:12] == test["image_id"].head(12).tolist()
    assert len(listed) == 12 + 30
    assert ["threshold of masks", "0.35, selected on the validation set"] in rows


def bands(page):
    return " | ".join(page.of("p", "band"))


def test_bands_contain_the_warnings(write_run):
    params = {"weights": "random", "segmenter_saw_test_images": "17", "leaking_lesions": "3"}
    folder, run = write_run(params=params, dataset="demo", split="official", leaks="allow")
    split = pd.read_csv(folder / "split.csv", keep_default_na=False)
    split.loc[0, "lesion_id"] = split["lesion_id"].iloc[150]  # of train and test
    split.to_csv(folder / "split.csv", index=False)
    test = folder / "predictions/test.csv"
    pd.read_csv(test, dtype=str, keep_default_na=False).head(70).to_csv(test, index=False)
    page = read(write_report(folder, run, thumbnails))
    shown = bands(page)
    for text in (
        "SYNTHETIC DATA",
        "RANDOM FIRST WEIGHTS",
        "17 test images",
        "LEAKING LESIONS: 1",
        "70 of 76 test images",
    ):
        assert text in shown
    assert ["lesions in two of the publisher's subsets", "3 (data.leaks: allow)"] in page.rows()
    assert ["test images of lesions that the segmenter was trained on", "17"] in page.rows()


def test_unknown_lesions_are_not_called_clean(write_run):
    folder, run = write_run()
    split = pd.read_csv(folder / "split.csv", keep_default_na=False)
    split.assign(lesion_id=split["image_id"]).to_csv(folder / "split.csv", index=False)
    text = " ".join(read(write_report(folder, run, thumbnails)).texts)
    assert "unknown: every image has its own lesion" in text


def test_missing_files_have_no_section(write_run):
    folder, run = write_run()
    for name in (
        "subgroups.csv",
        "errors.csv",
        "attention.csv",
        "intervals.csv",
        "epochs.csv",
        "environment.txt",
        "dropped.csv",
    ):
        (folder / name).unlink()
    for path in (folder / "figures").iterdir():
        path.unlink()
    page = read(write_report(folder, run, lambda image_ids: {}))
    assert page.of("h2") == ["Data", "Training", "Predictions", *LAST]
    assert not [tag for tag, _ in page.tags if tag == "img"]
    (folder / "config.yaml").unlink()
    with pytest.raises(Exception, match=r"config\.yaml"):
        write_report(folder, run, thumbnails)


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (
            "70:30",
            (
                "30 % of the lesions are in the test set",
                "10 % in the validation set",
                "60 % in the training set",
                "seed, 5",
            ),
        ),
        ("fold:1/4", ("fold 1 of 4", "Every 4th", "seed, 5")),
        ("official", ("the publisher's own subsets",)),
    ],
)
def test_the_rule_of_the_split_in_words(write_run, split, words):
    folder, run = write_run(split=split, split_seed=5)
    text = " ".join(read(write_report(folder, run, thumbnails)).texts)
    assert all(word in text for word in words)


def test_counts_of_subgroups_are_integers_and_groups_without_metrics_are_one_line(write_run):
    folder, run = write_run()
    row = {"attribute": "site", "group": "back", "n_images": 40, "n_lesions": 31, "n_positive": 1, "metric": "accuracy", "value": 0.5,
           "low": 0.4, "high": 0.6, "note": ""}  # fmt: skip
    empty = {"metric": "", "value": None, "low": None, "high": None, "note": "fewer than 30 lesions"}
    hidden = [row | empty | {"group": name, "n_lesions": n} for name, n in (("unknown", 12), ("foot", 1))]
    pd.DataFrame([row, *hidden]).to_csv(folder / "subgroups.csv", index=False)
    page = read(write_report(folder, run, thumbnails))
    assert ["site", "back", "40", "31", "1", "0.500 [0.400, 0.600]"] in page.rows()
    assert "Not shown, because of few lesions: site unknown (12 lesions), site foot (1 lesions)." in page.texts


def test_reasons_without_interval_are_printed(write_run):
    folder, run = write_run()
    table = pd.DataFrame({"metric": ["precision"], "value": [0.0], "low": [None], "high": [None], "n_resamples": [0],
                          "note": ["no prediction of mel"]})  # fmt: skip
    table.to_csv(folder / "intervals.csv", index=False)
    assert ['precision (mel, "x")', "0.000", "– (no prediction of mel)"] in read(
        write_report(folder, run, thumbnails)
    ).rows()


def test_other_subgroup_columns_are_shown_as_they_are(write_run):
    folder, run = write_run()
    table = pd.DataFrame({"attribute": ["sex"], "value": ["f"], "n_images": [12], "AUROC": [0.75]})
    table.to_csv(folder / "subgroups.csv", index=False)
    assert ["sex", "f", "12", "0.750"] in read(write_report(folder, run, thumbnails)).rows()


def test_crops_are_named(write_run):
    folder, run = write_run(crop=True, crop_margin=0.25)
    crops = pd.DataFrame(
        {
            "image_id": list("abcd"),
            "left": 0,
            "top": 0,
            "right": 9,
            "bottom": 9,
            "masks": ["truth", "truth", "otsu", ""],
        }
    )
    crops.to_csv(folder / "crops.csv", index=False)
    text = " ".join(read(write_report(folder, run, thumbnails)).texts)
    assert "2 by true masks, 1 by masks by Otsu's threshold; margin 25%" in text


def test_a_large_figure_is_embedded_small(write_run):
    folder, run = write_run()
    photographs = np.random.default_rng(0).integers(0, 255, (600, 800, 3), dtype=np.uint8)
    Image.fromarray(photographs).save(folder / "figures/errors.png", dpi=(150, 150))
    assert (folder / "figures/errors.png").stat().st_size > 1_000_000
    path = write_report(folder, run, thumbnails)
    assert path.stat().st_size < 700_000
    (width,) = (a["width"] for tag, a in read(path).tags if tag == "img" and a["alt"].startswith("The errors"))
    assert int(width) == pytest.approx(800 * 96 / 150, abs=1)


def test_settings_of_the_schema_are_complete_in_the_report(write_run):
    folder, run = write_run()
    text = path_text(write_report(folder, run, thumbnails).parent)
    for field in dataclasses.fields(DataConfig):
        assert f"\n  {field.name}:" in text
