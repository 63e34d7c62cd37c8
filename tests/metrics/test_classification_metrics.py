from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn import metrics as reference

from skincancer.metrics import classification
from skincancer.metrics.classification import classification_metrics, weighted_metrics
from skincancer.metrics.names import TWO_CLASS_METRICS, class_metric

NAMES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def predictions(n_classes, n_images, ties, seed=0):
    """Draw labels and probabilities; with ties these are multiples of 0.1, so that nearly all scores are shared."""
    rng = np.random.default_rng(seed)
    label = rng.choice(n_classes, n_images, p=rng.dirichlet(np.full(n_classes, 3.0)))
    label[:n_classes] = range(n_classes)
    logit = rng.normal(size=(n_images, n_classes))
    logit[np.arange(n_images), label] += 1.0
    probability = np.exp(logit) / np.exp(logit).sum(axis=1, keepdims=True)
    if ties:
        probability = np.array([rng.multinomial(10, row) for row in probability]) / 10
    return label, probability


def naive_ece(label, probability, weight):
    """Compute the calibration error as in Guo's own code: a loop over bins, open below and closed above."""
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == label
    edges = np.linspace(0, 1, 16)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if weight[inside].sum() > 0:
            accuracy = np.average(right[inside], weights=weight[inside])
            mean_confidence = np.average(confidence[inside], weights=weight[inside])
            total += weight[inside].sum() / weight.sum() * abs(accuracy - mean_confidence)
    return total


def by_sklearn(label, probability, classes, weight):
    n_classes = len(classes)
    prediction = probability.argmax(axis=1)
    scored = [1] if n_classes == 2 else sorted(set(label))
    shared = {"labels": scored, "average": "macro", "sample_weight": weight, "zero_division": 0}
    expected = {
        "accuracy": reference.accuracy_score(label, prediction, sample_weight=weight),
        "balanced_accuracy": reference.balanced_accuracy_score(label, prediction, sample_weight=weight),
        "f1_macro": reference.f1_score(label, prediction, average="macro", sample_weight=weight),
        "sensitivity": reference.recall_score(label, prediction, **shared),
        "precision": reference.precision_score(label, prediction, **shared),
        "specificity": np.mean(
            [
                reference.recall_score(label != c, prediction != c, sample_weight=weight, zero_division=np.nan)
                for c in scored
            ]
        ),
        "average_precision": np.mean(
            [reference.average_precision_score(label == c, probability[:, c], sample_weight=weight) for c in scored]
        ),
        "ece": naive_ece(label, probability, weight),
    }
    if n_classes == 2:
        expected["auroc_macro"] = reference.roc_auc_score(label, probability[:, 1], sample_weight=weight)
    else:
        expected["auroc_macro"] = reference.roc_auc_score(
            label, probability, multi_class="ovr", average="macro", sample_weight=weight
        )
    recalls = reference.recall_score(
        label, prediction, labels=range(n_classes), average=None, sample_weight=weight, zero_division=np.nan
    )
    if n_classes > 2:
        expected = {class_metric(name, n_classes): value for name, value in expected.items()}
    return expected | {f"recall/{name}": recall for name, recall in zip(classes, recalls, strict=True)}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_equal_to_sklearn(n_classes, ties, weighted):
    label, probability = predictions(n_classes, 300, ties)
    classes = NAMES[:n_classes]
    weight = np.random.default_rng(1).uniform(0.1, 4, size=300) if weighted else np.ones(300)
    given = classification_metrics(label, probability, classes, weight if weighted else None)
    expected = by_sklearn(label, probability, classes, weight)
    assert list(given) == [
        *(class_metric(name, len(classes)) for name in TWO_CLASS_METRICS),
        *(f"recall/{name}" for name in classes),
    ]
    assert given == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n_classes", [2, 7])
def test_weights_count_images(monkeypatch, n_classes, ties):
    """A row of weights gives what sklearn gives on the images repeated that often, images of weight 0 left out."""
    label, probability = predictions(n_classes, 120, ties, seed=3)
    classes = NAMES[:n_classes]
    weight = np.random.default_rng(2).poisson(1.0, size=(9, 120))
    weight[:, :n_classes] += 1  # sklearn's AUROC needs every class
    monkeypatch.setattr(classification, "_CHUNK", 4 * 120)  # chunks of 4, 4 and 1 rows
    given = weighted_metrics(label, probability, classes, weight)
    for r, row in enumerate(weight):
        repeated = np.repeat(np.arange(120), row)
        expected = by_sklearn(label[repeated], probability[repeated], classes, np.ones(len(repeated)))
        assert {name: value[r] for name, value in given.items()} == pytest.approx(expected, abs=1e-12)


