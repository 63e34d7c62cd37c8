"""The confounding check has an AUROC of 0.5 without signal, even in small data sets, and a high one with signal."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from skincancer.audit import confounding
from skincancer.audit.confounding import fold_areas, measure_confounding, measure_sources, nuisance_table


def nuisances(rng, n, shift):
    values = {name: rng.normal(size=n) for name in ("bytes_per_pixel", "jpeg_table", "quality_border")}
    frames = {f"frame_{name}": 100 + rng.normal(size=n) for name in ("red", "green", "blue")}
    frames["frame_red"] += shift
    return pd.DataFrame({"width": 10, "height": 10, "error": "", **values, **frames})


@pytest.fixture(scope="module")
def prior():
    """Return predictions of class frequencies alone, in folds with unequal class counts."""
    label = np.repeat([0, 1, 2], 7)
    fold = np.concatenate([(np.arange(7) + 2 * number) % 5 for number in range(3)])
    probability = np.zeros((len(label), 3))
    for one in range(5):
        learned = np.bincount(label[fold != one], minlength=3)
        probability[fold == one] = learned / learned.sum()
    return label, probability, fold


def test_fold_areas_do_not_compare_across_folds(prior):
    label, probability, fold = prior
    once = np.ones((1, len(label)))
    pooled = fold_areas(label, probability, np.zeros_like(fold), once)
    assert pooled[0] < 0.45, "pairs across folds make the AUROC worse than chance"
    assert fold_areas(label, probability, fold, once)[0] == 0.5


def test_fold_areas_weight_pairs_by_image_counts(prior):
    label, _, fold = prior
    rng = np.random.default_rng(3)
    probability = rng.dirichlet(np.ones(3), size=len(label))
    weight = rng.integers(0, 3, size=(4, len(label)))
    expected = []
    for row in weight:
        areas = []
        for number in range(3):
            won = pairs = 0.0
            for i in np.flatnonzero(label == number):
                for j in np.flatnonzero((label != number) & (fold == fold[i])):
                    won += row[i] * row[j] * (np.sign(probability[i, number] - probability[j, number]) + 1) / 2
                    pairs += row[i] * row[j]
            areas.append(won / pairs)
        expected.append(np.mean(areas))
    np.testing.assert_allclose(fold_areas(label, probability, fold, weight), expected)


def test_fold_areas_of_two_classes_use_the_second_and_are_nan_without_pairs():
    label, fold = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    second = np.array([0.2, 0.9, 0.5, 0.5])
    probability = np.stack([1 - second, second], axis=1)
    weight = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 1]])
    np.testing.assert_allclose(fold_areas(label, probability, fold, weight), [0.75, 1.0, np.nan])


def test_auroc_of_small_sets_is_half_for_noise_and_high_for_signal(monkeypatch):
    monkeypatch.setattr(confounding, "RESAMPLES", 100)
    label = np.repeat([0, 1], 15)
    diagnosis = pd.Series(np.where(label == 1, "mel", "nv"))
    lesions = np.array([f"L{number}" for number in range(30)], dtype=object)

    def measured(seed, shift):
        facts = nuisances(np.random.default_rng(seed), 30, shift * label)
        return measure_confounding(diagnosis, facts, lesions, ("mel", "nv"))[0]

    noise = [measured(seed, 0.0) for seed in range(6)]
    assert np.mean([one.auroc for one in noise]) == pytest.approx(0.5, abs=0.08)
    assert sum(one.low <= 0.5 <= one.high for one in noise) >= 5
    assert measured(0, 12.0).low > 0.9


def test_interval_does_not_shrink_with_several_images_per_lesion(monkeypatch):
    monkeypatch.setattr(confounding, "RESAMPLES", 300)
    # Lesions per class, each with two images with the same nuisance features, by which a model could recognise the lesion.
    n = 40
    facts = nuisances(np.random.default_rng(1), 2 * n, 0.0).loc[np.repeat(np.arange(2 * n), 2)].reset_index(drop=True)
    diagnosis = pd.Series(np.repeat(["nv", "mel"], 2 * n))
    lesions = np.array([f"L{number // 2}" for number in range(4 * n)], dtype=object)
    result, _ = measure_confounding(diagnosis, facts, lesions, ("nv", "mel"))
    assert result.auroc == pytest.approx(0.5, abs=0.1)
    error = np.sqrt((2 * n + 1) / (12 * n**2))  # standard error of the AUROC of n against n without a difference
    assert result.high - result.low > 0.95 * 2 * 1.96 * error, "by images it would be 0.71 of that"


def test_confounding_is_high_for_classes_with_different_sources_only():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 150)
    diagnosis = pd.Series(np.where(label == 1, "mel", "nv"))
    lesions = np.array([f"L{number // 2}" for number in range(300)], dtype=object)
    result, _ = measure_confounding(diagnosis, nuisances(rng, 300, 3.0 * label), lesions, ("mel", "nv"))
    assert result.low > 0.9
    assert result.low < result.auroc < result.high
    best = result.features.iloc[0]
    facts = nuisances(np.random.default_rng(0), 300, 3.0 * label)
    assert best["feature"] in ("frame_red", "frame_warmth")
    assert best["auroc"] == pytest.approx(roc_auc_score(label, nuisance_table(facts)[best["feature"]]))
    assert "width" not in set(result.features["feature"]), "constant features are left out"
    chance, _ = measure_confounding(diagnosis, nuisances(rng, 300, 0.0), lesions, ("mel", "nv"))
    assert 0.35 < chance.auroc < 0.65
    nothing, why = measure_confounding(diagnosis.iloc[:150], facts.iloc[:150], lesions[:150], ("mel", "nv"))
    assert nothing is None
    assert "fewer than two classes" in why


def test_sources_separate_class_and_confirmation_method():
    """Images of one clinic are redder, and only this clinic confirms nevi by follow-up."""
    rng = np.random.default_rng(0)
    diagnosis = np.repeat(["mel", "nv", "nv"], 60)
    way = np.repeat(["histo", "histo", "follow_up"], 60)
    index = pd.DataFrame({"diagnosis": diagnosis, "dx_type": way, "image_id": np.arange(180)})
    facts = nuisances(rng, 180, np.where(way == "follow_up", 20.0, 0.0))
    groups = np.arange(180).astype(str)
    assert measure_confounding(index["diagnosis"], facts, groups, ["mel", "nv"])[0].auroc > 0.65
    elsewhere = pd.Series(np.arange(180) % 3 == 0)
    fixed, clinic, other = measure_sources(index, facts, groups, ["mel", "nv"], elsewhere, "isic")
    assert fixed.what == "Of images confirmed by histo alone, the classes"
    assert (fixed.confounding.images, fixed.confounding.auroc) == (120, pytest.approx(0.5, abs=0.12))
    assert clinic.what == "Of nv alone, how the diagnosis was confirmed"
    assert (clinic.confounding.images, clinic.confounding.auroc) == (120, pytest.approx(1, abs=0.01))
    assert other.what == "Of nv alone, whether an image is also in isic"
    assert other.confounding.auroc == pytest.approx(0.5, abs=0.12)
    assert measure_sources(index.assign(dx_type=""), facts, groups, ["mel", "nv"], None, "") == []
    assert measure_sources(index.assign(dx_type="histo"), facts, groups, ["mel", "nv"], None, "")[1:] == []
