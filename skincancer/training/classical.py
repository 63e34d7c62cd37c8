"""Fit a classical classifier on the features of the images."""

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
from skincancer.schema.experiment import Experiment


@dataclass(frozen=True)
class ClassicalInputs:
    """Features that a classical classifier is fitted on.

    Attributes:
        features: one row per image of the data.
        measured: table of hand-crafted features. None for deep features.
        backbone: network that computed deep features, with the weights `loaded`. None for hand-crafted features.
    """

    features: pd.DataFrame
    measured: FeatureTable | None = None
    backbone: DeepFeatures | None = None
    loaded: LoadedWeights | None = None

    @property
    def source(self) -> str:
        """Source of the weights, "none" for hand-crafted features."""
        return self.loaded.source if self.loaded else "none"


def compute_inputs(
    experiment: Experiment, data: PreparedData, progress: ProgressBar | None = None, checkpoint: Path | None = None
) -> ClassicalInputs:
    """Select the hand-crafted features of the data, or compute (or read cached) deep features.

    Raises:
        DataError: a class has too few lesions for the calibration of the SVM.
        WeightsError: the weights of the backbone are not available.
    """
    _check_lesions(experiment, data)
    if experiment.model.is_hand_crafted:
        assert data.features is not None, "prepare_data has measured them"
        return ClassicalInputs(data.features.columns(experiment.model.classical.features), data.features)
    backbone, loaded = first_backbone(experiment, checkpoint)
    return ClassicalInputs(
        compute_deep_features(backbone, data, experiment.data.batch_size, progress), None, backbone, loaded
    )


def _check_lesions(experiment: Experiment, data: PreparedData) -> None:
    lesions = data.rows("train").groupby("label")["lesion_id"].nunique()
    if experiment.model.classifier == "svm" and (lesions < 2).any():
        rare = ", ".join(data.classes[int(label)] for label in lesions.index[lesions < 2])
        raise DataError(
            f"the training set has only one lesion of {rare}; expected two or more of every class, because the SVM is calibrated on "
            "other lesions than it is fitted on. Use another --data.split, or another --model.classifier."
        )


def fit_classifier(experiment: Experiment, data: PreparedData, inputs: ClassicalInputs, folder: Path) -> ClassicalModel:
    """Fit on the training set, write the model, and return the model read back.

    Args:
        experiment: with the classifier and its options.
        data: subsets, labels and lesions.
        inputs: return value of `compute_inputs`.
        folder: folder of the run, which contains config.yaml and classes.json.

    Raises:
        ConfigError, DataError: as `fit_pipeline`.
    """
    train = np.flatnonzero((data.index["role"] == "train").to_numpy())
    rows = data.index.iloc[train]
    pipeline = fit_pipeline(
        experiment.model.classifier, experiment.model.classical, experiment.data, inputs.features.iloc[train],
        rows["label"].to_numpy(np.int64), rows["lesion_id"].to_numpy(), experiment.seed,
    )  # fmt: skip
    save_pipeline(pipeline, folder / CLASSICAL_CHECKPOINT)
    if inputs.backbone:
        inputs.backbone.save(folder / BACKBONE_FILE)
    return ClassicalModel(folder)