def test_four_classes_by_hand():
    """Class d is absent from the labels but predicted once; class c is present and never predicted."""
    label = [0, 0, 1, 1, 2]
    probability = [
        [0.7, 0.1, 0.1, 0.1],
        [0.3, 0.5, 0.1, 0.1],
        [0.2, 0.6, 0.1, 0.1],
        [0.2, 0.4, 0.3, 0.1],
        [0.1, 0.1, 0.2, 0.6],
    ]
    given = classification_metrics(label, probability, ["a", "b", "c", "d"])
    assert given == pytest.approx(
        {
            "accuracy": 3 / 5,
            "balanced_accuracy": (1 / 2 + 1 + 0) / 3,
            "f1_macro": (2 / 3 + 4 / 5 + 0 + 0) / 4,
            "auroc_macro": (1 + 5 / 6 + 3 / 4) / 3,
            "average_precision_macro": (1 + 5 / 6 + 1 / 2) / 3,
            "recall_macro": (1 / 2 + 1 + 0) / 3,
            "specificity_macro": (1 + 2 / 3 + 1) / 3,
            "precision_macro": (1 + 2 / 3 + 0) / 3,
            # bins: 0.7 right, 0.5 wrong, 0.6 once right and once wrong, 0.4 right
            "ece": (0.3 + 0.5 + abs(1 - 1.2) + 0.6) / 5,
            "recall/a": 1 / 2,
            "recall/b": 1,
            "recall/c": 0,
            "recall/d": np.nan,
        },
        abs=1e-12,
        nan_ok=True,
    )


def test_two_classes_by_hand():
    """Positive is the second class; the positive at 0.4 ties with a negative."""
    label = [1, 1, 0, 0, 0]
    positive = np.array([0.9, 0.4, 0.4, 0.6, 0.1])
    given = classification_metrics(label, np.column_stack([1 - positive, positive]), ["benign", "malignant"])
    assert given["sensitivity"] == given["recall/malignant"] == 1 / 2
    assert given["specificity"] == given["recall/benign"] == pytest.approx(2 / 3)
    assert given["precision"] == 1 / 2
    assert given["auroc_macro"] == pytest.approx((3 + 1.5) / 6)
    assert given["average_precision"] == pytest.approx((1 + 2 / 4) / 2)


def test_only_one_class_present():
    probability = np.array([[0.8, 0.2], [0.4, 0.6]])
    benign = classification_metrics([0, 0], probability, ["benign", "malignant"])
    undefined = {name for name, value in benign.items() if np.isnan(value)}
    assert undefined == {"auroc_macro", "average_precision", "sensitivity", "recall/malignant"}
    assert (benign["balanced_accuracy"], benign["specificity"], benign["precision"]) == (0.5, 0.5, 0)
    assert benign["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    malignant = classification_metrics([1, 1], probability, ["benign", "malignant"])
    undefined = {name for name, value in malignant.items() if np.isnan(value)}
    assert undefined == {"auroc_macro", "average_precision", "specificity", "recall/benign"}


def test_class_that_drops_out_of_a_resample():
    """With the only image of class c at weight 0, or with all weights 0, the affected metrics are NaN there alone."""
    probability = np.array([[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.5, 0.2, 0.3]])
    given = weighted_metrics([0, 1, 2], probability, ["a", "b", "c"], [[1, 1, 1], [2, 1, 0], [0, 0, 0]])
    assert given["recall/c"].tolist() == pytest.approx([0, np.nan, np.nan], nan_ok=True)
    assert given["balanced_accuracy"].tolist() == pytest.approx([2 / 3, 1, np.nan], nan_ok=True)
    assert given["auroc_macro"].tolist() == pytest.approx([1, 1, np.nan], nan_ok=True)
    assert all(np.isnan(value[2]) for value in given.values())


def test_calibration_bins_are_closed_above():
    confidence = np.array([0.0, 1e-9, 1 / 15, np.nextafter(1 / 15, 1), 0.2, 0.5, 1.0])
    assert classification.calibration_bin(confidence).tolist() == [0, 0, 0, 1, 2, 7, 14]


GOOD = [[0.5, 0.5], [0.2, 0.8]]


@pytest.mark.parametrize(
    ("label", "probability", "classes", "message"),
    [
        ([0, 2], GOOD, ["a", "b"], r"labels must lie in 0 … 1, got 0 … 2"),
        ([0, -1], GOOD, ["a", "b"], r"leave out images without label"),
        ([0.0, 1.0], GOOD, ["a", "b"], r"label must hold integers"),
        ([0, 1, 1], GOOD, ["a", "b"], r"probability must have shape \(3, 2\)"),
        ([0, 1], GOOD, ["a", "b", "c"], r"probability must have shape \(2, 3\)"),
        ([0, 1], [[0.5, 0.5], [np.nan, 1]], ["a", "b"], r"must be finite; 1 of 2 rows"),
        ([0, 1], [[-1.5, 2.5], [0.2, 0.8]], ["a", "b"], r"apply softmax"),
        ([0, 1], [[0.9, 0.9], [0.2, 0.8]], ["a", "b"], r"apply softmax"),
        ([], np.empty((0, 2)), ["a", "b"], r"at least one image"),
        ([0, 1], GOOD, ["a", "a"], r"two or more different names"),
    ],
)
def test_malformed_predictions_are_refused(label, probability, classes, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(label, probability, classes)


@pytest.mark.parametrize(
    ("weight", "message"),
    [([1, 1], "must have shape"), ([[1, 1, 1]], "must have shape"), ([[1, -1]], "negative"), ([[1, np.inf]], "finite")],
)
def test_malformed_weights_are_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        weighted_metrics([0, 1], GOOD, ["a", "b"], weight)
