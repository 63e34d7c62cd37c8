from __future__ import annotations

import numpy as np
import pytest

from skincancer.metrics.bootstrap import bootstrap_intervals, bootstrap_weights

CLASSES = ["benign", "malignant"]


def two_classes(label, right):
    """Return probabilities that predict the label where `right`, else the other class."""
    prediction = np.where(right, label, 1 - np.asarray(label))
    return np.where(prediction[:, None] == [0, 1], 0.9, 0.1)


def interval(table, metric):
    return table.set_index("metric").loc[metric, ["low", "high"]].to_numpy(dtype=float)


def test_lesions_are_drawn_whole_and_within_strata():
    groups = ["a", "a", "b", "c", "c", "c", "d", "e"]
    strata = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    weight = bootstrap_weights(groups, strata, 500, seed=1)
    assert weight.shape == (500, 8)
    assert (weight[:, 0] == weight[:, 1]).all()
    assert (weight[:, 3] == weight[:, 4]).all()
    assert (weight[:, 4] == weight[:, 5]).all()
    assert (weight[:, [0, 2]].sum(axis=1) == 2).all()  # lesions a, b
    assert (weight[:, [3, 6, 7]].sum(axis=1) == 3).all()  # lesions c, d, e
    np.testing.assert_allclose(weight.mean(axis=0), 1, atol=0.15)


def test_stratum_of_a_lesion_is_its_most_frequent_label_and_of_ties_the_rarer():
    # m: two nv, one mel → nv. t: one nv, one mel → mel, which is rarer. Alone in mel, t is drawn exactly once.
    groups = ["m", "m", "m", "t", "t", "x", "y", "z"]
    strata = np.array(["nv", "nv", "mel", "nv", "mel", "nv", "nv", "nv"])
    weight = bootstrap_weights(groups, strata, 200, seed=0)
    assert (weight[:, 3:5] == 1).all()
    assert (weight[:, [0, 5, 6, 7]].sum(axis=1) == 4).all()
    assert len(set(weight[:, 0])) > 1


def test_draws_depend_on_seed_and_lesions_but_not_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    groups, strata = np.array([f"L{i}" for i in rng.integers(40, size=100)]), rng.integers(3, size=100)
    weight = bootstrap_weights(groups, strata, 20, seed=7)
    assert (bootstrap_weights(groups, strata, 20, seed=7) == weight).all()
    assert (bootstrap_weights(groups, strata, 20, seed=8) != weight).any()
    order = rng.permutation(100)
    assert (bootstrap_weights(groups[order], strata[order], 20, seed=7) == weight[:, order]).all()


def test_accuracy_by_enumeration():
    """Benign: lesion a (3 images, right) and b (1 image, wrong); malignant: c (right), always drawn.

    aa: 7 of 7 right with probability 1/4; ab: 4 of 5 with 1/2; bb: 1 of 3 with 1/4.
    """
    label, groups = np.array([0, 0, 0, 0, 1]), ["a", "a", "a", "b", "c"]
    probability = two_classes(label, [True, True, True, False, True])
    for level, low, high in [(0.95, 1 / 3, 1), (0.6, 1 / 3, 1), (0.4, 4 / 5, 4 / 5)]:  # 0.6: quantiles 0.2 and 0.8
        table = bootstrap_intervals(label, probability, groups, CLASSES, n_resamples=4000, level=level)
        assert table.loc[0, ["metric", "n_resamples"]].tolist() == ["accuracy", 4000]
        assert table.loc[0, "value"] == pytest.approx(4 / 5)
        assert interval(table, "accuracy") == pytest.approx([low, high])
    weight = bootstrap_weights(groups, label, 20_000, seed=0)
    share = [np.mean(weight[:, 0] == n) for n in (2, 1, 0)]
    assert share == pytest.approx([1 / 4, 1 / 2, 1 / 4], abs=0.015)


def test_independent_images_give_the_normal_approximation():
    label = np.repeat([0, 1], [400, 600])
    right = np.concatenate([np.arange(400) < 360, np.arange(600) < 420])  # recalls 0.9 and 0.7
    table = bootstrap_intervals(label, two_classes(label, right), np.arange(1000).astype(str), CLASSES)
    variance = {"recall/benign": 0.9 * 0.1 / 400, "recall/malignant": 0.7 * 0.3 / 600}
    variance["balanced_accuracy"] = sum(variance.values()) / 4
    values = {"recall/benign": 0.9, "recall/malignant": 0.7, "balanced_accuracy": 0.8}
    for metric, value in values.items():
        expected = value + np.array([-1.96, 1.96]) * np.sqrt(variance[metric])
        assert interval(table, metric) == pytest.approx(expected, abs=0.005)


