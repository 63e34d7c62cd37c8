"""Classical classifiers: scikit-learn pipelines of features, saved as skops files of known types."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Parallel, delayed
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from skops.io import dump, get_untrusted_types, load
from skops.io.exceptions import UntrustedTypesFoundException
from threadpoolctl import threadpool_limits

from skincancer.data.balance import class_weights, epoch_order
from skincancer.errors import ConfigError, DataError, WeightsError
from skincancer.schema.data import DataConfig
from skincancer.schema.model import DEEP, ClassicalConfig

Labels = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
Folds = list[tuple[Labels, Labels]]

# Number of folds of the calibration, if every class has as many lesions.
FOLDS = 5
# Smallest number of images in a leaf of the forest. Leaves of one image give probabilities of 0 or 1.
LEAF = 3
# Number of starts of k-means.
STARTS = 10
# Types that a file may contain, in addition to those that skops trusts (scikit-learn's public estimators, arrays, primitives).
TRUSTED = (
    "numpy.dtype",
    "sklearn.tree._tree.Tree",
    "skincancer.models.classical.CalibratedMachines",
    "skincancer.models.classical.NamedClusters",
    "skincancer.models.classical.VotingNeighbours",
)


class CalibratedMachines(ClassifierMixin, BaseEstimator):
    """Support vector machines (RBF kernel), one class against the rest, with calibrated probabilities.

    A multinomial logistic regression maps all decision values to probabilities. Two classes have one machine, and the regression is
    Platt's sigmoid (1999). The regression is fitted to decision values of images that the machines were not trained on.

    Args:
        C: penalty of the machines.
        gamma: kernel coefficient of the machines.
        seed: seed of the machines.
        folds: folds of the calibration: training rows and calibration rows. Every row is a calibration row once.
    """

    def __init__(self, C: float = 1.0, gamma: float | str = "scale", seed: int = 0, folds: Folds | None = None) -> None:
        self.C, self.gamma, self.seed, self.folds = C, gamma, seed, folds

    def fit(self, X: Any, y: Labels, sample_weight: Weights | None = None) -> CalibratedMachines:
        """Fit the calibration, then the machines on all rows, both with weights."""
        self.classes_ = np.unique(y)
        weights = np.ones(len(y)) if sample_weight is None else sample_weight
        assert self.folds is not None, "fit_pipeline sets the folds"
        decisions = np.zeros((len(y), len(self._positive)))
        for learn, rest in self.folds:
            decisions[rest] = self._decide(self._machines(X[learn], y[learn], weights[learn]), X[rest])
        self.calibration_ = LogisticRegression(max_iter=10_000).fit(decisions, y, weights)
        self.machines_ = self._machines(X, y, weights)
        return self

    @property
    def _positive(self) -> Labels:
        return self.classes_ if len(self.classes_) > 2 else self.classes_[1:]

    def _machines(self, X: Any, y: Labels, weights: Weights) -> list[SVC]:
        machine = SVC(C=self.C, gamma=self.gamma, cache_size=500, random_state=self.seed)
        fits = (delayed(clone(machine).fit)(X, y == number, weights) for number in self._positive)
        # libsvm releases the lock of Python.
        return list(Parallel(n_jobs=-1, prefer="threads")(fits))

    @staticmethod
    def _decide(machines: list[SVC], X: Any) -> Weights:
        return np.stack([machine.decision_function(X) for machine in machines], axis=1)

    def predict_proba(self, X: Any) -> Weights:
        """Return class probabilities (N, C)."""
        return np.asarray(self.calibration_.predict_proba(self._decide(self.machines_, X)))

    def predict(self, X: Any) -> Labels:
        """Return the most probable class of each row, (N,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


class VotingNeighbours(ClassifierMixin, BaseEstimator):
    """k nearest neighbours with weighted votes, which scikit-learn lacks.

    Probabilities are shares of the votes. One more vote is split evenly, so that no class has probability 0.
    """

    def __init__(self, neighbours: int = 15) -> None:
        self.neighbours = neighbours

    def fit(self, X: Any, y: Labels, sample_weight: Weights | None = None) -> VotingNeighbours:
        """Store the images and the weights of their votes."""
        self.classes_, number = np.unique(y, return_inverse=True)
        weights = np.ones(len(y)) if sample_weight is None else sample_weight
        self.votes_ = np.eye(len(self.classes_))[number] * weights[:, None]
        self.nearest_ = NearestNeighbors(n_neighbors=self.neighbours, algorithm="brute").fit(X)
        return self

    def predict_proba(self, X: Any) -> Weights:
        """Return shares of the votes (N, C)."""
        votes = self.votes_[self.nearest_.kneighbors(X, return_distance=False)].sum(axis=1) + 1 / len(self.classes_)
        return np.asarray(votes / votes.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> Labels:
        """Return the class with most votes of each row, (N,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


class NamedClusters(ClassifierMixin, BaseEstimator):
    """k-means with clusters named after their most frequent training class.

    Probabilities are shares of the classes in the cluster. One more image is split evenly, so that no class has probability 0.
    """

    def __init__(self, clusters: int = 8, seed: int = 0) -> None:
        self.clusters, self.seed = clusters, seed

    def fit(self, X: Any, y: Labels, sample_weight: Weights | None = None) -> NamedClusters:
        """Fit clusters and count their classes, both with weights."""
        self.classes_, number = np.unique(y, return_inverse=True)
        # Several threads would add up in no fixed order.
        with threadpool_limits(1, user_api="openmp"):
            self.kmeans_ = KMeans(self.clusters, n_init=STARTS, random_state=self.seed).fit(
                X, sample_weight=sample_weight
            )
        counts = np.zeros((self.clusters, len(self.classes_)))
        np.add.at(counts, (self.kmeans_.labels_, number), 1.0 if sample_weight is None else sample_weight)
        self.probability_ = (counts + 1 / len(self.classes_)) / (counts.sum(axis=1, keepdims=True) + 1)
        return self

    def predict_proba(self, X: Any) -> Weights:
        """Return shares of the classes in the cluster of each row, (N, C)."""
        return np.asarray(self.probability_[self.kmeans_.predict(X)])

    def predict(self, X: Any) -> Labels:
        """Return the class name of the cluster of each row, (N,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


def fit_pipeline(
    classifier: str, options: ClassicalConfig, settings: DataConfig, features: pd.DataFrame, label: Labels,
    groups: npt.ArrayLike, seed: int,
) -> Pipeline:  # fmt: skip
    """Fit a pipeline on training images: median imputation, scaling, classifier.

    Deep features are centred and not scaled. `data.balance` samples images, or weights them, as in the first epoch of a network.

    Args:
        classifier: svm, knn, kmeans or random_forest.
        options: features and hyper-parameters.
        settings: data section with the balance.
        features: (N rows), one column per feature; NaN for values that could not be measured.
        label: (N,), from 0, with every class present.
        groups: (N,), lesion of each image.
        seed: seed of sampling and classifier.

    Raises:
        ConfigError: more neighbours or clusters than images.
        DataError: too few lesions of a class for the calibration of the SVM.
    """
    rows = np.sort(epoch_order(label, settings.balance, seed, epoch=0))
    chosen, lesions = label[rows], np.asarray(groups)[rows]
    weights = None
    if settings.balance == "class_weights":
        weights = class_weights(label, int(label.max()) + 1, settings.class_weight_power)[chosen]
    estimator = CLASSIFIERS[classifier](options, seed, chosen, lesions)
    pipeline = Pipeline(
        [
            # A feature without values in the training set is 0 in every image.
            ("imputer", SimpleImputer(strategy="median", keep_empty_features=True)),
            # Scaling would give nearly constant units of a backbone the weight of all others.
            ("scaler", StandardScaler(with_std=DEEP not in options.features)),
            ("classifier", estimator),
        ]
    )
    pipeline.fit(features.iloc[rows], chosen, **({} if weights is None else {"classifier__sample_weight": weights}))
    if isinstance(estimator, CalibratedMachines):
        # The folds contain positions of training images, which the file does not need.
        estimator.set_params(folds=None)
    if isinstance(estimator, RandomForestClassifier):
        # Several threads would add up probabilities in no fixed order.
        estimator.set_params(n_jobs=1)
    return pipeline


def _svm(options: ClassicalConfig, seed: int, label: Labels, groups: npt.NDArray[Any]) -> Any:
    return CalibratedMachines(options.C, options.gamma, seed, lesion_folds(label, groups, seed))


def _knn(options: ClassicalConfig, seed: int, label: Labels, groups: npt.NDArray[Any]) -> Any:
    if options.neighbours > len(label):
        raise ConfigError(
            f"model.classical.neighbours is {options.neighbours}, but there are {len(label)} training images. Use fewer neighbours."
        )
    return VotingNeighbours(options.neighbours)


def _kmeans(options: ClassicalConfig, seed: int, label: Labels, groups: npt.NDArray[Any]) -> Any:
    if options.clusters > len(np.unique(groups)):
        raise ConfigError(
            f"model.classical.clusters is {options.clusters}, but the training images are of {len(np.unique(groups))} lesions. "
            "Use fewer clusters."
        )
    return NamedClusters(options.clusters, seed)


def _random_forest(options: ClassicalConfig, seed: int, label: Labels, groups: npt.NDArray[Any]) -> Any:
    return RandomForestClassifier(options.trees, min_samples_leaf=LEAF, random_state=seed, n_jobs=-1)


CLASSIFIERS: dict[str, Callable[[ClassicalConfig, int, Labels, npt.NDArray[Any]], Any]] = {
    "svm": _svm, "knn": _knn, "kmeans": _kmeans, "random_forest": _random_forest,
}  # fmt: skip


def lesion_folds(label: Labels, groups: npt.NDArray[Any], seed: int) -> Folds:
    """Split images into folds of whole lesions for the calibration.

    The training rows of each fold contain every class.

    Args:
        label: (N,).
        groups: (N,), lesion of each image.
        seed: seed of the shuffle.

    Returns:
        Training rows and calibration rows of each fold. Fewer than five folds if a class has fewer lesions.

    Raises:
        DataError: no such split exists.
    """
    lesions = {int(number): len(np.unique(groups[label == number])) for number in np.unique(label)}
    rarest = min(lesions, key=lambda number: lesions[number])
    for folds in range(min(FOLDS, lesions[rarest]), 1, -1):
        split = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(label, label, groups))
        if all(len(np.unique(label[learn])) == len(lesions) for learn, _ in split):
            return split
    raise DataError(
        f"the {lesions[rarest]} lesions of the class with label {rarest} are too few for the calibration of the SVM: each fold "
        "needs whole lesions of every class. Use another --data.split, or another classifier."
    )


def save_pipeline(pipeline: Pipeline, path: Path) -> None:
    """Write a fitted pipeline as a skops file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dump(pipeline, path, compression=zipfile.ZIP_DEFLATED)


def load_pipeline(path: Path) -> Pipeline:
    """Read a fitted pipeline without running code, and from known types only.

    Raises:
        WeightsError: no such file, or other content.
    """
    try:
        unknown = sorted(set(get_untrusted_types(file=path)) - set(TRUSTED))
        if unknown:
            raise WeightsError(
                f"{path}: refused: it holds {', '.join(unknown[:5])}, which no classifier of this software has. Use the file of a run of "
                "this software."
            )
        pipeline = load(path, trusted=list(TRUSTED))
    except WeightsError:
        raise
    except (OSError, UntrustedTypesFoundException) as error:
        raise WeightsError(f"{path}: cannot be read as a skops file: {error}") from error
    except Exception as error:  # zipfile, json, skops and scikit-learn raise many types for foreign files
        raise WeightsError(f"{path}: cannot be read as a skops file: {type(error).__name__}: {error}") from error
    if not isinstance(pipeline, Pipeline) or not hasattr(pipeline, "predict_proba"):
        raise WeightsError(f"{path}: holds {type(pipeline).__name__}, not the fitted pipeline of a classifier.")
    return pipeline
