"""McNemar and Holm against statsmodels; DeLong against its definition, pair by pair, and against the spread of simulated data."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from skincancer.metrics.paired_tests import delong, holm, mcnemar


@pytest.mark.parametrize(
    ("both", "first", "second", "none"), [(50, 9, 3, 10), (50, 24, 0, 1), (100, 40, 25, 9), (3, 12, 13, 0)]
)
def test_mcnemar_is_that_of_statsmodels(both, first, second, none):
    one = np.repeat([True, True, False, False], [both, first, second, none])
    other = np.repeat([True, False, True, False], [both, first, second, none])
    found = mcnemar(one, other)
    exact = first + second < 25
    reference = reference_mcnemar([[both, first], [second, none]], exact=exact, correction=True)
    assert (found.first_only, found.second_only, found.exact) == (first, second, exact)
    assert found.p == pytest.approx(reference.pvalue, abs=1e-12)


def test_mcnemar_counts_a_lesion_once():
    # lesion a: three images that only the first has right; b: one each way; c: two that only the second has
    one = [True, True, True, True, False, False, False, True]
    other = [False, False, False, False, True, True, True, True]
    found = mcnemar(one, other, ["a", "a", "a", "b", "b", "c", "c", "d"])
    assert (found.first_only, found.second_only, found.p) == (1, 1, 1.0)


def test_models_that_never_differ_have_no_difference():
    assert mcnemar([True, False], [True, False]).p == 1.0


def test_holm_is_that_of_statsmodels():
    p = [0.01, 0.04, 0.03, 0.005, 0.5, 0.5]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-15)
    assert holm([0.02, float("nan"), 0.03])[1] != holm([0.02, float("nan"), 0.03])[1]
    assert holm([0.02, float("nan"), 0.03])[0] == pytest.approx(0.04)
    assert holm([]) == []


def two_scores(seed, n=60, classes=2):
    draw = np.random.default_rng(seed)
    label = np.r_[np.arange(classes), np.arange(classes), draw.integers(classes, size=n - 2 * classes)]
    models = []
    for strength in (1.0, 0.6):
        logits = draw.normal(size=(n, classes)).round(1) + strength * np.eye(classes)[label]  # rounded: with ties
        models.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    return label, models[0], models[1]


def by_pairs(positive, first, second):
    """DeLong's 1988 covariance as the paper writes it: over all pairs of a positive and a negative."""
    v10, v01, areas = [], [], []
    for score in (first, second):
        wins = (score[positive][:, None] > score[~positive]) + 0.5 * (score[positive][:, None] == score[~positive])
        v10.append(wins.mean(1))
        v01.append(wins.mean(0))
        areas.append(wins.mean())
    s = np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])
    return areas, np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])


@pytest.mark.parametrize("seed", range(3))
def test_delong_is_its_definition(seed):
    label, first, second = two_scores(seed)
    found = delong(label, first, second, ["benign", "malignant"])
    areas, error = by_pairs(label == 1, first[:, 1], second[:, 1])
    assert (found.first, found.second) == pytest.approx(areas, abs=1e-12)
    assert found.first == pytest.approx(roc_auc_score(label, first[:, 1]), abs=1e-12)
    assert found.error == pytest.approx(error, abs=1e-12)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(areas[0] - areas[1]) / error), abs=1e-12)


def test_lesions_of_one_image_change_nothing_and_copies_add_no_evidence():
    label, first, second = two_scores(5)
    names = [f"l{i}" for i in range(len(label))]
    alone = delong(label, first, second, ["b", "m"])
    assert delong(label, first, second, ["b", "m"], names) == pytest.approx(alone)
    # every image photographed four times: as images p falls, as lesions it stays (but for m−1 in place of 4m−1)
    four = [np.repeat(values, 4, axis=0) for values in (label, first, second)]
    assert delong(*four, ["b", "m"]).p < alone.p
    assert delong(*four, ["b", "m"], np.repeat(names, 4)).error == pytest.approx(alone.error, rel=0.02)


def test_macro_auroc_of_several_classes():
    label, first, second = two_scores(7, n=200, classes=4)
    found = delong(label, first, second, list("abcd"))
    assert found.first == pytest.approx(roc_auc_score(label, first, multi_class="ovr"), abs=1e-12)
    # the jackknife is another estimate of the same error
    left_out = []
    for i in range(len(label)):
        keep = np.arange(len(label)) != i
        left_out.append(np.subtract(*(roc_auc_score(label[keep], p[keep], multi_class="ovr") for p in (first, second))))
    n = len(label)
    jackknife = np.sqrt((n - 1) / n * ((left_out - np.mean(left_out)) ** 2).sum())
    assert found.error == pytest.approx(jackknife, rel=0.03)


def test_equal_models_are_not_reported_apart():
    label, first, _ = two_scores(3, classes=3)
    found = delong(label, first, first, list("abc"))
    assert (found.difference, found.error, found.p) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mcnemar([True], [True, False]), "one length"),
        (lambda: mcnemar([], []), "one length"),
        (lambda: delong([1, 1], [[0.5, 0.5]] * 2, [[0.5, 0.5]] * 2, ["b", "m"]), "no class has two images"),
        (lambda: delong([0, 0, 1, 1], [[0.5, 0.5]] * 4, [[0.5, 0.4]] * 4, ["b", "m"]), "sum to 1"),
        (lambda: delong([0, 0, 1, 1], [[0.5, 0.5]] * 4, [[0.5, 0.5]] * 4, ["b", "m"], ["a"]), "groups"),
    ],
)
def test_malformed_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
