"""Class and source: an area of 0.5 where there is nothing to learn, however small the set, and a high one where there is."""

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
    """What a model answers that learns nothing but how frequent a class is, in folds that cannot hold equally much of each."""
    label = np.repeat([0, 1, 2], 7)
    fold = np.concatenate([(np.arange(7) + 2 * number) % 5 for number in range(3)])
    probability = np.zeros((len(label), 3))
    for one in range(5):
        learned = np.bincount(label[fold != one], minlength=3)
        probability[fold == one] = learned / learned.sum()
    return label, probability, fold


def test_folds_are_not_compared_with_each_other(prior):
    label, probability, fold = prior
    once = np.ones((1, len(label)))
    pooled = fold_areas(label, probability, np.zeros_like(fold), once)
    assert pooled[0] < 0.45  # the defect: worse than chance, by the folds alone
    assert fold_areas(label, probability, fold, once)[0] == 0.5


def test_the_area_is_that_of_pairs_in_a_fold_each_as_often_as_its_images(prior):
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


def test_two_classes_are_told_by_the_second_and_no_pair_gives_no_area():
    label, fold = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    second = np.array([0.2, 0.9, 0.5, 0.5])
    probability = np.stack([1 - second, second], axis=1)
    weight = np.array([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 1]])
    np.testing.assert_allclose(fold_areas(label, probability, fold, weight), [0.75, 1.0, np.nan])


def test_small_sets_of_noise_give_a_half_and_a_sign_of_the_class_is_found(monkeypatch):
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


def test_two_images_of_a_lesion_tell_no_more_than_one(monkeypatch):
    monkeypatch.setattr(confounding, "RESAMPLES", 300)
    n = 40  # lesions a class, each of two images with the same nuisances, by which it could be recognised
    facts = nuisances(np.random.default_rng(1), 2 * n, 0.0).loc[np.repeat(np.arange(2 * n), 2)].reset_index(drop=True)
    diagnosis = pd.Series(np.repeat(["nv", "mel"], 2 * n))
    lesions = np.array([f"L{number // 2}" for number in range(4 * n)], dtype=object)
    told, _ = measure_confounding(diagnosis, facts, lesions, ("nv", "mel"))
    assert told.auroc == pytest.approx(0.5, abs=0.1)
    error = np.sqrt((2 * n + 1) / (12 * n**2))  # of a Mann-Whitney area of n against n without any difference
    assert told.high - told.low > 0.95 * 2 * 1.96 * error, "by images it would be 0.71 of that"


def test_confounding_is_found_where_there_is_some_and_only_there():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 150)
    diagnosis = pd.Series(np.where(label == 1, "mel", "nv"))
    lesions = np.array([f"L{number // 2}" for number in range(300)], dtype=object)
    told, _ = measure_confounding(diagnosis, nuisances(rng, 300, 3.0 * label), lesions, ("mel", "nv"))
    assert told.low > 0.9
    assert told.low < told.auroc < told.high
    best = told.features.iloc[0]
    facts = nuisances(np.random.default_rng(0), 300, 3.0 * label)
    assert best["feature"] in ("frame_red", "frame_warmth")
    assert best["auroc"] == pytest.approx(roc_auc_score(label, nuisance_table(facts)[best["feature"]]))
    assert "width" not in set(told.features["feature"])  # it is the same everywhere
    chance, _ = measure_confounding(diagnosis, nuisances(rng, 300, 0.0), lesions, ("mel", "nv"))
    assert 0.35 < chance.auroc < 0.65
    nothing, why = measure_confounding(diagnosis.iloc[:150], facts.iloc[:150], lesions[:150], ("mel", "nv"))
    assert nothing is None
    assert "fewer than two classes" in why


def test_class_and_source_are_told_apart_where_one_of_them_is_fixed():
    """Pictures of a clinic are redder; it confirms nevi by follow-up, so that the colour tells the classes, and no class as such."""
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
    assert (fixed.told.images, fixed.told.auroc) == (120, pytest.approx(0.5, abs=0.12))
    assert clinic.what == "Of nv alone, how the diagnosis was confirmed"
    assert (clinic.told.images, clinic.told.auroc) == (120, pytest.approx(1, abs=0.01))
    assert other.what == "Of nv alone, whether an image is also in isic"
    assert other.told.auroc == pytest.approx(0.5, abs=0.12)
    assert measure_sources(index.assign(dx_type=""), facts, groups, ["mel", "nv"], None, "") == []
    assert measure_sources(index.assign(dx_type="histo"), facts, groups, ["mel", "nv"], None, "")[1:] == []