def test_coverage_of_a_simulated_recall():
    """Of 300 test sets with a true sensitivity of 0.8, about 95 % of the intervals contain 0.8."""
    rng = np.random.default_rng(0)
    label, groups = np.repeat([0, 1], [20, 150]), np.arange(170).astype(str)
    covered = 0
    for seed in range(300):
        probability = two_classes(label, rng.random(170) < 0.8)
        table = bootstrap_intervals(label, probability, groups, CLASSES, n_resamples=400, seed=seed)
        low, high = interval(table, "sensitivity")
        covered += low <= 0.8 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_duplicates_narrow_the_interval_only_when_lesions_are_ignored():
    rng = np.random.default_rng(4)
    label = np.repeat([0, 1, 2], [150, 100, 50])
    logit = rng.normal(size=(300, 3))
    logit[np.arange(300), label] += 1.0
    probability = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    lesion = np.array([f"L{i:03}" for i in range(300)])
    once = bootstrap_intervals(label, probability, lesion, ["a", "b", "c"], n_resamples=1000)
    four = np.repeat(np.arange(300), 4)
    grouped = bootstrap_intervals(label[four], probability[four], lesion[four], ["a", "b", "c"], n_resamples=1000)
    ignored = bootstrap_intervals(
        label[four], probability[four], np.arange(1200).astype(str), ["a", "b", "c"], n_resamples=1000
    )
    columns = ["value", "low", "high"]
    np.testing.assert_allclose(grouped[columns], once[columns], atol=1e-12)  # copies bring no information
    for metric in ("accuracy", "balanced_accuracy", "auroc_macro", "f1_macro"):
        ratio = np.diff(interval(grouped, metric)) / np.diff(interval(ignored, metric))
        assert ratio == pytest.approx(2, abs=0.25)  # √4


def test_undefined_metrics_have_undefined_bounds():
    label = np.array([0, 0, 1, 1])
    probability = np.eye(3)[[0, 1, 1, 2]]
    table = bootstrap_intervals(label, probability, list("abcd"), ["a", "b", "c"], n_resamples=50).set_index("metric")
    assert table.loc["recall/c", ["value", "low", "high"]].isna().all()
    assert table.loc["recall/c", "n_resamples"] == 0
    assert table.drop("recall/c")[["value", "low", "high"]].notna().all().all()


def test_resamples_without_the_class_are_left_out_and_counted():
    """Class 1 lives in one image of lesion a, which is of stratum 0; (2/3)³ of the resamples lack it."""
    label, groups = np.array([0, 0, 1, 0, 0]), ["a", "a", "a", "b", "c"]
    table = bootstrap_intervals(label, two_classes(label, np.full(5, True)), groups, CLASSES).set_index("metric")
    assert table.loc["recall/malignant", ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert table.loc["recall/malignant", "n_resamples"] == pytest.approx(2000 * (1 - (2 / 3) ** 3), abs=85)
    assert table.loc["accuracy", "n_resamples"] == 2000


def test_seed_repeats_the_table():
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=60)
    arguments = label, two_classes(label, rng.random(60) < 0.7), np.arange(60).astype(str), CLASSES
    first = bootstrap_intervals(*arguments, n_resamples=100, seed=3)
    assert list(first.columns) == ["metric", "value", "low", "high", "n_resamples"]
    assert first.equals(bootstrap_intervals(*arguments, n_resamples=100, seed=3))
    assert not first.equals(bootstrap_intervals(*arguments, n_resamples=100, seed=4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["a"]}, "must both have shape"),
        ({"groups": ["a", None]}, "1 images have no lesion"),
        ({"n_resamples": 0}, "n_resamples must be at least 1, got 0"),
        ({"level": 95}, "level must lie between 0 and 1"),
        ({"label": [0, 5]}, "labels must lie in"),
    ],
)
def test_malformed_input_is_refused(change, message):
    good = {"label": [0, 1], "probability": np.eye(2), "groups": ["a", "b"], "classes": CLASSES}
    with pytest.raises(ValueError, match=message):
        bootstrap_intervals(**(good | change))
