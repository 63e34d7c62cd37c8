"""Fits a classical classifier as `training` fits a network: features of every image, one fit, predictions of the parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.artifacts import BACKBONE_FILE, CLASSICAL_CHECKPOINT
from skincancer.data.features import FeatureTable
from skincancer.data.prepared import PreparedData, ProgressBar
from skincancer.data.store import build_once
from skincancer.errors import DataError, RunError
from skincancer.models.classical import fit_pipeline, save_pipeline
from skincancer.models.classical_trained import ClassicalModel
from skincancer.models.classifying import Predictions
from skincancer.models.deep_features import DeepFeatures, deep_table, first_backbone
from skincancer.models.weights import Loaded
from skincancer.paths import cache_folder
from skincancer.schema import Experiment

if TYPE_CHECKING:
    from skincancer.data.store import Progress


DEEP_FORMAT = 1  # raised whenever a backbone gives other numbers
DEEP_FILE = "features.npy"


@dataclass(frozen=True)
class Inputs:
    """What a classical classifier learns from.

    `features` has a row an image of the data; `measured` is the table of hand-made ones, or else
    `backbone` gave them, with weights from where `loaded` says.
    """

    features: pd.DataFrame
    measured: FeatureTable | None = None
    backbone: DeepFeatures | None = None
    loaded: Loaded | None = None

    @property
    def source(self) -> str:
        """Return where weights came from: "none" of hand-made features."""
        return self.loaded.source if self.loaded else "none"


def find_inputs(experiment: Experiment, data: PreparedData, progress: ProgressBar | None = None) -> Inputs:
    """Take the hand-made features of the data, or ask the backbone for its own, or open what it has said.

    Raises:
        DataError: a class has too few lesions for the SVM's calibration.
        WeightsError: the backbone's weights cannot be had.
    """
    _check_lesions(experiment, data)
    if experiment.model.is_hand_made:
        assert data.features is not None, "they were asked for"
        return Inputs(data.features.columns(experiment.model.classical.features), data.features)
    backbone, loaded = first_backbone(experiment)
    return Inputs(_deep(backbone, data, experiment.data.batch_size, progress), None, backbone, loaded)


def _check_lesions(experiment: Experiment, data: PreparedData) -> None:
    lesions = data.rows("train").groupby("label")["lesion_id"].nunique()
    if experiment.model.classifier == "svm" and (lesions < 2).any():
        rare = ", ".join(data.classes[int(label)] for label in lesions.index[lesions < 2])
        raise DataError(
            f"the training part has one lesion alone of {rare}; to calibrate its probabilities the SVM needs two or more of every "
            "class, as none may be on both sides. Choose another --data.split, or another --model.classifier."
        )


def _deep(backbone: DeepFeatures, data: PreparedData, batch_size: int, progress: ProgressBar | None) -> pd.DataFrame:
    """Return the features of every image of the store, kept beside it: trials of a sweep differ in what learns from them alone."""
    recipe = f"{data.store.folder.name} {backbone.digest()} {backbone.device.type} {DEEP_FORMAT}"
    folder = cache_folder() / "features" / hashlib.sha256(recipe.encode()).hexdigest()[:32]

    def build(building: Path) -> None:
        rows = np.arange(len(data.index), dtype=np.int64)
        told: Progress | None = progress("asking the backbone") if progress else None
        np.save(building / DEEP_FILE, backbone.measure(data.store.images, rows, batch_size, told).to_numpy())

    build_once(folder, data.root, build, f"the backbone's features of {len(data.index)} images are kept there")
    return deep_table(np.load(folder / DEEP_FILE))


def fit_classifier(experiment: Experiment, data: PreparedData, inputs: Inputs, folder: Path) -> ClassicalModel:
    """Fit on the training part; write the model's files into the run's folder, and return it as it will be read from there.

    Args:
        experiment: resolved.
        data: prepared.
        inputs: as `find_inputs` gives them.
        folder: with config.yaml and classes.json.

    Raises:
        ConfigError, DataError: as `fit_pipeline`.
    """
    train = np.flatnonzero((data.index["role"] == "train").to_numpy())
    part = data.index.iloc[train]
    pipeline = fit_pipeline(
        experiment.model.classifier, experiment.model.classical, experiment.data, inputs.features.iloc[train],
        part["label"].to_numpy(np.int64), part["lesion_id"].to_numpy(), experiment.seed,
    )  # fmt: skip
    save_pipeline(pipeline, folder / CLASSICAL_CHECKPOINT)
    if inputs.backbone:
        inputs.backbone.save(folder / BACKBONE_FILE)
    return ClassicalModel(folder)


def predict_part(model: ClassicalModel, data: PreparedData, features: pd.DataFrame, role: str) -> Predictions:
    """Predict the images of one role.

    Args:
        model: fitted.
        data: prepared.
        features: a row an image of the data.
        role: train, val or test.

    Raises:
        RunError: the model gives NaN.
    """
    rows = np.flatnonzero((data.index["role"] == role).to_numpy()).astype(np.int64)
    said = model.answer_features(features.iloc[rows])
    assert said.logits is not None
    assert said.probability is not None
    _check_finite(said.probability, role)
    label = data.index["label"].to_numpy(np.int64)[rows]
    return Predictions(rows, label, said.logits, said.probability, float("nan"))


def _check_finite(probability: npt.NDArray[np.float64], role: str) -> None:
    wrong = int((~np.isfinite(probability).all(axis=1)).sum())
    if wrong:
        raise RunError(f"the classifier gives NaN on {wrong} {role} images; choose other features or hyper-parameters.")


def predict_other(
    model: ClassicalModel, experiment: Experiment, data: PreparedData, progress: ProgressBar | None = None
) -> Predictions:
    """Predict the test images of data that a finished run's model has not been fitted on.

    Args:
        model: of the run.
        experiment: the run's, on these data.
        data: prepared.
        progress: makes progress callbacks by title.

    Raises:
        RunError: the model gives NaN.
    """
    if model.backbone is None:
        assert data.features is not None, "they were asked for"
        features = data.features.columns(model.families)
    else:
        features = _deep(model.backbone, data, experiment.data.batch_size, progress)
    return predict_part(model, data, features, "test")
