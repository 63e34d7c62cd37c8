"""Joint task: mask and class of an image from one encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skincancer.metrics.names import MASK_PREFIX
from skincancer.models.decoders import JointSegmenter
from skincancer.models.segmenters import build_joint
from skincancer.models.tasks.base import VIEWS, Batch, View, turn, turn_back
from skincancer.models.tasks.classification import Classifying, Predictions
from skincancer.models.tasks.segmentation import MaskPredictions, Segmenting
from skincancer.schema.tasks import TASKS


@dataclass(frozen=True)
class JointPredictions:
    """Class and mask predictions of the same images, in the same order."""

    classes: Predictions
    masks: MaskPredictions


class JointTask(Classifying, Segmenting):
    """Segmenter with a class head on its encoder, trained on masks and labels.

    The loss is the mask loss over images with a mask, plus `loss["class_factor"]` times the class loss over images with a label.
    A batch without masks, or without labels, has a loss of 0 for them. Metrics of masks are logged as `mask_<metric>`.

    Args:
        architecture: name in `JOINT_ARCHITECTURES`.
        classes: names, in the order of the labels.
        dropout: probability before the class layer.
        class_weights: one weight per class.

    Other arguments are as in `SegmentationTask`.
    """

    kind = TASKS["joint"]

    def __init__(
        self, *, architecture: str, backbone: str, size: int, classes: Sequence[str], dropout: float, freeze: str,
        unfreeze_epoch: int | None, loss: Mapping[str, Any], optimizer: Mapping[str, Any], schedule: Mapping[str, Any],
        class_weights: Sequence[float] | None, tta: str, threshold: float | None, channels_last: bool, seed: int,
        module: JointSegmenter | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters(ignore=["module"], logger=False)
        built = module if module is not None else build_joint(architecture, backbone, size, len(classes), dropout)
        self.configure_segmenter(built, backbone, freeze, threshold, channels_last)
        self.configure_class_loss()
        self.classes = list(classes)
        self.predictions: JointPredictions | None = None

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to logits of masks and classes.

        Float32 (B, 3, H, W), RGB in [0, 1], becomes (B, 1, H, W) and (B, C).
        """
        masks, classes = self.segmenter(self.normalise(image))
        return masks, classes

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return lesion probabilities and class logits from one pass."""
        masks, classes = self._averaged(image, VIEWS[self.hparams["tta"]])
        return masks.sigmoid(), classes

    def _averaged(self, image: Tensor, views: Sequence[View]) -> tuple[Tensor, Tensor]:
        outputs = [self(turn(image, view)) for view in views]
        masks = [turn_back(logits.float(), view) for (logits, _), view in zip(outputs, views, strict=True)]
        return torch.stack(masks).mean(0), torch.stack([logits.float() for _, logits in outputs]).mean(0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum of both losses of a batch."""
        masks, classes = self(batch["image"])
        mask_loss = self.mask_loss(masks, batch["mask"], batch["has_mask"])
        class_loss = self.class_loss(classes, batch["label"], self.class_weights)
        return self.guard(mask_loss + self.hparams["loss"]["class_factor"] * class_loss)

    def evaluate(self, batch: Batch) -> None:
        """Store class logits of a batch, and score masks or search the threshold."""
        masks, classes = self._averaged(batch["image"], self.evaluation_views())
        if self.search is None:
            self.keep_logits(batch, classes)
        self.score_masks(batch, masks)

    def finish(self, subset: str) -> None:
        """Set `predictions` of a subset, and log `<subset>/<metric>` and `<subset>/mask_<metric>`."""
        classes, class_metrics = self.finish_classes(subset)
        masks, mask_metrics = self.finish_masks(subset)
        self.predictions = JointPredictions(classes, masks)
        losses = {
            "loss": masks.loss + self.hparams["loss"]["class_factor"] * classes.loss,
            "mask_loss": masks.loss,
            "class_loss": classes.loss,
        }
        self.report(subset, {**losses, **class_metrics}, main="balanced_accuracy")
        self.report(subset, {MASK_PREFIX + name: value for name, value in mask_metrics.items()}, main="mask_jaccard")
