"""The confounding check has an AUROC of 0.5 without signal, even in small data sets, and a high one with signal."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from skincancer.audit.confounding import fold_area, measure_confounding, measure_sources, nuisance_table


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


def macro_area(label, probability, fold):
    lesion = np.arange(len(label))
    return np.mean([fold_area(label == c, probability[:, c], fold, lesion).value for c in range(probability.shape[1])])


def test_fold_area_does_not_compare_across_folds(prior):
    label, probability, fold = prior
    assert macro_area(label, probability, np.zeros_like(fold)) < 0.45, "pairs across folds: worse than chance"
    assert macro_area(label, probability, fold) == 0.5


def test_fold_area_is_the_share_of_pairs_within_a_fold(prior):
    label, _, fold = prior
    score = np.random.default_rng(3).random(len(label))
    won = [
        (np.sign(score[i] - score[j]) + 1) / 2
        for i in np.flatnonzero(label == 1)
        for j in np.flatnonzero((label != 1) & (fold == fold[i]))
    ]
    assert fold_area(label == 1, score, fold, np.arange(len(label))).value == pytest.approx(np.mean(won))


def test_fold_area_ignores_folds_of_one_class_and_is_nan_without_pairs():
    positive, fold = np.array([False, True, False, True, True]), np.array([0, 0, 1, 1, 2])
    score = np.array([0.2, 0.9, 0.5, 0.5, 0.0])
    assert fold_area(positive, score, fold, np.arange(5)).value == 0.75
    alone = fold_area(positive, score, np.arange(5), np.arange(5))
    assert np.isnan(alone.value)
    assert alone.note == "no two classes within a fold"


def test_interval_of_fold_areas_contains_the_area_of_the_population():
    rng = np.random.default_rng(0)
    fold, lesion = np.arange(120) % 5, np.arange(120) // 2
    covered = []
    for _ in range(300):
        positive = np.repeat(rng.random(60) < 0.3, 2)
        score = positive + np.repeat(rng.normal(size=60), 2)
        low, high = fold_area(positive, score, fold, lesion).bounds()
        covered.append(low <= stats.norm.cdf(np.sqrt(0.5)) <= high)
    assert np.mean(covered) > 0.93


def test_interval_of_perfect_fold_areas_has_a_width():
    positive, fold = np.arange(40) % 2 == 1, np.arange(40) // 2 % 5
    low, high = fold_area(positive, positive.astype(float), fold, np.arange(40)).bounds()
    assert 0.8 < low < 0.99
    assert high == 1


def test_auroc_of_small_sets_is_half_for_noise_and_high_for_signal():
    label = np.repeat([0, 1], 15)
    diagnosis = pd.Series(np.where(label == 1, "mel", "nv"))
    lesions = np.array([f"L{number}" for number in range(30)], dtype=object)

    def measured(seed, shift):
        facts = nuisances(np.random.default_rng(seed), 30, shift * label)
        return measure_confounding(diagnosis, facts, lesions, ("mel", "nv"))[0]

    noise = [measured(seed, 0.0) for seed in range(6)]
    assert np.mean([one.auroc for one in noise]) == pytest.approx(0.5, abs=0.08)
    assert sum(one.low <= 0.5 <= one.high for one in noise) >= 5
    assert measured(0, 12.0).auroc == 1
    assert measured(0, 12.0).low > 0.85


def test_interval_does_not_shrink_with_several_images_per_lesion():
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
