"""Test operating points, temperature scaling and subgroups against references."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn import metrics as sklearn_metrics

from skincancer.metrics.calibration import TEMPERATURES, calibration_table, fit_temperature, scale
from skincancer.metrics.classification import classification_metrics
from skincancer.metrics.estimates import classification_intervals
from skincancer.metrics.operating_point import operating_point, sensitivity_threshold
from skincancer.metrics.prediction_files import predictions_table, write_predictions
from skincancer.metrics.subgroups import age_band, subgroup_table
from skincancer.reports.task_outputs import write_subgroups


@pytest.fixture(scope="module")
def scored():
    """Some hundred scores with ties, a third of them positive."""
    rng = np.random.default_rng(3)
    positive = rng.random(300) < 0.33
    return positive, np.round(rng.normal(positive * 1.2, 1), 1), [f"L{number // 2}" for number in range(300)]


# ------------------------------------------------------------------------------------------------------------ operating points


@pytest.mark.parametrize("sensitivity", [0.5, 0.8, 0.95, 1.0])
def test_threshold_is_that_of_the_roc_curve(scored, sensitivity: float):
    positive, score, _ = scored
    _, tpr, thresholds = sklearn_metrics.roc_curve(positive, score, drop_intermediate=False)
    assert sensitivity_threshold(positive, score, sensitivity) == thresholds[np.argmax(tpr >= sensitivity)]


def test_threshold_of_twenty_positives_misses_one():
    score = np.arange(20) / 20
    assert sensitivity_threshold(np.ones(20, dtype=bool), score) == score[1]


def test_operating_point_at_a_prevalence_is_bayes(scored):
    positive, score, groups = scored
    table = operating_point(positive, score, 0.4, groups, prevalence=0.1).set_index("metric")
    called = score >= 0.4
    sensitivity = sklearn_metrics.recall_score(positive, called)
    specificity = sklearn_metrics.recall_score(~positive, ~called)
    # of 1,000 people 100 have it
    hit, alarm = 100 * sensitivity, 900 * (1 - specificity)
    assert table.loc["sensitivity", "value"] == pytest.approx(sensitivity, abs=1e-12)
    assert table.loc["specificity", "value"] == pytest.approx(specificity, abs=1e-12)
    assert table.loc["ppv", "value"] == pytest.approx(hit / (hit + alarm), abs=1e-12)
    clear, lost = 900 * specificity, 100 * (1 - sensitivity)
    assert table.loc["npv", "value"] == pytest.approx(clear / (clear + lost), abs=1e-12)
    assert table.loc["number_needed_to_biopsy", "value"] == pytest.approx((hit + alarm) / hit, abs=1e-12)
    assert (table["low"] < table["value"]).all()
    assert (table["value"] < table["high"]).all()


def test_operating_point_at_the_images_own_prevalence_counts(scored):
    positive, score, groups = scored
    table = operating_point(positive, score, 0.4, groups).set_index("metric")["value"]
    called = score >= 0.4
    assert table["ppv"] == pytest.approx(sklearn_metrics.precision_score(positive, called), abs=1e-12)
    assert table["npv"] == pytest.approx(sklearn_metrics.precision_score(~positive, ~called), abs=1e-12)
    assert table["number_needed_to_biopsy"] == pytest.approx(called.sum() / (positive & called).sum(), abs=1e-12)


def test_specificity_and_sensitivity_intervals_are_those_of_the_two_class_metrics(scored):
    """Both functions use the same estimates, so their intervals at 0.5 must agree."""
    positive, score, groups = scored
    p = 1 / (1 + np.exp(-score + 0.001))  # no tie at 0.5
    ours = operating_point(positive, p, 0.5, groups).set_index("metric")
    theirs = classification_intervals(
        positive.astype(int), np.column_stack([1 - p, p]), groups, ["benign", "malignant"]
    ).set_index("metric")
    for name, reference in (("sensitivity", "sensitivity"), ("specificity", "specificity"), ("ppv", "precision")):
        np.testing.assert_allclose(
            ours.loc[name, ["value", "low", "high"]].astype(float),
            theirs.loc[reference, ["value", "low", "high"]].astype(float),
        )


def test_ppv_is_undefined_without_positive_predictions():
    table = operating_point(np.array([True, False]), [0.1, 0.2], 0.9, ["a", "b"]).set_index("metric")
    assert table.loc["sensitivity", "value"] == 0
    assert table.loc["specificity", "value"] == 1
    assert np.isnan(table.loc["ppv", "value"])
    assert np.isnan(table.loc["number_needed_to_biopsy", "value"])
    assert table.loc["npv", "value"] == 0.5


def test_operating_points_refuse_invalid_input(scored):
    positive, score, groups = scored
    with pytest.raises(ValueError, match="no image is positive"):
        sensitivity_threshold(np.zeros(3, dtype=bool), [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="sensitivity must be above 0"):
        sensitivity_threshold(positive, score, 0)
    with pytest.raises(ValueError, match=r"prevalence must be .* got 10"):
        operating_point(positive, score, 0.5, groups, prevalence=10)
    with pytest.raises(ValueError, match="positive must be bool"):
        operating_point(positive.astype(int), score, 0.5, groups)
    with pytest.raises(ValueError, match="scores must be finite"):
        sensitivity_threshold([True, False], [np.nan, 1.0])


# ----------------------------------------------------------------------------------------------------------------- calibration


@pytest.fixture(scope="module")
def unsure():
    """Labels sampled from softmax(z / 2.5), so that logits z are overconfident."""
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 4, (600, 4))
    true = softmax(logits / 2.5, axis=1)
    label = np.array([rng.choice(4, p=row) for row in true])
    return label, logits, [f"L{number // 3}" for number in range(600)]


def test_temperature_is_where_log_loss_is_least_on_a_grid(unsure):
    label, logits, _ = unsure
    grid = np.exp(np.linspace(np.log(1.5), np.log(4), 1001))
    losses = [sklearn_metrics.log_loss(label, softmax(logits / t, axis=1), labels=range(4)) for t in grid]
    found = fit_temperature(label, logits)
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=1e-3)
    assert found == pytest.approx(2.5, rel=0.15), "the one that the labels were drawn with"
    assert sklearn_metrics.log_loss(label, scale(logits, found), labels=range(4)) <= min(losses) + 1e-12


def test_temperature_of_two_classes_is_one_over_a_logistic_slope():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    z = rng.normal(0, 3, 500)
    label = (rng.random(500) < 1 / (1 + np.exp(-z / 1.7))).astype(int)
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(z[:, None], label).coef_.item()
    assert fit_temperature(label, np.column_stack([np.zeros(500), z])) == pytest.approx(1 / slope, rel=1e-5)


def test_temperature_of_perfect_predictions_is_the_lower_bound():
    label = np.arange(9) % 3
    assert fit_temperature(label, np.eye(3)[label]) == pytest.approx(TEMPERATURES[0])
    assert fit_temperature((label + 1) % 3, np.eye(3)[label]) == pytest.approx(TEMPERATURES[1])


def test_calibration_table_against_scikit_learn(unsure):
    label, logits, groups = unsure
    before, after = softmax(logits, axis=1), scale(logits, 2.5)
    table = calibration_table(label, before, after, groups, list("abcd")).set_index(["metric", "stage"])
    for stage, p in (("before", before), ("after", after)):
        brier = sklearn_metrics.brier_score_loss(label, p, labels=range(4), scale_by_half=False)
        assert table.loc[("brier", stage), "value"] == pytest.approx(brier, abs=1e-12)
        nll = sklearn_metrics.log_loss(label, p, labels=range(4))
        assert table.loc[("nll", stage), "value"] == pytest.approx(nll, abs=1e-12)
        ece = classification_metrics(label, p, list("abcd"))["ece"]
        assert table.loc[("ece", stage), "value"] == pytest.approx(ece, abs=1e-12)
    for metric in ("ece", "brier", "nll"):
        change = table.loc[(metric, "change")]
        assert change["value"] == pytest.approx(
            table.loc[(metric, "after"), "value"] - table.loc[(metric, "before"), "value"], abs=1e-12
        )
        assert change["low"] < change["value"] < change["high"] < 0, "scaling helps, beyond the spread of lesions"


def test_intervals_of_the_ece_are_those_of_the_metrics(unsure):
    label, logits, groups = unsure
    p = softmax(logits, axis=1)
    ours = calibration_table(label, p, p, groups, list("abcd")).set_index(["metric", "stage"])
    theirs = classification_intervals(label, p, groups, list("abcd")).set_index("metric")
    for column in ("low", "high"):
        assert ours.loc[("ece", "before"), column] == pytest.approx(theirs.loc["ece", column], abs=1e-12)
    assert (ours.xs("change", level="stage")[["value", "low", "high"]] == 0).all(axis=None)


def test_calibration_refuses_invalid_input():
    with pytest.raises(ValueError, match="logits must be finite"):
        fit_temperature([0, 1], [[0.0, np.inf], [1, 0]])
    with pytest.raises(ValueError, match="labels must lie in 0"):
        fit_temperature([0, 2], [[0.0, 1], [1, 0]])


# ------------------------------------------------------------------------------------------------------------------- subgroups


def test_age_bands():
    bands = age_band(pd.Series(["0", "29.5", "30", "44", "45", "60", "74.9", "75", "100", "", None]))
    assert bands.tolist() == [
        "0–29", "0–29", "30–44", "30–44", "45–59", "60–74", "60–74", "75+", "75+", "unknown", "unknown",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def people():
    """240 images of 120 lesions: sex and age known of most, site the same everywhere, dx_type nowhere."""
    rng = np.random.default_rng(1)
    number = np.arange(240) // 2
    rows = pd.DataFrame(
        {
            "image_id": [f"I{i}" for i in range(240)],
            "lesion_id": [f"L{i}" for i in number],
            "age": np.where(number < 10, np.nan, np.where(number < 60, 35, 80)),
            "sex": np.where(number < 50, "female", np.where(number < 110, "male", "")),
            "site": "back",
            "dx_type": "",
        }
    )
    label = rng.integers(3, size=240)
    return rows, label, softmax(rng.normal(0, 1, (240, 3)) + np.eye(3)[label], axis=1)


CLASSES = ["bcc", "mel", "nv"]


def test_metrics_are_computed_per_group(people):
    rows, label, p = people
    table = subgroup_table(rows, label, p, CLASSES, ["mel", "bcc"])
    assert list(table["attribute"].unique()) == ["age", "sex", "site"], "dx_type is known of no image"
    male = table[(table["attribute"] == "sex") & (table["group"] == "male")].set_index("metric")
    chosen = (rows["sex"] == "male").to_numpy()
    assert set(male["n_images"]) == {120}
    assert set(male["n_lesions"]) == {60}
    assert set(male["n_positive"]) == {int((label[chosen] < 2).sum())}
    assert male.loc["accuracy", "value"] == pytest.approx(
        sklearn_metrics.accuracy_score(label[chosen], p[chosen].argmax(1))
    )
    assert male.loc["balanced_accuracy", "value"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(label[chosen], p[chosen].argmax(1))
    )
    assert male.loc["auroc_malignant", "value"] == pytest.approx(
        sklearn_metrics.roc_auc_score(label[chosen] < 2, p[chosen, :2].sum(axis=1))
    )
    assert set(male.index) == {"accuracy", "balanced_accuracy", "auroc_malignant"}
    assert (male["low"] < male["value"]).all()
    assert (male["value"] < male["high"]).all()


def test_small_groups_have_no_metrics(people):
    rows, label, p = people
    table = subgroup_table(rows, label, p, CLASSES)
    small = table[(table["attribute"] == "sex") & (table["group"] == "unknown")]
    assert small[["n_images", "n_lesions", "metric", "note"]].values.tolist() == [[20, 10, "", "fewer than 30 lesions"]]
    assert small[["value", "low", "high"]].isna().all(axis=None)
    assert set(table[table["attribute"] == "age"]["group"]) == {"30–44", "75+", "unknown"}
    assert "n_positive" not in table, "which classes are malignant is not known"
    assert set(table["metric"]) == {"", "accuracy", "balanced_accuracy", "auroc_macro"}
    fewer = subgroup_table(rows, label, p, CLASSES, smallest=10)
    assert (fewer["metric"] != "").all()


def test_areas_need_enough_positive_and_negative_lesions():
    """An AUROC of a site with one positive lesion is noise. Sensitivity needs positives, specificity negatives."""
    rng = np.random.default_rng(8)
    group = np.repeat(["many", "one", "benign", "malignant"], 40)
    label = np.r_[np.arange(40) % 2, np.arange(40) == 0, np.zeros(40), np.ones(40)].astype(int)
    rows = pd.DataFrame({"lesion_id": [f"L{number}" for number in range(160)], "site": group})
    p = 1 / (1 + np.exp(-rng.normal(2 * label - 1, 1)))
    two = np.column_stack([1 - p, p])
    table = subgroup_table(rows, label, two, ["benign", "malignant"]).groupby("group")["metric"].agg(set)
    every = {"accuracy", "balanced_accuracy", "auroc_macro", "sensitivity", "specificity"}
    assert table["many"] == every
    assert table["one"] == {"accuracy", "specificity"}
    assert table["benign"] == {"recall/benign"}
    assert table["malignant"] == {"recall/malignant"}
    three = np.column_stack([1 - p, p / 2, p / 2])
    label = np.where(np.arange(160) % 4 == 1, 2 * label, label)
    table = subgroup_table(rows, label, three, CLASSES, ["mel", "nv"]).groupby("group")["metric"].agg(set)
    assert table["many"] == {"accuracy", "balanced_accuracy", "auroc_malignant"}
    assert table["one"] == {"accuracy", "balanced_accuracy"}


def test_two_classes_have_sensitivity_and_specificity(people):
    rows, label, p = people
    two = np.column_stack([p[:, 0], 1 - p[:, 0]])
    table = subgroup_table(rows, (label > 0).astype(int), two, ["benign", "x"])
    women = table[table["group"] == "female"].set_index("metric")
    chosen = (rows["sex"] == "female").to_numpy()
    assert women.loc["sensitivity", "value"] == pytest.approx(
        sklearn_metrics.recall_score(label[chosen] > 0, two[chosen].argmax(1) == 1)
    )
    assert set(women["n_positive"]) == {int((label[chosen] > 0).sum())}, "the second is the positive one"


def test_subgroups_of_a_run_folder(people, tmp_path):
    rows, label, p = people
    label = label.copy()
    label[:4] = -1  # two lesions without a label
    (tmp_path / "config.yaml").write_text("task: classification\n")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES, "malignant": ["mel"]}))
    write_predictions(predictions_table(rows, label, np.log(p), p, CLASSES), tmp_path / "predictions/test.csv")
    rows.sample(frac=1, random_state=0).assign(role="test").to_csv(tmp_path / "split.csv", index=False)
    assert write_subgroups(tmp_path) == tmp_path / "subgroups.csv"
    written = pd.read_csv(tmp_path / "subgroups.csv", dtype={"n_lesions": str})
    back = written[written["attribute"] == "site"].set_index("metric")
    assert set(back["n_images"]) == {236}
    assert set(back["n_lesions"]) == {"118"}
    assert set(back["n_positive"]) == {int((label == 1).sum())}
    known = label >= 0
    assert back.loc["accuracy", "value"] == pytest.approx(
        sklearn_metrics.accuracy_score(label[known], p[known].argmax(1))
    )


def test_flagged_images_are_a_group_among_others(people):
    rows, label, p = people
    flags = np.where(np.arange(len(rows)) % 4 < 2, "blurred; hair", "")
    table = subgroup_table(rows[["lesion_id"]].assign(quality_flags=flags), label, p, CLASSES)
    assert set(table["attribute"]) == {"quality_flags"}
    accuracy = table[table["metric"] == "accuracy"].set_index("group")["value"]
    for name, chosen in (("flagged", flags != ""), ("not flagged", flags == "")):
        assert accuracy[name] == pytest.approx(sklearn_metrics.accuracy_score(label[chosen], p[chosen].argmax(1)))
    for every in ("", "dark"):
        assert subgroup_table(rows[["lesion_id"]].assign(quality_flags=every), label, p, CLASSES).empty


def test_no_metadata_no_subgroups(people, tmp_path):
    rows, label, p = people
    (tmp_path / "config.yaml").write_text("task: classification\n")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    write_predictions(predictions_table(rows, label, np.log(p), p, CLASSES), tmp_path / "predictions/test.csv")
    rows.assign(role="test", age="", sex="", site="unknown").to_csv(tmp_path / "split.csv", index=False)
    assert write_subgroups(tmp_path) is None
    assert not (tmp_path / "subgroups.csv").exists()
