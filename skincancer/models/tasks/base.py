"""What every task shares: normalising, seeded steps, frozen parts, optimiser and schedule, views, the guard against NaN.

Random steps: everything a step draws (dropout, stochastic depth) comes from (seed, rank, epoch, batch), so that ranks differ,
a repetition is the same, and a resumed run draws what the uninterrupted one would have drawn.
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
from skincancer.schema import TaskKind

Batch = dict[str, Any]
View = tuple[int, tuple[int, ...]]  # quarter turns, then the axes to mirror

_FLIPS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
# A dermoscope has no up and no left: all eight views are the same lesion.
VIEWS: dict[str, tuple[View, ...]] = {
    "none": ((0, ()),),
    "flips": tuple((0, axes) for axes in _FLIPS),
    "d4": tuple((turns, axes) for turns in (0, 1) for axes in _FLIPS),
}


def turn(image: Tensor, view: View) -> Tensor:
    """Return images (B, C, H, W) as a view shows them; W and H change places with a quarter turn."""
    turns, axes = view
    return image.rot90(turns, (2, 3)).flip(axes) if turns else image.flip(axes) if axes else image


def turn_back(image: Tensor, view: View) -> Tensor:
    """Undo `turn`."""
    turns, axes = view
    return image.flip(axes).rot90(-turns, (2, 3)) if turns else image.flip(axes) if axes else image


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


class Task(pl.LightningModule, ABC):
    """Base of all tasks: optimiser and schedule, frozen parts, seeded steps, and the guard against a loss that is not finite.

    A subclass builds its layers in `__init__`, keeps what `freeze` holds still in `frozen` (names of its parameters), keeps what it
    finds on a batch of validation or test (`evaluate`), and makes `predictions` and metrics of it at the part's end (`finish`).

    Attributes:
        kind: what the model predicts.
        classes: names in the order of the labels; none without class probabilities.
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
            Lesion probabilities (B, 1, H, W) and class logits (B, C); None for what the task does not have.
        """

    @abstractmethod
    def evaluate(self, batch: Batch) -> None:
        """Keep what the model says of a batch."""

    @abstractmethod
    def finish(self, part: str) -> None:
        """Gather what was kept of a part (val or test), set `predictions`, log `<part>/<metric>`."""

    @property
    def in_fit(self) -> bool:
        """Whether an evaluation is the validation of an epoch, which only ranks epochs."""
        return bool(self.trainer.state.fn == "fit")

    def evaluation_views(self) -> tuple[View, ...]:
        """Return the views that an evaluation averages: those of `tta`, in the validation of an epoch one, at an eighth of the time."""
        return VIEWS["none" if self.in_fit else self.hparams["tta"]]

    def report(self, part: str, values: Mapping[str, float], shown: str) -> None:
        """Log `<part>/<name>`; of the validation the one `shown` also stands in the progress bar."""
        for name, value in values.items():
            self.log(f"{part}/{name}", value, prog_bar=part == "val" and name == shown)

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

    def gather(self, parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Join the tensors of all batches and all ranks, sorted by the first, the index of the image.

        Every rank gets the same and computes the same numbers from it: no reduction, no padding, no duplicates.

        Args:
            parts: a tuple of tensors a batch, each with a row an image.
        """
        joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        if self.trainer.world_size > 1:
            gathered: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(gathered, joined)
            joined = [torch.cat(tensors) for tensors in zip(*gathered, strict=True)]
        order = torch.argsort(joined[0])
        return [tensor[order] for tensor in joined]

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
