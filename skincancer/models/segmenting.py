"""What tasks with masks share: the loss over images with a mask, scores at the original size, and the search of the threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from skincancer.errors import RunError
from skincancer.evaluation.mask_scoring import MaskScorer
from skincancer.evaluation.masks import MASK_METRICS, ThresholdSearch, binarise, mask_metrics, mean_metrics
from skincancer.models.encoder_decoders import Padded
from skincancer.models.mask_losses import mask_loss
from skincancer.models.segmenters import encoder_normalisation
from skincancer.models.task import Batch, Normalise, Task


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
