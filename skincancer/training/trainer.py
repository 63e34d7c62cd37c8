"""Builds the Trainer from the config: precision, devices, strategy, callbacks, seeding; and keeps the record of epochs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from pytorch_lightning.strategies import DDPStrategy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from skincancer.errors import ConfigError
from skincancer.metrics.names import monitor_mode
from skincancer.models.lightning import OwnSignals, SyncBatchNorm
from skincancer.runs.artifacts import BEST_CHECKPOINT, LAST_CHECKPOINT
from skincancer.schema import Experiment, TrainerConfig
from skincancer.training.callbacks import lightning_bars
from skincancer.training.launch import count_ranks

# Longer than MLflow's client retries while its server is away (12 minutes): the other ranks wait for rank 0.
RANK_TIMEOUT = timedelta(minutes=15)


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
    if trainer.sync_batchnorm and not on_gpu and count_ranks(trainer) > 1:
        raise ConfigError(
            "trainer.sync_batchnorm is true, which needs GPUs. Use --trainer.sync_batchnorm false on a CPU."
        )
    if trainer.precision == "16-mixed" and not on_gpu:
        raise ConfigError("trainer.precision 16-mixed needs a GPU; use bf16-mixed or 32 on a CPU.")
    if trainer.precision == "bf16-mixed" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ConfigError("trainer.precision bf16-mixed needs a GPU with bfloat16; use 16-mixed.")


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
        callbacks.append(lightning_bars())
    options = asdict(experiment.trainer)
    if options["accumulate_grad_batches"] == 1 and options["gradient_clip_val"] is None:
        options.pop("gradient_clip_algorithm")
    if str(options["devices"]).isdigit():
        options["devices"] = int(options["devices"])
    if count_ranks(experiment.trainer) > 1:
        unused = "find_unused" in experiment.trainer.strategy
        options["strategy"] = DDPStrategy(timeout=RANK_TIMEOUT, find_unused_parameters=unused)
    plugins = SyncBatchNorm() if options.pop("sync_batchnorm") else None
    return pl.Trainer(
        **options, callbacks=callbacks, plugins=plugins, logger=False, default_root_dir=folder, enable_progress_bar=progress_bar,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
