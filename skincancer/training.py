"""Builds the Trainer from the config: precision, devices, strategy, callbacks, seeding; and keeps the record of epochs."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from skincancer.errors import ConfigError
from skincancer.models.sync_batchnorm import SyncedBatchNorm
from skincancer.models.task import Task
from skincancer.schema import Experiment, TrainerConfig
from skincancer.tracking import BEST_CHECKPOINT, LAST_CHECKPOINT, Run
from skincancer.trial import TrialLink

# what Lightning says about choices that are made here on purpose
_INTENDED = (
    "The '.*' does not have many workers",  # the store is mapped: batches are gathered, not decoded
    "The number of training batches",  # small data sets: we log once an epoch
    "You're using the WeightAveraging callback",  # loading the averaged weights for test is what is wanted
    "It is recommended to use `self.log",  # every rank computes from the same gathered table
    "Found .* module\\(s\\) in eval mode at the start of training",  # frozen BatchNorm
    "Checkpoint directory .* exists and is not empty",  # a resumed run
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # inside Lightning
)


def quiet_lightning() -> None:
    """Silence Lightning's tips and the warnings about choices made here on purpose; errors and other warnings stay."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _INTENDED:
        warnings.filterwarnings("ignore", message=message)


def check_devices(trainer: TrainerConfig) -> None:
    """Check that the machine has what the experiment asks for.

    Raises:
        ConfigError: says how many devices there are.
    """
    accelerator = trainer.accelerator
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and gpus == 0 and not torch.backends.mps.is_available():
        raise ConfigError(f"trainer.accelerator is {accelerator!r}, but this machine has no GPU. Use auto or cpu.")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if on_gpu and str(trainer.devices).isdigit() and int(trainer.devices) > gpus:
        raise ConfigError(
            f"trainer.devices is {trainer.devices}, but this machine has {gpus} GPUs. Give 1 to {gpus}, or auto."
        )
    if not on_gpu and str(trainer.devices).isdigit() and int(trainer.devices) > (os.cpu_count() or 1):
        raise ConfigError(
            f"trainer.devices is {trainer.devices}, but this machine has no GPU and {os.cpu_count()} CPU cores. "
            "Devices of a CPU are processes; give at most one a core."
        )
    if trainer.precision == "16-mixed" and not on_gpu:
        raise ConfigError("trainer.precision 16-mixed needs a GPU; use bf16-mixed or 32 on a CPU.")
    if trainer.precision == "bf16-mixed" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ConfigError("trainer.precision bf16-mixed needs a GPU with bfloat16; use 16-mixed.")


