"""Test intervals against exact references, numerical derivatives and simulated coverage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, softmax

from skincancer.metrics import custom
from skincancer.metrics.areas import average_precision_bias
from skincancer.metrics.bootstrap import bootstrap_weights
from skincancer.metrics.classification import classification_metrics, weighted_metrics
from skincancer.metrics.combinations import combine, difference, mean
from skincancer.metrics.estimates import COLUMNS, CountedPredictions, classification_intervals, mean_intervals
from skincancer.metrics.intervals import p_value
from skincancer.metrics.lesion_sums import effective_count, proportion
from skincancer.metrics.operating_point import predictive

CLASSES = ["benign", "malignant"]


def two_classes(label, right):
    """Return probabilities that predict the label where `right`, else the other class."""
    prediction = np.where(right, label, 1 - np.asarray(label))
    return np.where(prediction[:, None] == [0, 1], 0.9, 0.1)


def single(n):
    """Return a lesion for each image."""
    return np.arange(n).astype(str)


def bounds(table, metric):
    return table.set_index("metric").loc[metric, ["low", "high"]].to_numpy(dtype=float)


@pytest.mark.parametrize(("hits", "n"), [(0, 40), (20, 20), (160, 200), (1, 30), (199, 200)])
def test_proportions_of_single_images_are_exact(hits, n):
    label = np.r_[np.ones(n, np.int64), np.zeros(10, np.int64)]
    right = np.r_[np.arange(n) < hits, np.ones(10, bool)]
    table = classification_intervals(label, two_classes(label, right), single(n + 10), CLASSES)
    exact = stats.binomtest(hits, n).proportion_ci(method="exact")
    assert bounds(table, "sensitivity") == pytest.approx([exact.low, exact.high], abs=1e-9)
    assert bounds(table, "recall/malignant") == pytest.approx([exact.low, exact.high], abs=1e-9)
    exact = stats.binomtest(hits + 10, n + 10).proportion_ci(method="exact")
    assert bounds(table, "accuracy") == pytest.approx([exact.low, exact.high], abs=1e-9)


def test_accuracy_of_one_right_and_one_wrong_class_has_a_width():
    label = np.repeat([0, 1], [160, 40])
    table = classification_intervals(label, two_classes(label, label == 0), single(200), CLASSES)
    assert bounds(table, "accuracy") == pytest.approx([0.739, 0.850], abs=0.004)
    assert bounds(table, "sensitivity") == pytest.approx([0, 0.088], abs=0.001)
    widths = table.set_index("metric")[["low", "high"]].diff(axis=1)["high"].drop("precision")
    assert (widths > 0.02).all()
    precision = table.set_index("metric").loc["precision"]
    assert precision["value"] == 0
    assert np.isnan(precision["low"])
    assert precision["note"] == "no prediction of malignant"


def test_copies_of_images_bring_no_information():
    rng = np.random.default_rng(4)
    label = np.repeat([0, 1, 2], [150, 100, 50])
    logit = rng.normal(size=(300, 3))
    logit[np.arange(300), label] += 1.0
    probability = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    four, classes = np.repeat(np.arange(300), 4), ["a", "b", "c"]
    once = classification_intervals(label, probability, single(300), classes)
    grouped = classification_intervals(label[four], probability[four], single(300)[four], classes)
    ignored = classification_intervals(label[four], probability[four], single(1200), classes)
    np.testing.assert_allclose(grouped["value"], once["value"], atol=1e-12)
    np.testing.assert_allclose(grouped[["low", "high"]], once[["low", "high"]], atol=0.006)
    for metric in ("accuracy", "balanced_accuracy", "auroc_macro", "average_precision_macro", "f1_macro"):
        assert np.diff(bounds(grouped, metric)) / np.diff(bounds(ignored, metric)) == pytest.approx(2, abs=0.25)


def test_lesions_that_all_agree_count_once():
    """Of 0 wrong images, nothing is known about the correlation, so lesions count as one image each."""
    label, lesion = np.repeat([0, 1], 60), single(40).repeat(3)
    table = classification_intervals(label, two_classes(label, np.ones(120, bool)), lesion, CLASSES)
    assert bounds(table, "accuracy") == pytest.approx([0.025 ** (1 / 40), 1], abs=1e-9)
    assert effective_count(np.array([1.0, 1, 4])) == pytest.approx(36 / 18)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_influences_are_derivatives_of_the_metrics(n_classes):
    rng = np.random.default_rng(n_classes)
    label = rng.integers(n_classes, size=90)
    logits = (rng.normal(size=(90, n_classes)) + np.eye(n_classes)[label]).round(1)  # With ties.
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    lesion, classes = np.arange(90) // 3, [f"c{number}" for number in range(n_classes)]
    tested = CountedPredictions(label, probability, np.char.mod("%02d", lesion), classes)
    step = 1e-5
    weight = 1 + step * np.concatenate([np.eye(30), -np.eye(30)])[:, lesion]
    weighted = weighted_metrics(label, probability, classes, weight)
    values = classification_metrics(label, probability, classes)
    assert tested.metrics == [name for name in values if not name.startswith("recall/")]
    for name, value in values.items():
        estimate = tested.estimate(name)
        assert estimate.value == pytest.approx(value, abs=1e-12)
        derivative = (weighted[name][:30] - weighted[name][30:]) / (2 * step)
        # Influences are larger by the correction n / (n − 1) of the variance.
        np.testing.assert_allclose(estimate.influence, derivative, atol=1e-6, rtol=0.15)


def test_mean_of_values_is_close_to_a_t_interval():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"jaccard": rng.beta(8, 2, 400), "hd95": rng.lognormal(2, 0.4, 400)})
    found = mean_intervals(table, ["jaccard", "hd95"], single(400)).set_index("metric")
    for name in table:
        mean_, error = table[name].mean(), table[name].std() / 20
        expected = mean_ + stats.t.ppf([0.025, 0.975], 399) * error
        assert found.loc[name, "value"] == pytest.approx(mean_, abs=1e-12)
        assert found.loc[name, ["low", "high"]].to_numpy(float) == pytest.approx(expected, abs=0.4 * error)


def test_means_at_the_end_and_without_spread():
    table = pd.DataFrame({"dice": np.ones(20), "hd95": np.zeros(20), "jaccard": np.nan})
    found = mean_intervals(table, list(table), single(20)).set_index("metric")
    assert found.loc["dice", ["low", "high"]].to_list() == pytest.approx([0.025 ** (1 / 20), 1])
    assert found.loc["hd95", ["value", "note"]].to_list() == [0, "no spread between lesions"]
    assert found.loc[["hd95", "jaccard"], ["low", "high"]].isna().all(axis=None)
    for column, value, message in [
        ("dice", 1.5, r"in \[0, 1\]"),
        ("hd95", -1.0, "not negative"),
        ("x", 0.0, "metric is 'x'"),
    ]:
        with pytest.raises(ValueError, match=message):
            mean_intervals(pd.DataFrame({column.replace("x", "y"): [value]}), [column], ["a"])


def test_area_of_rare_positives_is_about_as_wide_as_its_bootstrap():
    rng = np.random.default_rng(3)
    label = np.repeat([1, 0], [150, 1350])
    p = expit(rng.normal(size=1500) + 2.3 * label)
    probability = np.column_stack([1 - p, p])
    low, high = bounds(classification_intervals(label, probability, single(1500), CLASSES), "auroc_macro")
    weight = bootstrap_weights(single(1500), 2000, 0)
    resampled = weighted_metrics(label, probability, CLASSES, weight)["auroc_macro"]
    assert 1 < (high - low) / np.diff(np.quantile(resampled, [0.025, 0.975]))[0] < 1.3


def test_perfect_and_reversed_rankings_have_a_width():
    label = np.repeat([0, 1], [40, 10])
    for sign, inner in ((1, [0.6, 0.99]), (-1, [0.01, 0.4])):
        p = expit(sign * np.linspace(-3, 3, 50))
        low, high = bounds(
            classification_intervals(label, np.column_stack([1 - p, p]), single(50), CLASSES), "auroc_macro"
        )
        assert (high if sign > 0 else low) == (sign > 0)
        assert inner[0] < (low if sign > 0 else high) < inner[1]


def test_calibration_error_of_a_calibrated_model_may_be_zero():
    rng = np.random.default_rng(1)
    p = rng.uniform(0, 1, 300)
    label = (rng.random(300) < p).astype(int)
    calibrated = classification_intervals(label, np.column_stack([1 - p, p]), single(300), CLASSES, ["ece"]).iloc[0]
    assert calibrated["low"] == 0 < calibrated["value"] <= calibrated["high"] < 0.2
    wrong = np.where(p > 0.5, 0.999, 0.001)
    overconfident = classification_intervals(label, np.column_stack([1 - wrong, wrong]), single(300), CLASSES, ["ece"])
    low, high = bounds(overconfident, "ece")
    exact = stats.binomtest(int((label == (p > 0.5)).sum()), 300).proportion_ci(method="exact")
    assert [low, high] == pytest.approx([0.999 - exact.high, 0.999 - exact.low], abs=0.01)


def test_predictive_values_agree_with_a_ratio_of_large_samples():
    """Logarithmic interval of the likelihood ratio (Simel, Samsa and Matchar, J Clin Epidemiol 44, 1991)."""
    right = proportion(np.repeat([1.0, 0.0], [800, 200]), np.ones(1000))
    wrong = proportion(np.repeat([1.0, 0.0], [300, 1700]), np.ones(2000))
    ratio, error = 0.8 / 0.15, np.sqrt((1 - 0.8) / 800 + (1 - 0.15) / 300)
    expected = [1 / (1 + 9 / (ratio * np.exp(z * error))) for z in (-1.96, 1.96)]
    assert predictive(wrong, right, 9).bounds() == pytest.approx(expected, abs=0.006)
    nothing = proportion(np.zeros(30), np.ones(30))
    low, high = predictive(nothing, right, 9).bounds()
    assert 0.3 < low < 0.7
    assert high == pytest.approx(1)
    assert np.isnan(predictive(nothing, nothing, 9).value)


def test_a_difference_without_discordant_images_has_a_width():
    """Both models are right on the same images, with other probabilities: the true accuracies may differ by some per cent."""
    rng = np.random.default_rng(2)
    label, lesion = rng.integers(2, size=200), single(200)
    right = rng.random(200) < 0.8
    first = CountedPredictions(label, two_classes(label, right), lesion, CLASSES)
    second = CountedPredictions(label, np.where(two_classes(label, right) > 0.5, 0.8, 0.2), lesion, CLASSES)
    change = difference(first.accuracy(), second.accuracy())
    low, high = change.bounds()
    assert change.value == 0
    assert -0.03 < low < -0.008
    assert 0.008 < high < 0.03
    assert p_value(change) > 0.9


def test_the_mean_of_equal_estimates_is_the_estimate():
    part = proportion(np.repeat([1.0, 0.0], [30, 10]), np.ones(40))
    assert combine([part, part], [0.5, 0.5]).bounds() == pytest.approx(part.bounds(), abs=0.004)
    nothing = proportion(np.zeros(40), np.zeros(40))
    assert mean([part, nothing]) is part


def test_undefined_metrics_have_no_interval_and_a_reason():
    label = np.array([0, 0, 1, 1])
    table = classification_intervals(label, np.eye(3)[[0, 1, 1, 2]], list("abcd"), ["a", "b", "c"]).set_index("metric")
    assert list(table.columns) == COLUMNS[1:]
    assert table.loc["recall/c", ["value", "low", "high"]].isna().all()
    assert table.loc["recall/c", "note"] == "no image counts"
    one = classification_intervals([1, 1], [[0.2, 0.8]] * 2, list("ab"), CLASSES).set_index("metric")
    assert one.loc["auroc_macro", "note"] == "a single class"
    assert one.loc["auroc_macro", ["value", "low", "high"]].isna().all()


def test_means_over_classes_of_few_lesions_have_no_interval():
    """With one or two lesions of a class, simulated intervals of these means contained the truth too rarely."""
    rng, label = np.random.default_rng(5), np.repeat([0, 1, 2], [40, 20, 4])
    probability = rng.dirichlet([1, 1, 1], 64)
    table = classification_intervals(label, probability, single(64), ["a", "b", "c"]).set_index("metric")
    without = table.index[table["low"].isna()].tolist()
    assert without == ["auroc_macro", "average_precision_macro", "specificity_macro", "precision_macro"]
    assert set(table.loc[without, "note"]) == {"fewer than 5 lesions of c"}
    assert table["value"].notna().all()
    label[40] = 2
    again = classification_intervals(label, probability, single(64), ["a", "b", "c"])
    assert again["low"].notna().all()


def test_metrics_of_plugins_have_percentiles_of_resamples(monkeypatch):
    monkeypatch.setitem(
        custom.CUSTOM_METRICS, "share", custom.CustomMetric(lambda y, p, w: np.average(y, weights=w), True)
    )
    label = np.repeat([0, 1], [60, 40])
    arguments = label, two_classes(label, np.ones(100, bool)), single(100), CLASSES
    table = classification_intervals(*arguments, seed=3).set_index("metric")
    error = 1.96 * np.sqrt(0.4 * 0.6 / 100)
    assert table.loc["share", ["low", "high"]].to_list() == pytest.approx([0.4 - error, 0.4 + error], abs=0.02)
    assert table.loc["share", "n_resamples"] == 2000
    assert table.loc["accuracy", "n_resamples"] == 0
    assert table.equals(classification_intervals(*arguments, seed=3).set_index("metric"))
    tested = CountedPredictions(*arguments).estimate("share")
    assert p_value(difference(tested, tested)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["a"]}, "groups must have shape"),
        ({"groups": ["a", None]}, "1 images have no lesion"),
        ({"level": 95}, "level must lie between 0 and 1"),
        ({"label": [0, 5]}, "labels must lie in"),
        ({"metrics": ["acuracy"]}, "metric is 'acuracy'; expected one of accuracy, balanced_accuracy"),
    ],
)
def test_malformed_input_is_refused(change, message):
    good = {"label": [0, 1], "probability": np.eye(2), "groups": ["a", "b"], "classes": CLASSES}
    with pytest.raises(ValueError, match=message):
        classification_intervals(**(good | change))


@pytest.mark.parametrize(
    ("n_lesions", "correlation", "prevalence", "p"), [(30, 0.0, 0.3, 0.95), (30, 0.7, 0.3, 0.8), (60, 0.7, 0.1, 0.9)]
)
def test_simulated_coverage(n_lesions, correlation, prevalence, p):
    """Of 200 test sets with sensitivity and specificity p, 95 % of the intervals contain p. `benchmarks/coverage.py` has the grid."""
    rng = np.random.default_rng(0)
    distance = 2 * stats.norm.ppf(p)
    truth = dict.fromkeys(("accuracy", "balanced_accuracy", "sensitivity", "specificity"), p)
    truth |= {"auroc_macro": stats.norm.cdf(distance / np.sqrt(2))}
    truth |= {"precision": prevalence * p / (prevalence * p + (1 - prevalence) * (1 - p))}
    covered = dict.fromkeys(truth, 0)
    for _ in range(200):
        lesion = np.repeat(np.arange(n_lesions), rng.integers(1, 7, n_lesions))
        label = (rng.permutation(n_lesions) < max(2, rng.binomial(n_lesions, prevalence))).astype(np.int64)[lesion]
        noise = rng.normal(size=n_lesions)[lesion], rng.normal(size=len(lesion))
        score = np.sqrt(correlation) * noise[0] + np.sqrt(1 - correlation) * noise[1] + distance * (label - 0.5)
        counted = CountedPredictions(
            label, np.column_stack([expit(-score), expit(score)]), np.char.mod("%d", lesion), CLASSES
        )
        for name, value in truth.items():
            estimate = counted.estimate(name)
            low, high = estimate.bounds()
            covered[name] += np.isnan(low) or low <= value <= high
            assert np.isnan(low) or low <= estimate.value <= high
    assert min(covered.values()) / 200 >= 0.92, covered


def test_simulated_coverage_of_a_difference():
    """Accuracies of 0.98 and 0.96 on the same 100 images: many test sets have no image with one model right and the other wrong."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(200):
        shared = rng.normal(size=100)
        right = [
            (np.sqrt(0.9) * shared + np.sqrt(0.1) * rng.normal(size=100)) < stats.norm.ppf(p) for p in (0.98, 0.96)
        ]
        low, high = difference(*(proportion(side.astype(float), np.ones(100)) for side in right)).bounds()
        covered += low <= 0.02 <= high
    assert covered / 200 >= 0.92


