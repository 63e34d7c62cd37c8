"""Classical classifier of a finished run, with the interface of `inference.model.TrainedModel`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.cache import ProgressBar, build_once
from skincancer.data.prepare import PreparedData
from skincancer.errors import RunError, WeightsError
from skincancer.imaging.features.families import learned_names
from skincancer.imaging.preprocessing import Preprocessing
from skincancer.inference.outputs import ModelOutput
from skincancer.models.classical import load_pipeline
from skincancer.models.deep_features import DeepFeatures, deep_table, kept_backbone
from skincancer.models.tasks.classification import Predictions
from skincancer.plugins import load_plugins
from skincancer.runs.artifacts import BACKBONE_FILE, CLASSES_FILE, CLASSICAL_CHECKPOINT, model_files
from skincancer.runs.finished import FinishedRun
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import DEEP
from skincancer.system.paths import cache_folder

# A smaller probability is a zero in the files of nine digits. Its logarithm is finite.
_LOWEST = 1e-12
# Raise this number whenever a backbone computes other features.
DEEP_FORMAT = 1
DEEP_FILE = "features.npy"


class ClassicalModel:
    """Classical classifier of a finished run.

    Attributes:
        settings: config.yaml of the run.
        classes: names in the order of the probabilities.
        families: families of hand-crafted features, empty for a classifier on deep features.
        columns: names of the features, in order.
        preprocessing: steps from an image file to the input of a backbone. Hand-crafted features need its cleaning steps only.
        digest: SHA-256 of the files.

    Args:
        folder: folder with the files of the model (`artifacts.model_files`).

    Raises:
        ConfigError: the config cannot be read.
        WeightsError: the checkpoint is damaged, holds unknown types, or was fitted on other features.
    """

    segments = False

    def __init__(self, folder: Path) -> None:
        run = FinishedRun(folder)
        self.settings = run.config
        load_plugins(self.settings.get("plugins", ()))
        files = [folder / name for name in model_files(self.settings)]
        self.digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        self.pipeline = load_pipeline(folder / CLASSICAL_CHECKPOINT)
        self.classes = run.classes
        model, data = self.settings["model"], self.settings["data"]
        self.preprocessing = Preprocessing.from_config(data)
        self.batch_size = int(data["batch_size"])
        self.backbone: DeepFeatures | None = None
        self.families: tuple[str, ...] = ()
        if DEEP in model["classical"]["features"]:
            self.backbone = kept_backbone(model["backbone"], self.preprocessing.size, folder / BACKBONE_FILE)
        else:
            self.families = tuple(model["classical"]["features"])
        fitted = [str(name) for name in self.pipeline.feature_names_in_]
        self.columns = learned_names(self.families) if self.families else fitted
        if fitted != self.columns or len(self.pipeline.classes_) != len(self.classes):
            raise WeightsError(
                f"{folder / CLASSICAL_CHECKPOINT} was fitted on {len(fitted)} features and {len(self.pipeline.classes_)} classes; this "
                f"version computes {len(self.columns)} features of {', '.join(self.families)}, and {CLASSES_FILE} names "
                f"{len(self.classes)} classes. Use the version that made the run (environment.txt), or fit again."
            )

    def predict(self, inputs: npt.NDArray[Any]) -> ModelOutput:
        """Predict a batch.

        Args:
            inputs: hand-crafted features, float32 (B, F), in the order of `columns`. For deep features, preprocessed images,
                uint8 (B, S, S, 3) RGB.
        """
        if self.backbone is None:
            return self.predict_features(pd.DataFrame(inputs, columns=self.columns))
        return self.predict_features(self.backbone.measure(inputs, np.arange(len(inputs)), self.batch_size))

    def predict_features(self, features: pd.DataFrame) -> ModelOutput:
        """Predict from features, one row per image. Logits are logarithms of probabilities."""
        probability = np.asarray(self.pipeline.predict_proba(features), dtype=np.float64)
        return ModelOutput(None, np.log(probability.clip(_LOWEST, 1)).astype(np.float32), probability)


def compute_deep_features(
    backbone: DeepFeatures, data: PreparedData, batch_size: int, progress: ProgressBar | None
) -> pd.DataFrame:
    """Return the deep features of all images, cached for later trials of a sweep."""
    recipe = f"{data.store.folder.name} {backbone.digest()} {backbone.device.type} {DEEP_FORMAT}"
    folder = cache_folder() / "features" / hashlib.sha256(recipe.encode()).hexdigest()[:32]

    def build(building: Path) -> None:
        rows = np.arange(len(data.index), dtype=np.int64)
        report = progress("computing deep features") if progress else None
        np.save(building / DEEP_FILE, backbone.measure(data.store.images, rows, batch_size, report).to_numpy())

    build_once(folder, data.root, build, f"the deep features of {len(data.index)} images are kept there")
    return deep_table(np.load(folder / DEEP_FILE))


def predict_subset(model: ClassicalModel, data: PreparedData, features: pd.DataFrame, role: str) -> Predictions:
    """Predict the images of one role (train, val or test).

    `features` has one row per row of `data.index`.

    Raises:
        RunError: the model returns NaN.
    """
    rows = np.flatnonzero((data.index["role"] == role).to_numpy()).astype(np.int64)
    output = model.predict_features(features.iloc[rows])
    assert output.logits is not None
    assert output.probability is not None
    if count := int((~np.isfinite(output.probability).all(axis=1)).sum()):
        raise RunError(f"the classifier returns NaN for {count} {role} images; use other features or hyper-parameters.")
    label = data.index["label"].to_numpy(np.int64)[rows]
    return Predictions(rows, label, output.logits, output.probability, float("nan"))


def predict_test_set(
    model: ClassicalModel, experiment: Experiment, data: PreparedData, progress: ProgressBar | None = None
) -> Predictions:
    """Predict the test images of data that the model was not fitted on.

    `experiment` is that of the run, with these data.

    Raises:
        RunError: the model returns NaN.
    """
    if model.backbone is None:
        assert data.features is not None, "prepare_data computed them"
        features = data.features.columns(model.families)
    else:
        features = compute_deep_features(model.backbone, data, experiment.data.batch_size, progress)
    return predict_subset(model, data, features, "test")
