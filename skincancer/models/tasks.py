"""The tasks: LightningModules, from images (B, 3, H, W) in [0, 1] to logits of classes, or of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from skincancer.errors import RunError
from skincancer.evaluation.mask_scoring import MaskScorer
from skincancer.evaluation.masks import MASK_METRICS, ThresholdSearch, binarise, mask_metrics, mean_metrics
from skincancer.evaluation.metrics import classification_metrics
from skincancer.models.backbones import build_backbone, count_features, frozen_parameters, normalisation
from skincancer.models.encoder_decoders import Segmenter
from skincancer.models.losses import LOSSES
from skincancer.models.mask_losses import mask_loss
from skincancer.models.maskrcnn import InstanceSegmenter
from skincancer.models.segmenters import build_segmenter, encoder_normalisation
from skincancer.models.task import VIEWS, Batch, Normalise, Task, turn, turn_back


@dataclass(frozen=True)
class Predictions:
    """What a model says of a part: sorted by index, one row an image.

    `index` int64 (N,), rows of the index table; `label` int64 (N,); `logits` float32 (N, C); `probability` float64 (N, C);
    `loss` the training loss over the part.
    """

    index: np.ndarray
    label: np.ndarray
    logits: np.ndarray
    probability: np.ndarray
    loss: float


class ClassificationTask(Task):
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

    class_weights: Tensor | None

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
        self.configure_loss()
        self.set_frozen({f"backbone.{name}" for name in frozen_parameters(self.backbone, freeze)})
        self.classes = list(classes)
        self.predictions: Predictions | None = None
        self._evaluated: list[tuple[Tensor, Tensor, Tensor]] = []

    def configure_loss(self) -> None:
        """Build the loss; class weights are no part of a checkpoint, so that its weights load whatever the loss."""
        options = self.hparams["loss"]
        self.loss = LOSSES[options["name"]](options)
        weights = self.hparams["class_weights"]
        tensor = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("class_weights", tensor, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W), RGB in [0, 1], to logits (B, C)."""
        logits = self.head(self.backbone(self.normalise(image)))
        if self.hparams["head"] == "sigmoid":
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits

    def predict_logits(self, image: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W), RGB in [0, 1], to logits (B, C), averaged over the views of `tta`."""
        return torch.stack([self(turn(image, view)) for view in VIEWS[self.hparams["tta"]]]).mean(0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self.guard(self.loss(self(batch["image"]), batch["label"], self.class_weights))

    def evaluate(self, batch: Batch) -> None:
        """Keep the logits of a batch."""
        # the validation of each epoch only ranks epochs: one view does, at an eighth of the time
        predict = self if self.trainer.state.fn == "fit" else self.predict_logits
        logits = predict(batch["image"]).float()
        self._evaluated.append((batch["index"].cpu(), batch["label"].cpu(), logits.cpu()))

    def finish(self, part: str) -> None:
        """Gather what was kept of a part (val or test), set `predictions`, log `<part>/<metric>`."""
        self.stop_if_not_finite()  # a loss that was not finite is told with its own step, before its consequences
        index, label, logits = self.gather(self._evaluated)
        self._evaluated.clear()
        weights = None if self.class_weights is None else self.class_weights.cpu()
        loss = float(self.loss(logits, label, weights))
        probability = torch.softmax(logits.double(), dim=1).numpy()
        self.predictions = Predictions(index.numpy(), label.numpy(), logits.numpy(), probability, loss)
        if not np.isfinite(probability).all():
            raise RunError(
                f"the model gives NaN on the {part} images after step {self.global_step}; lower --model.optimizer.lr"
            )
        metrics = classification_metrics(label.numpy(), probability, self.classes)
        self.log(f"{part}/loss", loss)
        for name, value in metrics.items():
            self.log(f"{part}/{name}", value, prog_bar=f"{part}/{name}" == "val/balanced_accuracy")


@dataclass(frozen=True)
class MaskPredictions:
    """How well a model's masks fit those of a part: sorted by index, one row an image.

    `index` int64 (N,), rows of the index table; `table` a column a metric of `MASK_METRICS`; `loss` the mask loss over the part.
    """

    index: np.ndarray
    table: pd.DataFrame
    loss: float


class SegmentationTask(Task):
    """A segmenter, trained on masks.

    The validation of each epoch scores masks at the network's size, cut at 0.5, from one view; every other evaluation scores them as
    `scorer` says: at the original size, cut at `threshold`, from the views of `tta`.

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
        mean, std = encoder_normalisation(backbone)
        self.normalise = Normalise(mean, std)
        self.segmenter = module if module is not None else build_segmenter(architecture, backbone, size)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.configure_loss()
        learned = {id(parameter) for parameter in self.segmenter.encoder.parameters()}
        frozen = {name for name, parameter in self.named_parameters() if id(parameter) in learned}
        self.set_frozen(frozen if freeze == "all" else set())
        self.threshold = 0.5 if threshold is None else threshold
        self.scorer: MaskScorer | None = None
        self.search: ThresholdSearch | None = None
        self.predictions: MaskPredictions | None = None
        self._evaluated: list[tuple[Tensor, Tensor, Tensor]] = []

    def configure_loss(self) -> None:
        """Build the weighted sum of mask losses."""
        options = self.hparams["loss"]
        self.loss = mask_loss(options["masks"], options)

    def forward(self, image: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W), RGB in [0, 1], to logits (B, 1, H, W)."""
        logits: Tensor = self.segmenter(self.normalise(image))
        return logits

    def predict_probability(self, image: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W), RGB in [0, 1], to lesion probabilities (B, 1, H, W), of logits averaged over `tta`."""
        views = VIEWS[self.hparams["tta"]]
        return torch.stack([turn_back(self(turn(image, view)).float(), view) for view in views]).mean(0).sigmoid()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch: the segmenter's own where it has one (Mask R-CNN)."""
        if isinstance(self.segmenter, InstanceSegmenter):
            image = self.normalise(batch["image"])
            return self.guard(self.segmenter.own_loss(image, batch["mask"], batch["has_mask"]))
        return self.guard(self.loss(self(batch["image"]), batch["mask"], batch["has_mask"]))

    def evaluate(self, batch: Batch) -> None:
        """Score the masks of a batch, or search the threshold on them."""
        index, mask = batch["index"].cpu(), batch["mask"]
        fitting = self.trainer.state.fn == "fit"
        if fitting:
            logits = self(batch["image"]).float()
            probability = logits.sigmoid()
        else:
            probability = self.predict_probability(batch["image"])
            logits = torch.logit(probability, eps=1e-6)
        loss = self.loss(logits, mask, batch["has_mask"])
        squares = probability[:, 0].cpu().numpy()
        if not np.isfinite(squares).all():
            raise RunError(f"the model gives NaN after step {self.global_step}; lower --model.optimizer.lr")
        if fitting:
            truths = mask[:, 0].cpu().numpy() > 0
            scores = [mask_metrics(truth, binarise(square, 0.5)) for truth, square in zip(truths, squares, strict=True)]
        else:
            assert self.scorer is not None, "whoever evaluates sets it"
            rows = index.tolist()
            if self.search is not None:
                for row, square in zip(rows, squares, strict=True):
                    self.search.add(self.scorer.probability(row, square), self.scorer.truth(row))
                return
            scores = [self.scorer.score(row, square, self.threshold) for row, square in zip(rows, squares, strict=True)]
        values = torch.tensor([[score[name] for name in MASK_METRICS] for score in scores], dtype=torch.float64)
        self._evaluated.append((index, values, loss.detach().cpu().repeat(len(index))))

    def on_validation_epoch_end(self) -> None:
        """Average `val/<metric>` over the images; after a search, set the threshold instead."""
        if self.search is None:
            self.finish("val")
            return
        if self.trainer.world_size > 1:
            others: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(others, self.search)
            self.search = ThresholdSearch.merged(others)
        self.threshold, _ = self.search.best()
        self.search = None

    def finish(self, part: str) -> None:
        """Gather what was kept of a part (val or test), set `predictions`, log `<part>/<metric>`."""
        self.stop_if_not_finite()
        index, values, losses = self.gather(self._evaluated)
        self._evaluated.clear()
        table = pd.DataFrame(values.numpy(), columns=list(MASK_METRICS))
        self.predictions = MaskPredictions(index.numpy(), table, float(losses.mean()))
        self.log(f"{part}/loss", self.predictions.loss)
        for name, value in mean_metrics(table).items():
            self.log(f"{part}/{name}", value, prog_bar=f"{part}/{name}" == "val/jaccard")
