"""A finished run's classical classifier, with the face that `models.trained.TrainedModel` gives a network."""

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
from skincancer.inference.outputs import Answers
from skincancer.models.classical import load_pipeline
from skincancer.models.deep_features import DeepFeatures, deep_table, kept_backbone
from skincancer.models.tasks.classification import Predictions
from skincancer.plugins import load_plugins
from skincancer.runs.artifacts import BACKBONE_FILE, CLASSES_FILE, CLASSICAL_CHECKPOINT, model_files
from skincancer.runs.finished import FinishedRun
from skincancer.schema import DEEP, Experiment
from skincancer.system.paths import cache_folder

_FEWEST = 1e-12  # a probability that nine digits write, and whose logarithm is finite


class ClassicalModel:
    """A classical classifier from a finished run.

    Attributes:
        settings: the run's config.yaml.
        classes: names in the order of the probabilities.
        segments: False.
        families: of the hand-made features that it takes; none of one that takes images.
        columns: names of these features, in order.
        preprocessing: from an image file to the square of a backbone. Hand-crafted features need its cleaning steps only.
        batch_size: images at once.
        digest: of the files.

    Args:
        folder: holds the files (`artifacts.model_files`).

    Raises:
        ConfigError: the config cannot be read.
        WeightsError: the checkpoint is none, or holds unknown types, or was fitted on other features.
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
                f"{folder / CLASSICAL_CHECKPOINT}: fitted on {len(fitted)} features and {len(self.pipeline.classes_)} classes; this "
                f"version measures {len(self.columns)} of {', '.join(self.families)}, and {CLASSES_FILE} names {len(self.classes)}. "
                "Use the version that the run was made by (environment.txt), or fit again."
            )

    def answer(self, inputs: npt.NDArray[Any]) -> Answers:
        """Answer on a batch.

        Args:
            inputs: hand-made features, float32 (B, F), in the order of `columns`; of a model on deep features squares, uint8
                (B, S, S, 3) RGB.
        """
        if self.backbone is None:
            return self.answer_features(pd.DataFrame(inputs, columns=self.columns))
        return self.answer_features(self.backbone.measure(inputs, np.arange(len(inputs)), self.batch_size))

    def answer_features(self, features: pd.DataFrame) -> Answers:
        """Answer on features, a row an image; logits are the logarithms of the probabilities."""
        probability = np.asarray(self.pipeline.predict_proba(features), dtype=np.float64)
        return Answers(None, np.log(probability.clip(_FEWEST, 1)).astype(np.float32), probability)


DEEP_FORMAT = 1  # raised whenever a backbone gives other numbers
DEEP_FILE = "features.npy"


def measure_deep(
    backbone: DeepFeatures, data: PreparedData, batch_size: int, progress: ProgressBar | None
) -> pd.DataFrame:
    """Return the features of every image of the store, kept beside it: trials of a sweep differ in what learns from them alone."""
    recipe = f"{data.store.folder.name} {backbone.digest()} {backbone.device.type} {DEEP_FORMAT}"
    folder = cache_folder() / "features" / hashlib.sha256(recipe.encode()).hexdigest()[:32]

    def build(building: Path) -> None:
        rows = np.arange(len(data.index), dtype=np.int64)
        report = progress("asking the backbone") if progress else None
        np.save(building / DEEP_FILE, backbone.measure(data.store.images, rows, batch_size, report).to_numpy())

    build_once(folder, data.root, build, f"the backbone's features of {len(data.index)} images are kept there")
    return deep_table(np.load(folder / DEEP_FILE))


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
        features = measure_deep(model.backbone, data, experiment.data.batch_size, progress)
    return predict_part(model, data, features, "test")
