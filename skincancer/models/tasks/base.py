"""Base class of tasks: normalisation, seeds, freezing, optimiser, test-time augmentation, NaN check.

All random numbers of a step (dropout, stochastic depth) depend on (seed, rank, epoch, batch). Ranks therefore differ, runs are
reproducible, and a resumed run samples the same numbers as an uninterrupted run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from skincancer.data.seeding import MODEL_STREAM, step_seed
from skincancer.errors import RunError
from skincancer.models.optimizers import OPTIMIZERS, SCHEDULES
from skincancer.schema.tasks import TaskKind

Batch = dict[str, Any]
# Quarter turns, then the axes to mirror.
View = tuple[int, tuple[int, ...]]

_FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
# A dermoscope has no fixed orientation, so all eight views show the same lesion.
VIEWS: dict[str, tuple[View, ...]] = {
    "none": ((0, ()),),
    "flips": tuple((0, axes) for axes in _FLIPS),
    "d4": tuple((turns, axes) for turns in (0, 1) for axes in _FLIPS),
}


def turn(image: Tensor, view: View) -> Tensor:
    """Return a view of images (B, C, H, W)."""
    turns, axes = view
    return image.rot90(turns, (2, 3)).flip(axes) if turns else image.flip(axes) if axes else image


def turn_back(image: Tensor, view: View) -> Tensor:
    """Undo `turn`."""
    turns, axes = view
    return image.flip(axes).rot90(-turns, (2, 3)) if turns else image.flip(axes) if axes else image


class Normalise(nn.Module):
    """First layer of a model, from RGB in [0, 1] to normalised values."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Normalise images (B, 3, H, W)."""
        return (image - self.mean) / self.std


class Task(pl.LightningModule, ABC):
    """Base of all tasks.

    A subclass builds its layers in `__init__` and passes names of frozen parameters to `set_frozen`. `evaluate` stores the outputs
    of a validation or test batch, and `finish` turns them into `predictions` and metrics at the end of the epoch.

    Attributes:
        kind: outputs of the model.
        classes: names in the order of the labels; empty without class probabilities.
    """

    kind: ClassVar[TaskKind]
    classes: Sequence[str] = ()

    def __init__(self) -> None:
        super().__init__()
        self.frozen: set[str] = set()
        self._bad_step: Tensor | None = None

    @abstractmethod
    def predict(self, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Predict images, averaged over the views of `tta`.

        Args:
            image: float32 (B, 3, H, W), RGB in [0, 1].

        Returns:
            Lesion probabilities (B, 1, H, W) and class logits (B, C). None for an output that the task does not have.
        """

    @abstractmethod
    def evaluate(self, batch: Batch) -> None:
        """Store the outputs of a batch."""

    @abstractmethod
    def finish(self, subset: str) -> None:
        """Gather the outputs of a subset (val or test), set `predictions`, log `<subset>/<metric>`."""

    @property
    def in_fit(self) -> bool:
        """Whether an evaluation is the validation of an epoch, which only ranks epochs."""
        return bool(self.trainer.state.fn == "fit")

    def evaluation_views(self) -> tuple[View, ...]:
        """Return the views of `tta`, but only one in the validation of epochs."""
        return VIEWS["none" if self.in_fit else self.hparams["tta"]]

    def report(self, subset: str, values: Mapping[str, float], main: str) -> None:
        """Log `<subset>/<name>`. The progress bar also shows the validation value of `main`."""
        for name, value in values.items():
            self.log(f"{subset}/{name}", value, prog_bar=subset == "val" and name == main)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate a batch."""
        self.evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate a batch."""
        self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log `val/<metric>`."""
        self.finish("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/<metric>`."""
        self.finish("test")

    def set_frozen(self, names: set[str]) -> None:
        """Freeze parameters, and the statistics of BatchNorm layers with frozen parameters only."""
        self.frozen = names
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in names)
        self.train(self.training)

    def train(self, mode: bool = True) -> Task:
        """Set training mode, but leave frozen BatchNorm layers in evaluation mode."""
        super().train(mode)
        if mode and self.frozen:
            for prefix, module in self.named_modules():
                own = {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
                if isinstance(module, _BatchNorm) and own and own <= self.frozen:
                    module.train(False)
        return self

    def on_train_epoch_start(self) -> None:
        """Unfreeze from `unfreeze_epoch` on, also in a resumed run."""
        unfreeze_epoch = self.hparams["unfreeze_epoch"]
        if self.frozen and unfreeze_epoch is not None and self.current_epoch >= unfreeze_epoch:
            self.set_frozen(set())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random numbers of the step."""
        epoch, number = batch["draw"]
        torch.manual_seed(step_seed(self.hparams["seed"], MODEL_STREAM, self.global_rank, epoch, number))

    def guard(self, loss: Tensor) -> Tensor:
        """Record the first step with a loss that is not finite.

        The record stays on the device, and is read only every `log_every_n_steps` steps.
        """
        finite = torch.isfinite(loss.detach())
        if self._bad_step is None or self._bad_step.device != loss.device:
            self._bad_step = torch.full((), -1, device=loss.device)
        step = torch.where(finite, -1, self.global_step)
        self._bad_step = torch.where(self._bad_step >= 0, self._bad_step, step)
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by the logger connector
            self.stop_if_not_finite()
        return loss

    def stop_if_not_finite(self) -> None:
        """Stop the run if a loss was NaN or infinite.

        Raises:
            RunError: names the step and a remedy.
        """
        bad = -1 if self._bad_step is None else int(self._bad_step)
        if bad >= 0:
            raise RunError(
                f"the training loss was NaN or infinite at optimiser step {bad} (epoch {self.current_epoch + 1}). Lower "
                "--model.optimizer.lr, set --trainer.gradient_clip_val 1, or use --trainer.precision 32."
            )

    def gather(self, batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Join the tensors of all batches and all ranks, sorted by the first tensor.

        Every rank gets all images once and computes the same metrics, without reduction or padding.

        Args:
            batches: tensors of each batch, one row per image. The first is the index of the image.
        """
        joined = [torch.cat(tensors) for tensors in zip(*batches, strict=True)]
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, joined)
            joined = [torch.cat(tensors) for tensors in zip(*gathered, strict=True)]
        order = torch.argsort(joined[0])
        return [tensor[order] for tensor in joined]

    def configure_optimizers(self) -> Any:
        """Build optimiser and schedule. The schedule steps once per optimiser step."""
        unfreezes = self.hparams["unfreeze_epoch"] is not None
        parameters = [p for p in self.parameters() if p.requires_grad or unfreezes]
        options = self.hparams["optimizer"]
        optimizer = OPTIMIZERS[options["name"]](parameters, options)
        schedule = self.hparams["schedule"]
        steps, epochs = int(self.trainer.estimated_stepping_batches), int(self.trainer.max_epochs or 1)
        scheduler = SCHEDULES[schedule["name"]](optimizer, schedule, steps, epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
