"""The tasks: LightningModules, from images (B, 3, H, W) in [0, 1] to logits of classes, or of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skincancer.models.backbones import build_backbone, count_features, frozen_parameters, normalisation
from skincancer.models.classifying import Classifying, Predictions
from skincancer.models.encoder_decoders import Segmenter
from skincancer.models.maskrcnn import InstanceSegmenter
from skincancer.models.segmenters import build_segmenter
from skincancer.models.segmenting import MaskPredictions, Segmenting
from skincancer.models.task import VIEWS, Batch, Normalise, View, turn, turn_back


class ClassificationTask(Classifying):
    """A timm backbone with a new head, trained on labels.

    Args:
        backbone: timm's name.
        size: image side, px.
        classes: names, in the order of the labels.
        dropout: before the classifying layer (and before the hidden one, where there is one).
        head: softmax, or sigmoid for two classes: one logit z, given out as the two logits (0, z).
        head_hidden: units of a hidden layer; 0 for none.
        freeze: none, all, or a number of stages.
        unfreeze_epoch: from when everything learns; None for never.
        loss, optimizer, schedule: the sections of the config, as dicts.
        class_weights: one a class, or None.
        tta: views of an image whose logits `predict_logits` averages: none, flips or d4.
        channels_last: NHWC memory format.
        seed: of the steps.
        module: a built backbone with its weights; None builds one with random weights (a checkpoint will fill it).
    """

    def __init__(
        self,
        *,
        backbone: str,
        size: int,
        classes: Sequence[str],
        dropout: float,
        head: str,
        head_hidden: int,
        freeze: str,
        unfreeze_epoch: int | None,
        loss: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        class_weights: Sequence[float] | None,
        tta: str,
        channels_last: bool,
        seed: int,
        module: nn.Module | None = None,
    ) -> None:
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
        """Images float32 (B, 3, H, W), RGB in [0, 1], to logits (B, C)."""
        return self.classify(self.backbone(self.normalise(image)))

    def classify(self, features: Tensor) -> Tensor:
        """Pooled features (B, F) of the backbone to logits (B, C)."""
        logits = self.head(features)
        if self.hparams["head"] == "sigmoid":
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits

    def predict_logits(self, image: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W), RGB in [0, 1], to logits (B, C), averaged over the views of `tta`."""
        return self._averaged(image, VIEWS[self.hparams["tta"]])

    def _averaged(self, image: Tensor, views: Sequence[View]) -> Tensor:
        return torch.stack([self(turn(image, view)) for view in views]).mean(0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self.guard(self.class_loss(self(batch["image"]), batch["label"], self.class_weights))

    def evaluate(self, batch: Batch) -> None:
        """Keep the logits of a batch."""
        self.keep_logits(batch, self._averaged(batch["image"], self.evaluation_views()))

    def finish(self, part: str) -> None:
        """Gather what was kept of a part (val or test), set `predictions`, log `<part>/<metric>`."""
        self.predictions, metrics = self.finish_classes(part)
        self.report(part, {"loss": self.predictions.loss, **metrics}, shown="balanced_accuracy")


class SegmentationTask(Segmenting):
    """A segmenter, trained on masks.

    Args:
        architecture: a name of `ARCHITECTURES`.
        backbone: its encoder.
        size: image side, px.
        freeze: none, or all (the whole encoder).
        unfreeze_epoch: from when everything learns; None for never.
        loss, optimizer, schedule: the sections of the config, as dicts.
        tta: views of an image whose logits `predict_probability` averages: none, flips or d4.
        threshold: a pixel is lesion above this probability; None for 0.5 until `threshold` is set.
        channels_last: NHWC memory format.
        seed: of the steps.
        module: a built segmenter with its weights; None builds one with random weights (a checkpoint will fill it).
    """

    def __init__(
        self,
        *,
        architecture: str,
        backbone: str,
        size: int,
        freeze: str,
        unfreeze_epoch: int | None,
        loss: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        schedule: Mapping[str, Any],
        tta: str,
        threshold: float | None,
        channels_last: bool,
        seed: int,
        module: Segmenter | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["module"], logger=False)
        built = module if module is not None else build_segmenter(architecture, backbone, size)
        self.configure_segmenter(built, backbone, freeze, threshold, channels_last)
        self.predictions: MaskPredictions | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W), RGB in [0, 1], to logits (B, 1, H, W)."""
        logits: Tensor = self.segmenter(self.normalise(image))
        return logits

    def predict_probability(self, image: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W), RGB in [0, 1], to lesion probabilities (B, 1, H, W), of logits averaged over `tta`."""
        return self._averaged(image, VIEWS[self.hparams["tta"]]).sigmoid()

    def _averaged(self, image: Tensor, views: Sequence[View]) -> Tensor:
        return torch.stack([turn_back(self(turn(image, view)).float(), view) for view in views]).mean(0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch: the segmenter's own where it has one (Mask R-CNN)."""
        if isinstance(self.segmenter, InstanceSegmenter):
            image = self.normalise(batch["image"])
            return self.guard(self.segmenter.own_loss(image, batch["mask"], batch["has_mask"]))
        return self.guard(self.mask_loss(self(batch["image"]), batch["mask"], batch["has_mask"]))

    def evaluate(self, batch: Batch) -> None:
        """Score the masks of a batch, or search the threshold on them."""
        self.score_masks(batch, self._averaged(batch["image"], self.evaluation_views()))

    def finish(self, part: str) -> None:
        """Gather what was kept of a part (val or test), set `predictions`, log `<part>/<metric>`."""
        self.predictions, metrics = self.finish_masks(part)
        self.report(part, {"loss": self.predictions.loss, **metrics}, shown="jaccard")
