"""What is trained: LightningModules, from images (B, 3, H, W) in [0, 1] to logits.

Random steps: everything a step draws (dropout, stochastic depth) comes from (seed, rank, epoch, batch), so that ranks differ,
a repetition is the same, and a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from skincancer.data.randomness import MODEL_STREAM, step_seed
from skincancer.errors import RunError
from skincancer.evaluation.metrics import classification_metrics
from skincancer.models.backbones import build_backbone, count_features, frozen_parameters, normalisation
from skincancer.models.losses import LOSSES
from skincancer.models.optimizers import OPTIMIZERS, SCHEDULES

Batch = dict[str, Any]


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


class Normalise(nn.Module):
    """First layer of a model: RGB in [0, 1] to the scale of its weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to the same shape."""
        return (image - self.mean) / self.std


class Task(pl.LightningModule):
    """Base of all tasks: optimiser and schedule, frozen parts, seeded steps, and the guard against a loss that is not finite.

    A subclass builds its layers in `__init__`, keeps what `freeze` holds still in `frozen` (names of its parameters), and logs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frozen: set[str] = set()
        self._bad_step: Tensor | None = None

    def set_frozen(self, names: set[str]) -> None:
        """Hold the parameters `names` still, and the statistics of BatchNorm layers that consist of them."""
        self.frozen = names
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in names)
        self.train(self.training)

    def train(self, mode: bool = True) -> Task:
        """Set training mode; frozen BatchNorm layers stay in evaluation mode."""
        super().train(mode)
        if mode and self.frozen:
            for prefix, module in self.named_modules():
                own = {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
                if isinstance(module, _BatchNorm) and own and own <= self.frozen:
                    module.train(False)
        return self

    def on_train_epoch_start(self) -> None:
        """Unfreeze when its epoch has come, also on resume."""
        unfreeze_epoch = self.hparams["unfreeze_epoch"]
        if self.frozen and unfreeze_epoch is not None and self.current_epoch >= unfreeze_epoch:
            self.set_frozen(set())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what the step will draw."""
        epoch, number = batch["draw"]
        torch.manual_seed(step_seed(self.hparams["seed"], MODEL_STREAM, self.global_rank, epoch, number))

    def guard(self, loss: Tensor) -> Tensor:
        """Remember, without waiting for the device, the first step whose loss was not finite; look every few steps."""
        finite = torch.isfinite(loss.detach())
        if self._bad_step is None or self._bad_step.device != loss.device:
            self._bad_step = torch.full((), -1, device=loss.device)
        step = torch.where(finite, -1, self.global_step)
        self._bad_step = torch.where(self._bad_step >= 0, self._bad_step, step)
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by its logger connector
            self.stop_if_not_finite()
        return loss

    def stop_if_not_finite(self) -> None:
        """Stop the run if a loss was NaN or infinite.

        Raises:
            RunError: names the step and what to try.
        """
        bad = -1 if self._bad_step is None else int(self._bad_step)
        if bad >= 0:
            raise RunError(
                f"the training loss was NaN or infinite at optimiser step {bad} (epoch {self.current_epoch + 1}). Lower "
                "--model.optimizer.lr, set --trainer.gradient_clip_val 1, or use --trainer.precision 32."
            )

    def configure_optimizers(self) -> Any:
        """Build optimiser and schedule by name; the schedule moves once an optimiser step."""
        learn_later = self.hparams["unfreeze_epoch"] is not None
        parameters = [p for p in self.parameters() if p.requires_grad or learn_later]
        options = self.hparams["optimizer"]
        optimizer = OPTIMIZERS[options["name"]](parameters, options)
        schedule = self.hparams["schedule"]
        steps, epochs = int(self.trainer.estimated_stepping_batches), int(self.trainer.max_epochs or 1)
        scheduler = SCHEDULES[schedule["name"]](optimizer, schedule, steps, epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def views(image: Tensor, tta: str) -> Iterator[Tensor]:
    """Yield images (B, 3, H, W) as they are; for `flips` also mirrored in x, y and both; for `d4` those and their quarter turns.

    A dermoscope has no up and no left: all eight are the same lesion.
    """
    for turned in (image, image.rot90(1, (2, 3))) if tta == "d4" else (image,):
        yield turned
        if tta != "none":
            yield turned.flip(3)
            yield turned.flip(2)
            yield turned.flip((2, 3))


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
        return torch.stack([self(view) for view in views(image, self.hparams["tta"])]).mean(0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return self.guard(self.loss(self(batch["image"]), batch["label"], self.class_weights))

    def _evaluate(self, batch: Batch) -> None:
        # the validation of each epoch only ranks epochs: one view does, at an eighth of the time
        predict = self if self.trainer.state.fn == "fit" else self.predict_logits
        logits = predict(batch["image"]).float()
        self._evaluated.append((batch["index"].cpu(), batch["label"].cpu(), logits.cpu()))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of a batch."""
        self._evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the logits of a batch."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Compute `val/<metric>` from the gathered table."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Compute `test/<metric>` from the gathered table."""
        self._finish("test")

    def _finish(self, part: str) -> None:
        self.stop_if_not_finite()  # a loss that was not finite is told with its own step, before its consequences
        # every rank gathers the same table and computes the same numbers: no reduction, no padding, no duplicates
        parts = [torch.cat(tensors) for tensors in zip(*self._evaluated, strict=True)]
        self._evaluated.clear()
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, parts)
            parts = [torch.cat(tensors) for tensors in zip(*gathered, strict=True)]
        order = torch.argsort(parts[0])
        index, label, logits = (tensor[order] for tensor in parts)
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
