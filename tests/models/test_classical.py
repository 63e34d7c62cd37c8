"""Classical classifiers: fits, probabilities, balance, the file that they are kept in."""

import dataclasses
import zipfile

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from skops.io import dump

from skincancer.config.resolve import resolve
from skincancer.errors import ConfigError, DataError, WeightsError
from skincancer.models import classical
from skincancer.models.classical import (
    CLASSIFIERS,
    CalibratedMachines,
    NamedClusters,
    VotingNeighbours,
    fit_pipeline,
    lesion_folds,
    load_pipeline,
    save_pipeline,
)
from skincancer.schema.data import DataConfig
from skincancer.schema.model import ClassicalConfig

OPTIONS = ClassicalConfig(neighbours=5, clusters=9, trees=30)


def made(n=120, seed=0, strength=1.0):
    """Three classes, most of the first; two images a lesion; two columns that tell, one that is often missing, one always."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.choice(3, n // 2, p=[0.7, 0.2, 0.1]), 2)
    label[:6] = [0, 0, 1, 1, 2, 2]
    values = rng.normal(size=(n, 4)).astype(np.float32)
    values[:, 0] += strength * 3 * label
    values[:, 1] -= strength * 2 * label
    values[rng.random(n) < 0.3, 2] = np.nan
    values[:, 3] = np.nan
    return pd.DataFrame(values, columns=["a", "b", "c", "d"]), label, np.repeat(np.arange(n // 2), 2).astype(str)


def fitted(classifier, balance="none", seed=0, options=OPTIONS):
    features, label, groups = made()
    return fit_pipeline(classifier, options, DataConfig(balance=balance), features, label, groups, seed)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_classifier_learns_gives_probabilities_and_comes_back_as_it_was_kept(classifier, tmp_path):
    pipeline = fitted(classifier)
    others, label, _ = made(seed=1)
    probability = pipeline.predict_proba(others)
    assert probability.sum(axis=1) == pytest.approx(1)
    assert accuracy_score(label, probability.argmax(axis=1)) > 0.8
    save_pipeline(pipeline, tmp_path / "best.skops")
    again = load_pipeline(tmp_path / "best.skops")
    assert np.array_equal(again.predict_proba(others), probability)
    assert list(again.feature_names_in_) == ["a", "b", "c", "d"]
    assert np.array_equal(fitted(classifier).predict_proba(others), probability), "the same twice"
    # alone as among others
    assert again.predict_proba(others.iloc[[7]]) == pytest.approx(probability[[7]], abs=1e-12)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_missing_values_are_the_medians_of_the_training_images(classifier):
    pipeline = fitted(classifier)
    features, _, _ = made()
    others, _, _ = made(seed=1)
    filled = others.fillna({"c": features["c"].median(), "d": 0})
    assert np.array_equal(pipeline.predict_proba(others), pipeline.predict_proba(filled))


def test_deep_features_keep_the_scale_of_their_backbone():
    features, label, groups = made(strength=0.3)
    others, _, _ = made(seed=1, strength=0.3)
    features, others = (one[["a", "b"]].assign(b=one["b"] / 1000) for one in (features, others))
    settings = DataConfig()
    deep = dataclasses.replace(OPTIONS, features=["deep"])
    said = {
        kind: fit_pipeline("knn", options, settings, features, label, groups, 0).predict_proba(others)
        for kind, options in {"deep": deep, "hand-crafted": OPTIONS}.items()
    }
    plain = KNeighborsClassifier(5).fit(features, label).predict_proba(others)
    assert said["deep"] == pytest.approx((5 * plain + 1 / 3) / 6)
    assert said["hand-crafted"] != pytest.approx((5 * plain + 1 / 3) / 6)


def test_random_forest_is_scikit_learns():
    features, label, _ = made()
    reference = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(),
        RandomForestClassifier(30, min_samples_leaf=3, random_state=0),
    ).fit(features, label)  # fmt: skip
    assert fitted("random_forest").predict_proba(features) == pytest.approx(reference.predict_proba(features))


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_balance_acts_on_what_is_learned(classifier):
    features, label, groups = made(n=240, strength=0.2)
    others, _, _ = made(n=240, seed=1, strength=0.2)
    said = {}
    for balance in ("none", "class_weights", "oversample", "undersample"):
        pipeline = fit_pipeline(classifier, OPTIONS, DataConfig(balance=balance), features, label, groups, 0)
        said[balance] = pipeline.predict_proba(others)[:, 2].mean()
    plain = said.pop("none")
    assert min(said.values()) > 1.2 * plain, "the rarest class is thought of more often"


def test_more_neighbours_than_images_are_reported():
    features, label, groups = made()
    most = 3 * int(np.bincount(label).min())
    options = dataclasses.replace(OPTIONS, neighbours=most + 1)
    with pytest.raises(ConfigError, match=f"neighbours is {most + 1}, but there are {most} training images"):
        fit_pipeline("knn", options, DataConfig(balance="undersample"), features, label, groups, 0)


def test_clusters_are_named_by_their_majority():
    points = np.array([[0.0], [0.1], [0.2], [10.0], [10.1]])
    clusters = NamedClusters(2, seed=0).fit(points, np.array([1, 1, 0, 0, 0]))
    assert list(clusters.predict(np.array([[0.05], [9.0]]))) == [1, 0]
    assert clusters.predict_proba(np.array([[0.0]]))[0] == pytest.approx([(1 + 1 / 2) / 4, (2 + 1 / 2) / 4])
    # a weight counts as so many images
    weighted = NamedClusters(2, seed=0).fit(points, np.array([1, 1, 0, 0, 0]), np.array([1.0, 1, 3, 1, 1]))
    assert list(weighted.predict(points)) == [0, 0, 0, 0, 0]


def test_votes_of_neighbours_are_weighed():
    points = np.array([[0.0], [0.1], [0.2], [5.0]])
    voting = VotingNeighbours(3).fit(points, np.array([0, 0, 1, 1]), np.array([1.0, 1, 4, 9]))
    assert voting.predict_proba(np.array([[0.0]]))[0] == pytest.approx([2.5 / 7, 4.5 / 7])
    assert list(voting.predict(np.array([[0.0]]))) == [1]
    assert list(VotingNeighbours(3).fit(points, np.array([0, 0, 1, 1])).predict(np.array([[0.0]]))) == [0]


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_of_the_svm_are_a_regression_of_what_its_machines_say_of_unseen_lesions(classes):
    features, label, groups = made(n=240, strength=0.3)
    features, label = features[["a", "b"]].to_numpy(), np.minimum(label, classes - 1)
    others = made(n=240, seed=1, strength=0.3)[0][["a", "b"]].to_numpy()
    weights = np.where(label == 0, 1.0, 2.0)
    folds = lesion_folds(label, groups, seed=0)
    ours = CalibratedMachines(C=2.0, gamma=0.5, folds=folds).fit(features, label, weights)
    positive = range(classes) if classes > 2 else [1]
    unseen, decisions = np.zeros((240, len(positive))), np.zeros((240, len(positive)))
    for column, number in enumerate(positive):
        machine = SVC(C=2.0, gamma=0.5)
        for learn, rest in folds:
            machine.fit(features[learn], label[learn] == number, weights[learn])
            unseen[rest, column] = machine.decision_function(features[rest])
        decisions[:, column] = machine.fit(features, label == number, weights).decision_function(others)
    regression = LogisticRegression(max_iter=10_000).fit(unseen, label, weights)
    assert ours.predict_proba(others) == pytest.approx(regression.predict_proba(decisions))
    assert np.array_equal(ours.predict(others), regression.predict(decisions))


@pytest.mark.parametrize("balance", ["none", "class_weights", "oversample", "undersample"])
def test_the_svm_is_calibrated_on_lesions_that_it_has_not_seen_whatever_is_drawn(balance, monkeypatch):
    features, label, groups = made()
    seen = []

    class Spy(CalibratedMachines):
        def fit(self, X, y, sample_weight=None):
            seen.append((self.folds, X, y))
            return super().fit(X, y, sample_weight)

    monkeypatch.setattr(classical, "CalibratedMachines", Spy)
    numbered = features.assign(c=np.arange(len(features)) // 2.0, d=0.0)  # c says which lesion it is
    fit_pipeline("svm", OPTIONS, DataConfig(balance=balance), numbered, label, groups, 0)
    [(folds, drawn, y)] = seen
    lesion = drawn[:, 2]
    assert len(folds) == 5
    assert sorted(np.concatenate([rest for _, rest in folds])) == list(range(len(y)))
    for learn, rest in folds:
        assert not set(lesion[learn]) & set(lesion[rest])


def test_no_lesion_is_on_two_sides_of_the_calibration():
    _, label, groups = made()
    folds = lesion_folds(label, groups, seed=0)
    assert len(folds) == 5
    assert sorted(np.concatenate([calibrate for _, calibrate in folds])) == list(range(len(label)))
    for learn, calibrate in folds:
        assert not set(groups[learn]) & set(groups[calibrate])
        assert set(label[learn]) == {0, 1, 2}


def test_calibration_uses_as_many_folds_as_the_rarest_class_has_lesions():
    label = np.array([0] * 12 + [1] * 6)
    groups = np.array([*range(12), 20, 20, 20, 20, 21, 22]).astype(str)
    assert len(lesion_folds(label, groups, seed=0)) == 3
    with pytest.raises(DataError, match=r"the 1 lesions of the class with label 1 are too few"):
        lesion_folds(label, np.array([*range(12), *[20] * 6]).astype(str), seed=0)


def test_too_many_clusters_are_reported():
    with pytest.raises(
        ConfigError, match=r"clusters is 61, but the training images are of 60 lesions. Use fewer clusters"
    ):
        fitted("kmeans", options=dataclasses.replace(OPTIONS, clusters=61))


class Evil:
    """What a file may hold that wants its own code to run when it is loaded."""

    def __init__(self):
        self.harm = "rm -rf /"


def test_file_with_unknown_types_is_refused(tmp_path, monkeypatch):
    pipeline = Pipeline([("imputer", SimpleImputer()), ("classifier", Evil())])
    dump(pipeline, tmp_path / "evil.skops")
    monkeypatch.setattr(Evil, "__setstate__", lambda *state: pytest.fail("it was built"), raising=False)
    with pytest.raises(
        WeightsError, match=r"evil.skops: refused: it holds .*Evil, which no classifier of this software has"
    ):
        load_pipeline(tmp_path / "evil.skops")


def test_file_that_is_no_skops_file_is_reported(tmp_path):
    (tmp_path / "text.skops").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "empty.skops", "w"):
        pass
    for name in ("text", "empty", "gone"):
        with pytest.raises(WeightsError, match=f"{name}.skops: cannot be read as a skops file"):
            load_pipeline(tmp_path / f"{name}.skops")
    dump({"a": 1}, tmp_path / "dict.skops")
    with pytest.raises(WeightsError, match=r"dict.skops: holds dict, not the fitted pipeline of a classifier"):
        load_pipeline(tmp_path / "dict.skops")


@pytest.mark.parametrize(
    ("experiment", "flags", "message"),
    [
        ("svm_features", {"trainer.max_epochs": 3}, "trainer.max_epochs is 3; it is for networks, and model.classifier is svm"),
        ("svm_features", {"augment.rotation": 3.0}, "augment.rotation is 3.0; it is for networks"),
        ("svm_features", {"augment.policy": "strong"}, "augment.policy is 'strong'; it is for networks"),
        ("svm_features", {"training.ema_decay": 0.9}, "training.ema_decay is 0.9; it is for networks"),
        ("svm_features", {"model.optimizer.lr": 0.5}, "model.optimizer.lr is 0.5; it is for networks"),
        ("svm_features", {"model.backbone": "resnet18"}, "model.classifier is svm with hand-crafted features"),
        ("svm_features", {"model.weights": "none"}, "model.weights is 'none'; it is for networks"),
        ("svm_features", {"trainer.devices": 2}, "trainer.devices is 2, trainer.num_nodes 1; svm is fitted by one process"),
        ("svm_features", {"training.monitor": "val/loss"}, "training.monitor is 'val/loss'; svm is fitted without a loss"),
        ("svm_features", {"data.crop": True}, "data.crop is True; hand-crafted features are measured in masks of whole images"),
        ("svm_features", {"model.classical.trees": 3}, "model.classical.trees is 3; it is for model.classifier random_forest"),
        ("svm_features", {"model.classical.C": 0.0}, "model.classical.C is 0.0; it must be above 0"),
        ("svm_features", {"model.classical.gamma": -1.0}, "model.classical.gamma is -1.0; it must be scale, or above 0"),
        ("svm_features", {"model.classical.features": ["abc"]}, "model.classical.features is 'abc'; choose one of abcd"),
        ("svm_features", {"model.classical.features": ["deep", "abcd"]}, "each once; or deep alone"),
        ("svm_features", {"model.classical.features": []}, "each once; or deep alone"),
        ("svm_deep", {"data.masks": "otsu"}, "data.masks is 'otsu'; it is for data.crop true"),
        ("svm_deep", {"model.freeze": "all"}, "model.freeze is 'all'; it is for networks"),
        ("resnet50", {"model.classical.C": 2.0}, "model.classical.C is 2.0; it is for model.classifier svm"),
        ("resnet50", {"model.classical.features": ["abcd"]}, "it is for the classifiers svm, knn, kmeans, random_forest"),
        ("unet_resnet34", {"model.classifier": "svm"}, "is for task classification"),
    ],
)  # fmt: skip
def test_settings_that_would_be_ignored_are_refused(experiment, flags, message):
    with pytest.raises(ConfigError) as error:
        resolve(experiment, flags)
    assert message in str(error.value)


def test_what_the_data_set_sets_for_networks_is_no_error():
    resolved, _ = resolve("svm_features", {"data.masks": "otsu"})  # the demo is small and short
    assert resolved.data.size == 64
    assert resolved.trainer.max_epochs == 20, "as if nobody had said anything"
    again, _ = resolve(None, {}, base={"model.classifier": "knn", "name": "mine"})
    assert again.model.learner == "knn"
