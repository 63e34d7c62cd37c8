"""Fits a classical classifier as `training` fits a network: features of every image, one fit, predictions of the parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from skincancer.data.cache import ProgressBar
from skincancer.data.feature_table import FeatureTable
from skincancer.data.prepare import PreparedData
from skincancer.errors import DataError
from skincancer.inference.classical_model import ClassicalModel, compute_deep_features
from skincancer.models.classical import fit_pipeline, save_pipeline
from skincancer.models.deep_features import DeepFeatures, first_backbone
from skincancer.models.weights import LoadedWeights
from skincancer.runs.artifacts import BACKBONE_FILE, CLASSICAL_CHECKPOINT
from skincancer.schema import Experiment


@dataclass(frozen=True)
class ClassicalInputs:
    """What a classical classifier learns from.

    `features` has a row an image of the data; `measured` is the table of hand-made ones, or else
    `backbone` gave them, with weights from where `loaded` says.
    """

    features: pd.DataFrame
    measured: FeatureTable | None = None
    backbone: DeepFeatures | None = None
    loaded: LoadedWeights | None = None

    @property
    def source(self) -> str:
        """Return where weights came from: "none" of hand-made features."""
        return self.loaded.source if self.loaded else "none"


def find_inputs(
    experiment: Experiment, data: PreparedData, progress: ProgressBar | None = None, checkpoint: Path | None = None
) -> ClassicalInputs:
    """Take the hand-made features of the data, or ask the backbone for its own, or open what it has said.

    Raises:
        DataError: a class has too few lesions for the SVM's calibration.
        WeightsError: the backbone's weights cannot be had.
    """
    _check_lesions(experiment, data)
    if experiment.model.is_hand_made:
        assert data.features is not None, "they were asked for"
        return ClassicalInputs(data.features.columns(experiment.model.classical.features), data.features)
    backbone, loaded = first_backbone(experiment, checkpoint)
    features = compute_deep_features(backbone, data, experiment.data.batch_size, progress)
    return ClassicalInputs(features, None, backbone, loaded)


def _check_lesions(experiment: Experiment, data: PreparedData) -> None:
    lesions = data.rows("train").groupby("label")["lesion_id"].nunique()
    if experiment.model.classifier == "svm" and (lesions < 2).any():
        rare = ", ".join(data.classes[int(label)] for label in lesions.index[lesions < 2])
        raise DataError(
            f"the training part has one lesion alone of {rare}; to calibrate its probabilities the SVM needs two or more of every "
            "class, as none may be on both sides. Choose another --data.split, or another --model.classifier."
        )


def fit_classifier(experiment: Experiment, data: PreparedData, inputs: ClassicalInputs, folder: Path) -> ClassicalModel:
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
