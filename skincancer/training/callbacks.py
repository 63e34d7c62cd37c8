"""Lightning callbacks of a fit."""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, RichProgressBar

from skincancer.errors import RunError
from skincancer.models.tasks.base import Task
from skincancer.runs.artifacts import EPOCHS_FILE
from skincancer.runs.lifecycle import RunWriter


class EpochReporter(Protocol):
    """Receiver of the progress of a fit, such as the sweep of a trial.

    Attributes:
        number: number of the trial, from 0.
        pruned: whether the receiver asked to stop.
    """

    number: int
    pruned: bool

    def tags(self) -> dict[str, str]:
        """Return MLflow tags of the run."""

    def log_params(self) -> dict[str, Any]:
        """Return MLflow params of the run."""

    def report(self, epoch: int, value: float, last: bool) -> bool:
        """Receive the monitored value of an epoch (from 1). Return whether to stop."""

    def ended(self, objective: float | None) -> None:
        """Receive the objective. None means that the trial was pruned."""


class EpochRecord(Callback):
    """Record of one row per epoch, for `epochs.csv` and MLflow.

    Columns: epoch (from 1), train/loss (mean over images), val/loss, val/<metric>, lr, epoch_seconds, images_per_second (of training
    without validation), optimizer_steps and images_seen (both since the start of the run). Checkpoints contain the rows.

    Args:
        run: the run. None on ranks above 0.
        monitor: metric that selects the best epoch.
    """

    def __init__(self, run: RunWriter | None, monitor: str) -> None:
        self.run, self.monitor = run, monitor
        self.rows: list[dict[str, float]] = []
        self.images_seen = 0

    def state_dict(self) -> dict[str, Any]:
        """Return rows and counts, for the checkpoint."""
        return {"rows": self.rows, "images_seen": self.images_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore rows and counts from a checkpoint."""
        self.rows, self.images_seen = list(state_dict["rows"]), int(state_dict["images_seen"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()
        self._validation = 0.0
        self._loss: torch.Tensor | float = 0.0
        self._images = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the loss on the device, and log it every few steps."""
        count = len(batch["index"])
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._loss = self._loss + loss * count
        self._images += count
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
        if self.run is not None and (batch_idx + 1) % every == 0:
            self.run.log_metrics({"train/loss_step": float(loss)}, step=trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record when training paused."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record how long validation took."""
        if trainer.state.fn == "fit":
            self._validation += time.perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the row of the epoch.

        Raises:
            RunError: the monitored metric has been NaN in every epoch, so no epoch is the best.
        """
        assert isinstance(pl_module, Task)
        pl_module.stop_if_not_finite()
        total, images = float(self._loss), self._images
        if trainer.world_size > 1:
            sums = torch.tensor([total, images], dtype=torch.float64, device=pl_module.device)
            torch.distributed.all_reduce(sums)
            total, images = float(sums[0]), int(sums[1])
        self.images_seen += images
        seconds = time.perf_counter() - self._start
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        row = {
            "epoch": trainer.current_epoch + 1,
            "train/loss": total / images,
            **values,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "epoch_seconds": seconds,
            "images_per_second": images / max(seconds - self._validation, 1e-9),
            "optimizer_steps": trainer.global_step,
            "images_seen": self.images_seen,
        }
        self.rows.append(row)
        if self.run is not None:
            self.run.log_metrics(
                {name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"])
            )
            self.table().to_csv(self.run.folder / EPOCHS_FILE, index=False)
        # The checkpoint callback takes NaN for the worst value, and would keep the first of such epochs.
        monitored = [row[self.monitor] for row in self.rows if self.monitor in row]
        if monitored and all(map(math.isnan, monitored)):
            raise RunError(
                f"training.monitor is {self.monitor}, which is NaN after epoch {row['epoch']}: the metric is undefined for these "
                "validation images, so no epoch can be selected. Use another --training.monitor."
            )

    def table(self) -> pd.DataFrame:
        """Return the rows so far."""
        return pd.DataFrame(self.rows)


class ReportToSweep(Callback):
    """Report the monitored value of each epoch to the sweep."""

    def __init__(self, trial: EpochReporter, monitor: str) -> None:
        self.trial, self.monitor = trial, monitor

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the value of the epoch, after its validation."""
        epoch = trainer.current_epoch + 1
        value = float(trainer.callback_metrics[self.monitor])
        if self.trial.report(epoch, value, last=trainer.should_stop or epoch == trainer.max_epochs):
            trainer.should_stop = True


def describe_averaging(decay: float, steps: int) -> str:
    """Return a warning if weights are averaged over most of a run, else ""."""
    window = round(1 / (1 - decay))
    if not decay or 2 * window <= steps:
        return ""
    longest = steps // 2
    # Two digits of 1 - decay, rounded up, so that the suggested decay is accepted.
    digits = len(str(longest)) + 1
    suggested = math.floor((1 - 1 / longest) * 10**digits) / 10**digits if longest else 0.0
    remedy = f"Use at most {suggested}, or 0." if suggested else "Use 0."
    return (
        f"training.ema_decay is {decay} and averages over about {window} steps, but the run has {steps}: its result consists mostly "
        f"of early weights. {remedy}"
    )


class EpochBars(RichProgressBar):
    """Progress bars that count epochs from 1, as every table does."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"
