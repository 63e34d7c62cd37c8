"""Classical classifiers of features: a scikit-learn pipeline each, fitted at once, kept as a skops file of known types alone."""

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
from skincancer.schema import DEEP, ClassicalConfig, DataConfig

Labels = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
Folds = list[tuple[Labels, Labels]]

FOLDS = 5  # of the calibration, where every class has as many lesions
LEAF = 3  # images at least in a leaf of the forest: probabilities of single images would be 0 or 1
STARTS = 10  # of k-means
# all that a file may hold beside what skops itself takes for harmless (scikit-learn's public estimators, arrays, primitives)
TRUSTED = (
    "numpy.dtype",
    "sklearn.tree._tree.Tree",
    "skincancer.models.classical.CalibratedMachines",
    "skincancer.models.classical.NamedClusters",
    "skincancer.models.classical.VotingNeighbours",
)


class CalibratedMachines(ClassifierMixin, BaseEstimator):
    """A support vector machine (RBF kernel) for each class against all others, and probabilities from what they all say.

    A multinomial logistic regression turns the decision values into probabilities; of two classes there is one machine, and that is
    Platt's sigmoid (1999). It learns from decision values on images that the machines which gave them had not seen.

    Args:
        C: of the machines.
        gamma: of the machines.
        seed: of the machines.
        folds: of the calibration: rows to learn from and rows to decide on, which are every row once.
    """

    def __init__(self, C: float = 1.0, gamma: float | str = "scale", seed: int = 0, folds: Folds | None = None) -> None:
        self.C, self.gamma, self.seed, self.folds = C, gamma, seed, folds

    def fit(self, X: Any, y: Labels, sample_weight: Weights | None = None) -> CalibratedMachines:
        """Fit the calibration, then the machines on all rows; weights count in both."""
        self.classes_ = np.unique(y)
        weights = np.ones(len(y)) if sample_weight is None else sample_weight
        assert self.folds is not None, "fitted once"
        decided = np.zeros((len(y), len(self._positive)))
        for learn, rest in self.folds:
            decided[rest] = self._decide(self._machines(X[learn], y[learn], weights[learn]), X[rest])
        self.calibration_ = LogisticRegression(max_iter=10_000).fit(decided, y, weights)
        self.machines_ = self._machines(X, y, weights)
        return self

    @property
    def _positive(self) -> Labels:
        return self.classes_ if len(self.classes_) > 2 else self.classes_[1:]

    def _machines(self, X: Any, y: Labels, weights: Weights) -> list[SVC]:
        machine = SVC(C=self.C, gamma=self.gamma, cache_size=500, random_state=self.seed)
        fits = (delayed(clone(machine).fit)(X, y == number, weights) for number in self._positive)
        return list(Parallel(n_jobs=-1, prefer="threads")(fits))  # libsvm works outside Python's lock

    @staticmethod
    def _decide(machines: list[SVC], X: Any) -> Weights:
        return np.stack([machine.decision_function(X) for machine in machines], axis=1)

    def predict_proba(self, X: Any) -> Weights:
        """Return the probabilities of the classes, (N, C)."""
        return np.asarray(self.calibration_.predict_proba(self._decide(self.machines_, X)))

    def predict(self, X: Any) -> Labels:
        """Return the most probable class of each row, (N,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


class VotingNeighbours(ClassifierMixin, BaseEstimator):
    """The nearest training images vote, each by its weight; scikit-learn's have no weights.

    Probabilities are the shares of the votes, with one vote more, split evenly: no class is impossible.

    Args:
        neighbours: how many vote.
    """

    def __init__(self, neighbours: int = 15) -> None:
        self.neighbours = neighbours

    def fit(self, X: Any, y: Labels, sample_weight: Weights | None = None) -> VotingNeighbours:
        """Keep the images, and what each one's vote weighs."""
        self.classes_, number = np.unique(y, return_inverse=True)
        weights = np.ones(len(y)) if sample_weight is None else sample_weight
        self.votes_ = np.eye(len(self.classes_))[number] * weights[:, None]
        self.nearest_ = NearestNeighbors(n_neighbors=self.neighbours, algorithm="brute").fit(X)
        return self

    def predict_proba(self, X: Any) -> Weights:
        """Return the shares of the votes, (N, C)."""
        votes = self.votes_[self.nearest_.kneighbors(X, return_distance=False)].sum(axis=1) + 1 / len(self.classes_)
        return np.asarray(votes / votes.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> Labels:
        """Return what each row's neighbours vote for, (N,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


class NamedClusters(ClassifierMixin, BaseEstimator):
    """k-means, each cluster named after the class that most of its training images have.

    Probabilities are the shares of the classes in the cluster, with one image more, split evenly: no class is impossible, and the
    order of the classes stays.

    Args:
        clusters: how many.
        seed: of the first centres.
    """

    def __init__(self, clusters: int = 8, seed: int = 0) -> None:
        self.clusters, self.seed = clusters, seed

    def fit(self, X: Any, y: Labels, sample_weight: Weights | None = None) -> NamedClusters:
        """Find clusters and count their classes; weights count in both."""
        self.classes_, number = np.unique(y, return_inverse=True)
        with threadpool_limits(1, user_api="openmp"):  # sums of several threads are of no fixed order
            self.kmeans_ = KMeans(self.clusters, n_init=STARTS, random_state=self.seed).fit(
                X, sample_weight=sample_weight
            )
        counts = np.zeros((self.clusters, len(self.classes_)))
        np.add.at(counts, (self.kmeans_.labels_, number), 1.0 if sample_weight is None else sample_weight)
        self.probability_ = (counts + 1 / len(self.classes_)) / (counts.sum(axis=1, keepdims=True) + 1)
        return self

    def predict_proba(self, X: Any) -> Weights:
        """Return the shares of the classes in each row's cluster, (N, C)."""
        return np.asarray(self.probability_[self.kmeans_.predict(X)])

    def predict(self, X: Any) -> Labels:
        """Return the name of each row's cluster, (N,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


def fit_pipeline(
    classifier: str, options: ClassicalConfig, settings: DataConfig, features: pd.DataFrame, label: Labels,
    groups: npt.ArrayLike, seed: int,
) -> Pipeline:  # fmt: skip
    """Fit a classifier on training images: medians fill in what is missing, features are standardised, then it learns.

    Deep features are centred, and keep the scale that the backbone gives them.

    Balance acts as for networks, of whose epochs this is the first: images drawn by undersample or oversample, or weights. The
    folds that the SVM is calibrated on have whole lesions each.

    Args:
        classifier: svm, knn, kmeans or random_forest.
        options: features and hyper-parameters.
        settings: of the balance.
        features: (N rows), a column a feature; NaN where it could not be measured.
        label: (N,), from 0, none absent, every class present.
        groups: (N,), the lesion of each image.
        seed: of whatever is drawn.

    Raises:
        ConfigError: more neighbours or clusters than images.
        DataError: a class of too few lesions for the calibration.
    """
    rows = np.sort(epoch_order(label, settings.balance, seed, epoch=0))
    chosen, drawn = label[rows], np.asarray(groups)[rows]
    weights = None
    if settings.balance == "class_weights":
        weights = class_weights(label, int(label.max()) + 1, settings.class_weight_power)[chosen]
    estimator = CLASSIFIERS[classifier](options, seed, chosen, drawn)
    pipeline = Pipeline(
        [
            # a feature that no training image has is 0 for every image
            ("imputer", SimpleImputer(strategy="median", keep_empty_features=True)),
            # a unit of a backbone that is nearly dead would count as much as any
            ("scaler", StandardScaler(with_std=DEEP not in options.features)),
            ("classifier", estimator),
        ]
    )
    pipeline.fit(features.iloc[rows], chosen, **({} if weights is None else {"classifier__sample_weight": weights}))
    if isinstance(estimator, CalibratedMachines):
        estimator.set_params(folds=None)  # they name training images, and nothing needs them any more
    if isinstance(estimator, RandomForestClassifier):
        estimator.set_params(n_jobs=1)  # several threads add probabilities in no fixed order
    return pipeline


def _svm(options: ClassicalConfig, seed: int, label: Labels, groups: npt.NDArray[Any]) -> Any:
    return CalibratedMachines(options.C, options.gamma, seed, lesion_folds(label, groups, seed))


def _knn(options: ClassicalConfig, seed: int, label: Labels, groups: npt.NDArray[Any]) -> Any:
    if options.neighbours > len(label):
        raise ConfigError(
            f"model.classical.neighbours is {options.neighbours}, but there are {len(label)} training images to draw. Give fewer."
        )
    return VotingNeighbours(options.neighbours)


def _kmeans(options: ClassicalConfig, seed: int, label: Labels, groups: npt.NDArray[Any]) -> Any:
    if options.clusters > len(np.unique(groups)):
        raise ConfigError(
            f"model.classical.clusters is {options.clusters}, but the training images are of {len(np.unique(groups))} lesions. "
            "Give fewer."
        )
    return NamedClusters(options.clusters, seed)


def _random_forest(options: ClassicalConfig, seed: int, label: Labels, groups: npt.NDArray[Any]) -> Any:
    return RandomForestClassifier(options.trees, min_samples_leaf=LEAF, random_state=seed, n_jobs=-1)


CLASSIFIERS: dict[str, Callable[[ClassicalConfig, int, Labels, npt.NDArray[Any]], Any]] = {
    "svm": _svm, "knn": _knn, "kmeans": _kmeans, "random_forest": _random_forest,
}  # fmt: skip


def lesion_folds(label: Labels, groups: npt.NDArray[Any], seed: int) -> Folds:
    """Deal images to folds for the calibration, whole lesions each, every class in each fold's training images.

    Args:
        label: (N,).
        groups: (N,), the lesion of each image.
        seed: of the order.

    Returns:
        For each fold the rows to learn from and those to calibrate on; fewer than five folds where a class has fewer lesions.

    Raises:
        DataError: there is no way to deal them so.
    """
    lesions = {int(number): len(np.unique(groups[label == number])) for number in np.unique(label)}
    rarest = min(lesions, key=lambda number: lesions[number])
    for folds in range(min(FOLDS, lesions[rarest]), 1, -1):
        dealt = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(label, label, groups))
        if all(len(np.unique(label[learn])) == len(lesions) for learn, _ in dealt):
            return dealt
    raise DataError(
        f"the {lesions[rarest]} lesions of the class with label {rarest} cannot be dealt so that the SVM's calibration learns from "
        "every class and none is on both sides. Choose another --data.split, or another classifier."
    )


def save_pipeline(pipeline: Pipeline, path: Path) -> None:
    """Write a fitted pipeline as a skops file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dump(pipeline, path, compression=zipfile.ZIP_DEFLATED)


def load_pipeline(path: Path) -> Pipeline:
    """Read a fitted pipeline; nothing of the file is run, and nothing is built of any type but the known ones.

    Raises:
        WeightsError: no such file, or it holds something else.
    """
    try:
        unknown = sorted(set(get_untrusted_types(file=path)) - set(TRUSTED))
        if unknown:
            raise WeightsError(
                f"{path}: refused: it holds {', '.join(unknown[:5])}, which no classifier of this software has, and which loading would "
                "have to build. Use the file of a run of this software."
            )
        pipeline = load(path, trusted=list(TRUSTED))
    except WeightsError:
        raise
    except (OSError, UntrustedTypesFoundException) as error:
        raise WeightsError(f"{path}: cannot be read as a skops file: {error}") from error
    except Exception as error:  # whatever a foreign file makes zipfile, json, skops or scikit-learn trip over
        raise WeightsError(f"{path}: cannot be read as a skops file: {type(error).__name__}: {error}") from error
    if not isinstance(pipeline, Pipeline) or not hasattr(pipeline, "predict_proba"):
        raise WeightsError(f"{path}: holds {type(pipeline).__name__}, not the fitted pipeline of a classifier.")
    return pipeline
