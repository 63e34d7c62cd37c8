"""What tasks with masks share: the loss over images with a mask, scores at the original size, and the search of the threshold."""

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
from skincancer.models.decoders import Padded, Segmenter
from skincancer.models.losses import mask_loss
from skincancer.models.maskrcnn import InstanceSegmenter
from skincancer.models.segmenters import build_segmenter, encoder_normalisation
from skincancer.models.tasks.base import VIEWS, Batch, Normalise, Task, View, turn, turn_back
from skincancer.schema import TASKS


@dataclass(frozen=True)
class MaskPredictions:
    """How well a model's masks fit those of a part: sorted by index, one row an image.

    `index` int64 (N,), rows of the index table; `table` a column a metric of `MASK_METRICS`, NaN in images without a mask; `loss`
    the mask loss over the images with one.
    """

    index: np.ndarray
    table: pd.DataFrame
    loss: float


class Segmenting(Task):
    """A task whose model gives logits of masks; a subclass builds a segmenter and calls `configure_segmenter`.

    The validation of each epoch scores masks at the network's size, cut at 0.5; every other evaluation scores them as `scorer`
    says: at the original size, cut at `threshold`. Images without a mask are not scored.
    """

    segmenter: Padded
    threshold: float

    def __init__(self) -> None:
        super().__init__()
        self.scorer: MaskScorer | None = None
        self.search: ThresholdSearch | None = None
        self._scores: list[tuple[Tensor, Tensor, Tensor]] = []

    def configure_segmenter(
        self, segmenter: Padded, backbone: str, freeze: str, threshold: float | None, channels_last: bool
    ) -> None:
        """Take a built segmenter: normalise for its encoder, build the mask loss, hold the whole encoder still where `freeze` is all.

        Args:
            segmenter: with its first weights.
            backbone: name of its encoder.
            freeze: none or all.
            threshold: a pixel is lesion above this probability; None for 0.5 until `threshold` is set.
            channels_last: NHWC memory format.
        """
        self.normalise = Normalise(*encoder_normalisation(backbone))
        self.segmenter = segmenter
        if channels_last:
            self.to(memory_format=torch.channels_last)
        options = self.hparams["loss"]
        self.mask_loss = mask_loss(options["masks"], options)
        learned = {id(parameter) for parameter in segmenter.encoder.parameters()}
        frozen = {name for name, parameter in self.named_parameters() if id(parameter) in learned}
        self.set_frozen(frozen if freeze == "all" else set())
        self.threshold = 0.5 if threshold is None else threshold

    def score_masks(self, batch: Batch, logits: Tensor) -> None:
        """Score the masks of a batch, or search the threshold on them.

        Args:
            batch: its `mask` is the truth in the validation of an epoch, later the file that `scorer` reads.
            logits: float32 (B, 1, H, W).

        Raises:
            RunError: the model gives NaN.
        """
        index = batch["index"].cpu()
        squares = logits.sigmoid()[:, 0].cpu().numpy()
        if not np.isfinite(squares).all():
            raise RunError(f"the model gives NaN after step {self.global_step}; lower --model.optimizer.lr")
        masked = torch.nonzero(batch["has_mask"].cpu())[:, 0].tolist()
        rows = index.tolist()
        if self.search is not None:
            assert self.scorer is not None, "whoever searches sets it"
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
                assert self.scorer is not None, "whoever evaluates sets it"
                score = self.scorer.score(rows[position], squares[position], self.threshold)
            values[position] = torch.tensor([score[name] for name in MASK_METRICS], dtype=torch.float64)
        loss = self.mask_loss(logits, batch["mask"], batch["has_mask"])
        self._scores.append((index, values, loss.detach().cpu().repeat(len(rows))))

    def on_validation_epoch_end(self) -> None:
        """Log `val/<metric>`; after a search, set the threshold instead.

        Raises:
            RunError: a search saw no image with a mask.
        """
        if self.search is None:
            self.finish("val")
            return
        if self.trainer.world_size > 1:
            others: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(others, self.search)
            self.search = ThresholdSearch.merged(others)
        if not self.search.n_images:
            raise self._without_masks("val")
        self.threshold, _ = self.search.best()
        self.search = None

    def finish_masks(self, part: str) -> tuple[MaskPredictions, dict[str, float]]:
        """Gather what was kept of a part (val or test); return it, and the means of its metrics over images with a mask.

        Raises:
            RunError: no image has a mask.
        """
        self.stop_if_not_finite()
        index, values, losses = self.gather(self._scores)
        self._scores.clear()
        masked = ~values[:, 0].isnan()
        if not masked.any():
            raise self._without_masks(part)
        table = pd.DataFrame(values.numpy(), columns=list(MASK_METRICS))
        return MaskPredictions(index.numpy(), table, float(losses[masked].mean())), mean_metrics(table)

    @staticmethod
    def _without_masks(part: str) -> RunError:
        return RunError(
            f"none of the {part} images that were evaluated has a mask; raise trainer.limit_{part}_batches."
        )


class SegmentationTask(Segmenting):
    """A segmenter, trained on masks.

    Args:
        architecture: a name of `ARCHITECTURES`.
        backbone: its encoder.
        size: image side, px.
        freeze: none, or all (the whole encoder).
        unfreeze_epoch: from when everything learns; None for never.
        loss, optimizer, schedule: the sections of the config, as dicts.
        tta: views of an image whose logits `predict` averages: none, flips or d4.
        threshold: a pixel is lesion above this probability; None for 0.5 until `threshold` is set.
        channels_last: NHWC memory format.
        seed: of the steps.
        module: a built segmenter with its weights; None builds one with random weights (a checkpoint will fill it).
    """

    kind = TASKS["segmentation"]

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

    def predict(self, image: Tensor) -> tuple[Tensor, None]:
        """Return the lesion probabilities."""
        return self._averaged(image, VIEWS[self.hparams["tta"]]).sigmoid(), None

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
