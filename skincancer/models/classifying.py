"""What tasks with class logits share: the loss over labelled images, and at the end of a part predictions with their metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skincancer.errors import RunError
from skincancer.evaluation.metrics import classification_metrics
from skincancer.models.losses import LOSSES
from skincancer.models.task import Batch, Task


@dataclass(frozen=True)
class Predictions:
    """What a model says of the classes of a part: sorted by index, one row an image.

    `index` int64 (N,), rows of the index table; `label` int64 (N,), −1 where absent; `logits` float32 (N, C); `probability`
    float64 (N, C); `loss` the training loss over the labelled images.
    """

    index: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    probability: np.ndarray
    loss: float


class Classifying(Task):
    """A task whose model gives logits of classes; a subclass sets `classes` and calls `configure_class_loss`."""

    classes: list[str]
    class_weights: Tensor | None
    needs_labels = True  # False for who keeps its own labels, such as those of other classes, and its own metrics

    def __init__(self) -> None:
        super().__init__()
        self._logits: list[tuple[Tensor, Tensor, Tensor]] = []

    def configure_class_loss(self) -> None:
        """Build the loss; class weights are no part of a checkpoint, so that its weights load whatever the loss."""
        options = self.hparams["loss"]
        self.class_loss = LOSSES[options["name"]](options)
        weights = self.hparams["class_weights"]
        tensor = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("class_weights", tensor, persistent=False)

    def keep_logits(self, batch: Batch, logits: Tensor) -> None:
        """Keep the class logits (B, C) of a batch."""
        self._logits.append((batch["index"].cpu(), batch["label"].cpu(), logits.float().cpu()))

    def finish_classes(self, part: str) -> tuple[Predictions, dict[str, float]]:
        """Gather what was kept of a part (val or test); return it, and the metrics of its labelled images, if there are any.

        Raises:
            RunError: the model gives NaN, or no image has a label where labels are needed.
        """
        self.stop_if_not_finite()  # a loss that was not finite is told with its own step, before its consequences
        index, label, logits = self.gather(self._logits)
        self._logits.clear()
        weights = None if self.class_weights is None else self.class_weights.cpu()
        loss = float(self.class_loss(logits, label, weights))
        probability = torch.softmax(logits.double(), dim=1).numpy()
        if not np.isfinite(probability).all():
            raise RunError(
                f"the model gives NaN on the {part} images after step {self.global_step}; lower --model.optimizer.lr"
            )
        labelled = (label >= 0).numpy()
        metrics: dict[str, float] = {}
        if labelled.any():
            metrics = classification_metrics(label.numpy()[labelled], probability[labelled], self.classes)
        elif self.needs_labels:
            raise RunError(
                f"none of the {len(label)} {part} images that were evaluated has a label; raise trainer.limit_{part}_batches."
            )
        return Predictions(index.numpy(), label.numpy(), logits.numpy(), probability, loss), metrics