class OwnSignals(Callback):
    """Puts the SIGTERM handler back that was there before the Trainer.

    Lightning's calls a collective inside the handler, which waits for ever when ranks are elsewhere. `Ranks` ends them instead.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def _restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    on_train_start = on_validation_start = on_test_start = _restore


class EpochRecord(Callback):
    """Keeps a row an epoch, for `epochs.csv` and MLflow; it is part of the resume point.

    A row: epoch (from 1), train/loss (mean over images), val/loss, val/<metric>, lr, epoch_seconds, images_per_second (training
    alone), optimizer_steps and images_seen (both since the run's start).
    """

    def __init__(self, run: Run | None) -> None:
        self.run = run
        self.rows: list[dict[str, float]] = []
        self.images_seen = 0

    def state_dict(self) -> dict[str, Any]:
        """Return rows and counts, as primitives."""
        return {"rows": self.rows, "images_seen": self.images_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a resume point."""
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
        """Add up the loss on the device; log the step's loss every few steps."""
        count = len(batch["index"])
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches
        self._loss = self._loss + loss * count
        self._images += count
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by its logger connector
        if self.run is not None and (batch_idx + 1) % every == 0:
            self.run.log_metrics({"train/loss_step": float(loss)}, step=trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note when training paused."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long validation took."""
        if trainer.state.fn == "fit":
            self._validation += time.perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row."""
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
            self.table().to_csv(self.run.folder / "epochs.csv", index=False)

    def table(self) -> pd.DataFrame:
        """Return the rows so far."""
        return pd.DataFrame(self.rows)


class ReportToSweep(Callback):
    """Reports the monitored value of each epoch to the sweep that the run is a trial of, and stops where that wants no more."""

    def __init__(self, trial: TrialLink, monitor: str) -> None:
        self.trial, self.monitor = trial, monitor

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report; the epoch's validation has been."""
        epoch = trainer.current_epoch + 1
        value = float(trainer.callback_metrics[self.monitor])
        if self.trial.report(epoch, value, last=trainer.should_stop or epoch == trainer.max_epochs):
            trainer.should_stop = True


def averaging_note(decay: float, steps: int) -> str:
    """Say that averaged weights reach back over most of a run of `steps` optimiser steps; "" where they do not."""
    window = round(1 / (1 - decay))
    if not decay or 2 * window <= steps:
        return ""
    return (
        f"training.ema_decay {decay} averages over about {window} steps, but the run has {steps}: its result is mostly its "
        f"beginning. Use at most {max(0.0, 1 - 2 / steps):.3g}, or 0."
    )


def monitor_mode(monitor: str) -> str:
    """Return `min` for losses, calibration error and distances, `max` for every other metric."""
    return "min" if monitor in ("val/loss", "val/ece", "val/hd95", "val/mask_hd95") else "max"


def build_trainer(experiment: Experiment, folder: Path, records: Sequence[Callback], progress_bar: bool) -> pl.Trainer:
    """Build the Trainer.

    Args:
        experiment: resolved.
        folder: the run's own folder, where both checkpoints lie.
        records: keep the rows of epochs, and report them.
        progress_bar: show one.
    """
    monitor = experiment.training.monitor
    ema = experiment.training.ema_decay
    callbacks: list[Callback] = [
        OwnSignals(),
        *records,
        # with averaged weights Lightning swaps them in only in a whole checkpoint; `export_best` makes it slim
        ModelCheckpoint(
            folder / Path(BEST_CHECKPOINT).parent, filename=Path(BEST_CHECKPOINT).stem, monitor=monitor,
            mode=monitor_mode(monitor), save_weights_only=not ema, enable_version_counter=False,
        ),
        # resume points are ends of epochs: one inside an epoch would show its first samples again
        ModelCheckpoint(
            folder / Path(LAST_CHECKPOINT).parent, filename=Path(LAST_CHECKPOINT).stem, monitor=None,
            save_on_train_epoch_end=True, enable_version_counter=False,
        ),
    ]  # fmt: skip
    if experiment.training.patience:
        callbacks.append(EarlyStopping(monitor, patience=experiment.training.patience, mode=monitor_mode(monitor)))
    if ema:
        # EMAWeightAveraging goes tensor by tensor, which halves the speed of a small model on a GPU
        callbacks.append(WeightAveraging(use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(ema)))
    if progress_bar:
        callbacks.append(_progress_bars())
    options = asdict(experiment.trainer)
    if options["accumulate_grad_batches"] == 1 and options["gradient_clip_val"] is None:
        options.pop("gradient_clip_algorithm")
    if str(options["devices"]).isdigit():
        options["devices"] = int(options["devices"])
    plugins = SyncedBatchNorm() if options.pop("sync_batchnorm") else None
    return pl.Trainer(
        **options, callbacks=callbacks, plugins=plugins, logger=False, default_root_dir=folder, enable_progress_bar=progress_bar,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip


def _progress_bars() -> Callback:
    from pytorch_lightning.callbacks import RichProgressBar

    class Bars(RichProgressBar):
        """Counts epochs from 1, as every table does."""

        def _get_train_description(self, current_epoch: int) -> str:
            return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    return Bars(leave=False)


def best_checkpoint(trainer: pl.Trainer) -> Path:
    """Return the best checkpoint by the monitor."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor:
            return Path(callback.best_model_path)
    raise AssertionError("build_trainer always makes one")


def export_best(path: Path, **changes: Any) -> int:
    """Strip a checkpoint to weights and hyper-parameters, all that evaluate and predict need, in place; return its epoch (from 1).

    Args:
        path: the checkpoint.
        changes: hyper-parameters that were found after training, such as the threshold.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    content["hyper_parameters"].update(changes)
    kept = ("state_dict", "hyper_parameters", "hparams_name", "epoch", "global_step", "pytorch-lightning_version")
    slim = path.with_suffix(".tmp")
    torch.save({name: content[name] for name in kept if name in content}, slim)
    slim.replace(path)
    return int(content["epoch"]) + 1