def test_bias_of_the_average_precision_of_random_scores_is_exact():
    """The expected average precision of random scores is known (Bestgen 2015)."""
    rng, n, n_positive = np.random.default_rng(0), 200, 60
    positive = np.arange(n) < n_positive
    biases = [average_precision_bias(positive, rng.random(n), np.arange(n)) for _ in range(2000)]
    harmonic = (1 / np.arange(1, n + 1)).sum()
    expected = ((n_positive - 1) / (n - 1) * (n - harmonic) + harmonic) / n
    assert np.mean(biases) == pytest.approx(expected - n_positive / n, rel=0.06)


def test_bias_of_the_average_precision_leaves_out_the_lesion():
    positive = np.array([True, True, False, True, False])
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    # The first two images have no other lesion above. The third has precision 3/4, and 2/3 among other lesions.
    lesion = np.array([0, 0, 1, 2, 3])
    assert average_precision_bias(positive, score, lesion) == pytest.approx((3 / 4 - 2 / 3) / 3)
    assert average_precision_bias(np.zeros(5, bool), score, lesion) == 0


@pytest.mark.parametrize(
    ("metric", "distance", "seed"), [("average_precision_macro", -60, 0), ("specificity_macro", 4 * 0.98, 9)]
)
def test_simulated_coverage_of_means_over_five_classes(metric, distance, seed):
    """Reversed scores have a too high average precision in few images, and specificities near 1 are skewed."""
    names, share = [f"c{c}" for c in range(5)], np.array([0.5, *(0.5 * np.array([1, 2, 4, 8]) / 15)])

    def predictions(label, rng):
        return softmax(1.5 * (rng.normal(size=(len(label), 5)) + distance * np.eye(5)[label]), axis=1)

    label = np.repeat(np.arange(5), 20_000)
    weight = share[label]
    truth = classification_metrics(label, predictions(label, np.random.default_rng(0)), names, weight)[metric]
    covered = []
    for number in range(300):
        rng = np.random.default_rng([seed, number])
        label = rng.choice(5, 200, p=share)
        low, high = CountedPredictions(label, predictions(label, rng), single(200), names).estimate(metric).bounds()
        if np.isfinite(low):
            covered.append(low <= truth <= high)
    assert len(covered) > 200
    assert np.mean(covered) > 0.925
