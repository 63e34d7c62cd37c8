"""Sections `training`, `trainer` and `tracking` of an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skincancer.schema.rules import BATCHES, NETWORK, key


@dataclass(frozen=True)
class TrainingConfig:
    """Selection of the best epoch, and early stopping.

    Args:
        monitor: metric that selects the best checkpoint: val/<metric> (maximised; hd95 and ece minimised) or val/loss (minimised); auto
            is val/balanced_accuracy, or val/jaccard for segmentation; mask metrics of the joint task are val/mask_<metric>
        patience: epochs without improvement of the monitor before stopping early; 0 never stops early
        ema_decay: decay per step of averaged weights, which are then validated and saved; averages about 1/(1-decay) steps; 0: none
    """

    monitor: str = "auto"
    patience: int = key(0, "0 or more, at most a million", NETWORK)
    ema_decay: float = key(0.0, "0 or more and below 1", NETWORK)


@dataclass(frozen=True)
class TrainerConfig:
    """Arguments of Lightning's Trainer, under the same names.

    Args:
        max_epochs: number of epochs
        accelerator: auto, cpu, gpu, cuda or mps
        devices: number of processes per machine, one per GPU (or CPU core); "auto" for all GPUs
        num_nodes: number of machines
        strategy: auto, ddp, or ddp_find_unused_parameters_true (for networks with unused layers in a step); several devices always
            use ddp
        precision: 32, bf16-mixed or 16-mixed
        accumulate_grad_batches: batches per optimiser step
        gradient_clip_val: largest norm (or value) of the gradient
        gradient_clip_algorithm: norm or value
        limit_train_batches: batches (int) or fraction (float) of an epoch
        limit_val_batches: batches (int) or fraction (float) of the validation set
        limit_test_batches: batches (int) or fraction (float) of the test set
        deterministic: use only deterministic algorithms
        benchmark: let cuDNN search for the fastest kernels
        sync_batchnorm: compute BatchNorm statistics over the batches of all devices instead of each device
        log_every_n_steps: steps between two values of train/loss_step, and between two checks of the loss for NaN
    """

    max_epochs: int = key(20, "1 or more, at most a million", NETWORK)
    accelerator: str = "auto"
    devices: int | str = key(1, "auto, or 1 or more")
    num_nodes: int = key(1, "1 or more, at most a million")
    strategy: str = key("auto", only_with=NETWORK)
    precision: int | str = key("32", only_with=NETWORK)
    accumulate_grad_batches: int = key(1, "1 or more, at most a million", NETWORK)
    gradient_clip_val: float | None = key(None, "above 0, and finite", NETWORK)
    gradient_clip_algorithm: Literal["norm", "value"] = key("norm", only_with=NETWORK)
    limit_train_batches: int | float = key(1.0, BATCHES, NETWORK)
    limit_val_batches: int | float = key(1.0, BATCHES, NETWORK)
    limit_test_batches: int | float = key(1.0, BATCHES, NETWORK)
    deterministic: bool = key(False, only_with=NETWORK)
    benchmark: bool = key(False, only_with=NETWORK)
    sync_batchnorm: bool = key(False, only_with=NETWORK)
    log_every_n_steps: int = key(50, "1 or more, at most a million", NETWORK)


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow tracking of the run.

    Args:
        uri: MLflow tracking URI; default $MLFLOW_TRACKING_URI, then mlruns/mlflow.db of the project
        system_metrics: log CPU, GPU and memory use
    """

    uri: str | None = None
    system_metrics: bool = True
