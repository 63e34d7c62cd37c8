"""A finished run's classical classifier, with the face that `models.trained.TrainedModel` gives a network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.artifacts import BACKBONE_FILE, CLASSES_FILE, CLASSICAL_CHECKPOINT, model_files
from skincancer.config import load_yaml
from skincancer.errors import WeightsError
from skincancer.images.cleaning import check_clean
from skincancer.images.features import learned_names
from skincancer.models.answers import Answers
from skincancer.models.classical import load_pipeline
from skincancer.models.deep_features import DeepFeatures, kept_backbone
from skincancer.schema import DEEP

_FEWEST = 1e-12  # a probability that nine digits write, and whose logarithm is finite


class ClassicalModel:
    """A classical classifier from a finished run.

    Attributes:
        settings: the run's config.yaml.
        classes: names in the order of the probabilities.
        segments: False.
        families: of the hand-made features that it takes; none of one that takes images.
        columns: names of these features, in order.
        clean: steps of cleaning that its images went through first.
        size, resize: of the square that one on deep features takes, px, and how images come to it.
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
        self.settings = load_yaml(folder / "config.yaml")
        files = [folder / name for name in model_files(self.settings)]
        self.digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        self.pipeline = load_pipeline(folder / CLASSICAL_CHECKPOINT)
        content = json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8"))
        self.classes = tuple(str(name) for name in content["classes"])
        model, data = self.settings["model"], self.settings["data"]
        self.size, self.resize = int(data["size"]), str(data["resize"])
        self.clean: tuple[str, ...] = tuple(data["clean"])
        check_clean(self.clean)
        self.batch_size = int(data["batch_size"])
        self.backbone: DeepFeatures | None = None
        self.families: tuple[str, ...] = ()
        if DEEP in model["classical"]["features"]:
            self.backbone = kept_backbone(model["backbone"], self.size, folder / BACKBONE_FILE)
        else:
            self.families = tuple(model["classical"]["features"])
        fitted = [str(name) for name in self.pipeline.feature_names_in_]
        self.columns = learned_names(self.families) if self.families else fitted
        if fitted != self.columns or len(self.pipeline.classes_) != len(self.classes):
            raise WeightsError(
                f"{folder / CLASSICAL_CHECKPOINT}: fitted on {len(fitted)} features and {len(self.pipeline.classes_)} classes; this "
                f"version measures {len(self.columns)} of {', '.join(self.families)}, and classes.json names {len(self.classes)}. "
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
