"""Segmentation: base of all tasks with masks, and the segmentation task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from skincancer.errors import RunError
from skincancer.metrics.mask_scorer import MaskScorer
from skincancer.metrics.names import MASK_METRICS
from skincancer.metrics.segmentation import ThresholdSearch, binarise, mask_metrics, mean_metrics
from skincancer.models.decoders import PaddedModel, Segmenter
from skincancer.models.losses import mask_loss
from skincancer.models.maskrcnn import InstanceSegmenter
from skincancer.models.segmenters import build_segmenter, encoder_normalisation
from skincancer.models.tasks.base import VIEWS, Batch, Normalise, Task, View, turn, turn_back
from skincancer.schema.tasks import TASKS


@dataclass(frozen=True)
class MaskPredictions:
    """Mask metrics of a subset, one row per image, sorted by index.

    Attributes:
        index: int64 (N,), rows of the index table.
        table: one column per metric of `MASK_METRICS`; NaN for images without a mask.
        loss: mask loss over the images with a mask.
    """

    index: np.ndarray
    table: pd.DataFrame
    loss: float


class Segmenting(Task):
    """Task with mask logits. A subclass builds a segmenter and calls `configure_segmenter`.

    The validation of each epoch scores masks at the input size with the threshold 0.5. All other evaluations use `scorer`, with
    masks of the original size and the threshold `threshold`. Images without a mask are not scored.
    """

    segmenter: PaddedModel
    threshold: float

    def __init__(self) -> None:
        super().__init__()
        self.scorer: MaskScorer | None = None
        self.search: ThresholdSearch | None = None
        self._scores: list[tuple[Tensor, Tensor, Tensor]] = []

    def configure_segmenter(
        self, segmenter: PaddedModel, backbone: str, freeze: str, threshold: float | None, channels_last: bool
    ) -> None:
        """Set the segmenter with initial weights, its normalisation, mask loss, frozen encoder and threshold.

        Arguments are as in `SegmentationTask`.
        """
        self.normalise = Normalise(*encoder_normalisation(backbone))
        self.segmenter = segmenter
        if channels_last:
            self.to(memory_format=torch.channels_last)
        options = self.hparams["loss"]
        self.mask_loss = mask_loss(options["masks"], options)
        encoder = {id(parameter) for parameter in segmenter.encoder.parameters()}
        frozen = {name for name, parameter in self.named_parameters() if id(parameter) in encoder}
        self.set_frozen(frozen if freeze == "all" else set())
        self.threshold = 0.5 if threshold is None else threshold

    def score_masks(self, batch: Batch, logits: Tensor) -> None:
        """Score the masks of a batch, or search the threshold on them.

        Args:
            batch: `mask` is the truth in the validation of an epoch. In other evaluations `scorer` reads the truth from files.
            logits: float32 (B, 1, H, W).

        Raises:
            RunError: the model returns NaN.
        """
        index = batch["index"].cpu()
        squares = logits.sigmoid()[:, 0].cpu().numpy()
        if not np.isfinite(squares).all():
            raise RunError(f"the model returns NaN after step {self.global_step}; lower --model.optimizer.lr")
        masked = torch.nonzero(batch["has_mask"].cpu())[:, 0].tolist()
        rows = index.tolist()
        if self.search is not None:
            assert self.scorer is not None, "the caller of a search sets the scorer"
            for position in masked:
                row = rows[position]
                self.search.add(self.scorer.probability(row, squares[position]), self.scorer.truth(row))
            return
        truths = batch["mask"][:, 0].cpu().numpy() > 0
        values = torch.full((len(rows), len(MASK_METRICS)), torch.nan, dtype=torch.float64)
        for position in masked:
            if self.in_fit:
                score = mask_metrics(truths[position], binarise(squares[position], 0.5))
            else:
                assert self.scorer is not None, "the caller of an evaluation sets the scorer"
                score = self.scorer.score(rows[position], squares[position], self.threshold)
            values[position] = torch.tensor([score[name] for name in MASK_METRICS], dtype=torch.float64)
        loss = self.mask_loss(logits, batch["mask"], batch["has_mask"])
        self._scores.append((index, values, loss.detach().cpu().repeat(len(rows))))

    def on_validation_epoch_end(self) -> None:
        """Log `val/<metric>`. After a search, set the threshold instead.

        Raises:
            RunError: a search without any mask.
        """
        if self.search is None:
            self.finish("val")
            return
        if self.trainer.world_size > 1:
            searches: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(searches, self.search)
            self.search = ThresholdSearch.merged(searches)
        if not self.search.n_images:
            raise self._without_masks("val")
        self.threshold, _ = self.search.best()
        self.search = None

    def finish_masks(self, subset: str) -> tuple[MaskPredictions, dict[str, float]]:
        """Return scores of a subset, and mean metrics over images with a mask.

        Raises:
            RunError: no image has a mask.
        """
        self.stop_if_not_finite()
        index, values, losses = self.gather(self._scores)
        self._scores.clear()
        masked = ~values[:, 0].isnan()
        if not masked.any():
            raise self._without_masks(subset)
        table = pd.DataFrame(values.numpy(), columns=list(MASK_METRICS))
        return MaskPredictions(index.numpy(), table, float(losses[masked].mean())), mean_metrics(table)

    @staticmethod
    def _without_masks(subset: str) -> RunError:
        return RunError(f"none of the evaluated {subset} images has a mask; raise trainer.limit_{subset}_batches.")


class SegmentationTask(Segmenting):
    """Segmenter trained on masks.

    Args:
        architecture: name in `ARCHITECTURES`.
        backbone: name of the encoder.
        size: image side, px.
        freeze: none, or all (the whole encoder).
        unfreeze_epoch: epoch from which all layers are trained; None for never.
        loss, optimizer, schedule: sections of the config, as dicts.
        tta: averaged views of an image: none, flips or d4.
        threshold: lesion probability from which a pixel is lesion; None for 0.5 until `threshold` is set.
        channels_last: NHWC memory format.
        seed: seed of the random numbers of steps.
        module: segmenter with weights; None builds a segmenter with random weights, for a checkpoint to fill.
    """

    kind = TASKS["segmentation"]

    def __init__(
        self, *, architecture: str, backbone: str, size: int, freeze: str, unfreeze_epoch: int | None, loss: Mapping[str, Any],
        optimizer: Mapping[str, Any], schedule: Mapping[str, Any], tta: str, threshold: float | None, channels_last: bool,
        seed: int, module: Segmenter | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters(ignore=["module"], logger=False)
        built = module if module is not None else build_segmenter(architecture, backbone, size)
        self.configure_segmenter(built, backbone, freeze, threshold, channels_last)
        self.predictions: MaskPredictions | None = None

    def forward(self, image: Tensor) -> Tensor:
        """Map images, RGB in [0, 1], to logits (B, 1, H, W)."""
        logits: Tensor = self.segmenter(self.normalise(image))
        return logits

    def predict(self, image: Tensor) -> tuple[Tensor, None]:
        """Return the lesion probabilities."""
        return self._averaged(image, VIEWS[self.hparams["tta"]]).sigmoid(), None

    def _averaged(self, image: Tensor, views: Sequence[View]) -> Tensor:
        return torch.stack([turn_back(self(turn(image, view)).float(), view) for view in views]).mean(0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, which Mask R-CNN computes itself."""
        if isinstance(self.segmenter, InstanceSegmenter):
            image = self.normalise(batch["image"])
            return self.guard(self.segmenter.own_loss(image, batch["mask"], batch["has_mask"]))
        return self.guard(self.mask_loss(self(batch["image"]), batch["mask"], batch["has_mask"]))

    def evaluate(self, batch: Batch) -> None:
        """Score the masks of a batch, or search the threshold on them."""
        self.score_masks(batch, self._averaged(batch["image"], self.evaluation_views()))

    def finish(self, subset: str) -> None:
        """Set `predictions` of a subset (val or test), and log `<subset>/<metric>`."""
        self.predictions, metrics = self.finish_masks(subset)
        self.report(subset, {"loss": self.predictions.loss, **metrics}, main="jaccard")
