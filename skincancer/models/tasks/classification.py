"""Classification: base of all tasks with class logits, and the classification task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skincancer.errors import RunError
from skincancer.metrics.classification import classification_metrics
from skincancer.models.backbones import build_backbone, count_features, frozen_parameters, normalisation
from skincancer.models.losses import LOSSES
from skincancer.models.tasks.base import VIEWS, Batch, Normalise, Task, View, turn
from skincancer.schema.tasks import TASKS


@dataclass(frozen=True)
class Predictions:
    """Class predictions of a subset, one row per image, sorted by index.

    Attributes:
        index: int64 (N,), rows of the index table.
        label: int64 (N,), −1 if absent.
        logits: float32 (N, C).
        probability: float64 (N, C).
        loss: training loss over the labelled images.
    """

    index: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    probability: np.ndarray
    loss: float


class Classifying(Task):
    """Task with class logits. A subclass sets `classes` and calls `configure_class_loss`."""

    class_weights: Tensor | None
    # Callers that compute their own metrics, such as for data with other classes, set this to False.
    needs_labels = True

    def __init__(self) -> None:
        super().__init__()
        self._logits: list[tuple[Tensor, Tensor, Tensor]] = []

    def configure_class_loss(self) -> None:
        """Build the loss. Checkpoints omit class weights, to load with any loss."""
        options = self.hparams["loss"]
        self.class_loss = LOSSES[options["name"]](options)
        weights = self.hparams["class_weights"]
        tensor = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("class_weights", tensor, persistent=False)

    def keep_logits(self, batch: Batch, logits: Tensor) -> None:
        """Store the class logits (B, C) of a batch."""
        self._logits.append((batch["index"].cpu(), batch["label"].cpu(), logits.float().cpu()))

    def finish_classes(self, subset: str) -> tuple[Predictions, dict[str, float]]:
        """Return predictions of a subset (val or test), and metrics of labelled images.

        Raises:
            RunError: the model returns NaN, or no image has a label although labels are needed.
        """
        # The message about the loss names its step, so it comes before messages about consequences.
        self.stop_if_not_finite()
        index, label, logits = self.gather(self._logits)
        self._logits.clear()
        weights = None if self.class_weights is None else self.class_weights.cpu()
        loss = float(self.class_loss(logits, label, weights))
        probability = torch.softmax(logits.double(), dim=1).numpy()
        if not np.isfinite(probability).all():
            raise RunError(
                f"the model returns NaN on the {subset} images after step {self.global_step}; lower --model.optimizer.lr"
            )
        labelled = (label >= 0).numpy()
        metrics: dict[str, float] = {}
        if labelled.any():
            metrics = classification_metrics(label.numpy()[labelled], probability[labelled], self.classes)
        elif self.needs_labels:
            raise RunError(
                f"none of the {len(label)} evaluated {subset} images has a label; raise trainer.limit_{subset}_batches."
            )
        return Predictions(index.numpy(), label.numpy(), logits.numpy(), probability, loss), metrics


class ClassificationTask(Classifying):
    """timm backbone with a new head, trained on labels.

    Args:
        backbone: timm's name.
        size: image side, px.
        classes: names, in the order of the labels.
        dropout: probability before each linear layer of the head.
        head: softmax, or sigmoid for two classes: one logit z, returned as the two logits (0, z).
        head_hidden: units of a hidden layer; 0 for none.
        freeze: none, all, or a number of stages.
        unfreeze_epoch: epoch from which all layers are trained; None for never.
        loss, optimizer, schedule: sections of the config, as dicts.
        class_weights: one weight per class.
        tta: averaged views of an image: none, flips or d4.
        channels_last: NHWC memory format.
        seed: seed of the random numbers of steps.
        module: backbone with weights; None builds a backbone with random weights, for a checkpoint to fill.
    """

    kind = TASKS["classification"]

    def __init__(
        self, *, backbone: str, size: int, classes: Sequence[str], dropout: float, head: str, head_hidden: int, freeze: str,
        unfreeze_epoch: int | None, loss: Mapping[str, Any], optimizer: Mapping[str, Any], schedule: Mapping[str, Any],
        class_weights: Sequence[float] | None, tta: str, channels_last: bool, seed: int, module: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters(ignore=["module"], logger=False)
        mean, std = normalisation(backbone)
        self.normalise = Normalise(mean, std)
        self.backbone = module if module is not None else build_backbone(backbone, size)
        features = count_features(self.backbone, size)
        outputs = 1 if head == "sigmoid" else len(classes)
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if head_hidden:
            layers += [nn.Linear(features, head_hidden), nn.ReLU(), nn.Dropout(dropout)]
            features = head_hidden
        self.head = nn.Sequential(*layers, nn.Linear(features, outputs))
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.configure_class_loss()
        self.set_frozen({f"backbone.{name}" for name in frozen_parameters(self.backbone, freeze)})
        self.classes = list(classes)
        self.predictions: Predictions | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W), RGB in [0, 1], to logits (B, C)."""
        return self.classify(self.backbone(self.normalise(image)))

    def classify(self, features: Tensor) -> Tensor:
        """Map pooled features (B, F) of the backbone to logits (B, C)."""
        logits = self.head(features)
        if self.hparams["head"] == "sigmoid":
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits

    def predict(self, image: Tensor) -> tuple[None, Tensor]:
        """Return the class logits."""
        return None, self._averaged(image, VIEWS[self.hparams["tta"]])

    def _averaged(self, image: Tensor, views: Sequence[View]) -> Tensor:
        return torch.stack([self(turn(image, view)) for view in views]).mean(0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self.guard(self.class_loss(self(batch["image"]), batch["label"], self.class_weights))

    def evaluate(self, batch: Batch) -> None:
        """Store the logits of a batch."""
        self.keep_logits(batch, self._averaged(batch["image"], self.evaluation_views()))

    def finish(self, subset: str) -> None:
        """Set `predictions` of a subset (val or test), and log `<subset>/<metric>`."""
        self.predictions, metrics = self.finish_classes(subset)
        self.report(subset, {"loss": self.predictions.loss, **metrics}, main="balanced_accuracy")
