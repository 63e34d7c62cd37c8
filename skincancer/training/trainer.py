"""Train a model and predict its validation and test images."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, WeightAveraging
from pytorch_lightning.strategies import DDPStrategy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from skincancer.data.datamodule import LesionDataModule
from skincancer.data.prepare import PreparedData
from skincancer.errors import ConfigError
from skincancer.inference.classical_model import predict_subset
from skincancer.metrics.names import monitor_mode
from skincancer.metrics.segmentation import ThresholdSearch
from skincancer.models.factory import build_scorer, build_task
from skincancer.models.lightning import OwnSignals, SyncBatchNorm
from skincancer.models.tasks.segmentation import Segmenting
from skincancer.plugins import CALLBACKS, describe_error
from skincancer.runs.artifacts import BEST_CHECKPOINT, LAST_CHECKPOINT
from skincancer.runs.finished import weights_file
from skincancer.runs.lifecycle import has_checkpoint
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.schema.training import TrainerConfig
from skincancer.system.console import is_live, progress_bars, warn
from skincancer.training.callbacks import EpochBars, EpochRecord, ReportToSweep, describe_averaging
from skincancer.training.checkpoints import best_checkpoint, export_best
from skincancer.training.classical import compute_inputs, fit_classifier
from skincancer.training.distributed import Ranks
from skincancer.training.launch import count_ranks
from skincancer.training.recorder import FitRecorder

# The other ranks wait for rank 0, and MLflow's client retries for 12 minutes while its server is unreachable.
RANK_TIMEOUT = timedelta(minutes=15)


def check_devices(trainer: TrainerConfig) -> None:
    """Check that the machine has the requested devices, and that they support the settings.

    Raises:
        ConfigError: a device is missing, or a setting is not supported.
    """
    accelerator, devices = trainer.accelerator, str(trainer.devices)
    gpus, cores = torch.cuda.device_count(), os.cpu_count() or 1
    if accelerator in ("gpu", "cuda") and gpus == 0 and not torch.backends.mps.is_available():
        raise ConfigError(f"trainer.accelerator is {accelerator!r}, but this machine has no GPU. Use auto or cpu.")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    if on_gpu and devices.isdigit() and int(devices) > gpus:
        raise ConfigError(f"trainer.devices is {devices}, but this machine has {gpus} GPUs. Use 1 to {gpus}, or auto.")
    if not on_gpu and devices.isdigit() and int(devices) > cores:
        raise ConfigError(
            f"trainer.devices is {devices}, but this machine has no GPU and {cores} CPU cores. Each device of a CPU is a process. "
            f"Use at most {cores}."
        )
    if trainer.sync_batchnorm and not on_gpu and count_ranks(trainer) > 1:
        raise ConfigError("trainer.sync_batchnorm is true, which needs GPUs. Use --trainer.sync_batchnorm false.")
    if trainer.precision == "16-mixed" and not on_gpu:
        raise ConfigError("trainer.precision is 16-mixed, which needs a GPU. Use bf16-mixed or 32 on a CPU.")
    if trainer.precision == "bf16-mixed" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ConfigError("trainer.precision is bf16-mixed, which needs a GPU with bfloat16. Use 16-mixed.")


def plugin_callbacks() -> list[Callback]:
    """Create the callbacks of plugins.

    Raises:
        ConfigError: a plugin's function fails, or returns another type.
    """
    callbacks = {}
    for name, make in CALLBACKS.items():
        try:
            callbacks[name] = callback = make()
        except Exception as error:
            raise ConfigError(
                f"the callback {name} cannot be created: {describe_error(error)}. Fix the plugin."
            ) from error
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"the callback {name} is {type(callback).__name__}; expected pytorch_lightning.Callback. Fix the plugin."
            )
    return list(callbacks.values())


def build_trainer(experiment: Experiment, folder: Path, others: Sequence[Callback], progress_bar: bool) -> pl.Trainer:
    """Build the Trainer.

    Args:
        experiment: the experiment.
        folder: working folder of the run, which receives both checkpoints.
        others: callbacks that record and report the epochs, and those of plugins.
        progress_bar: whether to show a progress bar.
    """
    monitor = experiment.training.monitor
    ema = experiment.training.ema_decay
    callbacks: list[Callback] = [
        OwnSignals(),
        *others,
        # Lightning writes averaged weights only to whole checkpoints. `export_best` removes the rest.
        ModelCheckpoint(
            folder / Path(BEST_CHECKPOINT).parent, filename=Path(BEST_CHECKPOINT).stem, monitor=monitor,
            mode=monitor_mode(monitor), save_weights_only=not ema, enable_version_counter=False,
        ),
        # Runs resume at the end of an epoch: resuming inside an epoch would repeat its first samples.
        ModelCheckpoint(
            folder / Path(LAST_CHECKPOINT).parent, filename=Path(LAST_CHECKPOINT).stem, monitor=None,
            save_on_train_epoch_end=True, enable_version_counter=False,
        ),
    ]  # fmt: skip
    if experiment.training.patience:
        callbacks.append(EarlyStopping(monitor, patience=experiment.training.patience, mode=monitor_mode(monitor)))
    if ema:
        # EMAWeightAveraging updates one tensor at a time, which halves the speed of a small model on a GPU.
        callbacks.append(WeightAveraging(use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(ema)))
    if progress_bar:
        callbacks.append(EpochBars(leave=False))
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


def fit_network(
    experiment: Experiment, data: PreparedData, recorder: FitRecorder, store: RunStore, resume: str | None, tags: Mapping[str, str],
    callbacks: Sequence[Callback],
) -> None:  # fmt: skip
    """Train a network, or resume the run `resume`, and test the best checkpoint.

    `callbacks` are those of plugins, created before the data were prepared.
    """
    trial = recorder.trial
    resumes = has_checkpoint(store.client, resume)
    with weights_file("none" if resumes else experiment.model.weights, store) as checkpoint:
        task, loaded = build_task(experiment, data, resumes, checkpoint)
    if not resumes:
        recorder.print_weights(loaded)
    with recorder.start(loaded.source, resume) as run:
        if run:
            run.set_tags(tags)
        datamodule = build_datamodule(experiment, data)
        record = EpochRecord(run, experiment.training.monitor)
        reports = [ReportToSweep(trial, experiment.training.monitor)] if trial else []
        others = [record, *reports, *callbacks]
        trainer = build_trainer(experiment, recorder.folder, others, progress_bar=is_live(recorder.console))
        if run:
            _check_averaging(experiment, datamodule, recorder)
        last = recorder.folder / LAST_CHECKPOINT
        with Ranks(trainer, run, store.client):
            trainer.fit(task, datamodule, ckpt_path=last if last.is_file() else None, weights_only=True)
            if trial and trial.pruned:
                recorder.finish_trial(run, record)
                return
            best = best_checkpoint(trainer)
            best_epoch = export_best(best) if trainer.is_global_zero else 0
            trainer.strategy.barrier()
            which: dict[str, Any] = dict(datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False)
            if isinstance(task, Segmenting):
                choose_threshold(experiment, data, task, trainer, which)
            for role, evaluate in (("val", trainer.validate), ("test", trainer.test))[: 1 if trial else 2]:
                evaluate(task, **which)
                assert task.predictions is not None
                recorder.save_predictions(role, task.predictions)
        if trial:
            recorder.finish_trial(run, record, best_epoch)
        else:
            recorder.finish(run, record, best_epoch, task)


def build_datamodule(experiment: Experiment, data: PreparedData) -> LesionDataModule:
    """Build the data module with the balance and the augmentation of the experiment."""
    settings = experiment.data
    return LesionDataModule(
        data, batch_size=settings.batch_size, balance=settings.balance, balance_fixed=settings.balance_fixed,
        augment=experiment.augment, seed=experiment.seed, workers=settings.workers,
    )  # fmt: skip


def _check_averaging(experiment: Experiment, datamodule: LesionDataModule, recorder: FitRecorder) -> None:
    batch_size = experiment.data.batch_size * count_ranks(experiment.trainer)
    batches = -(-datamodule.train_sampler().images // batch_size)
    steps = batches * experiment.trainer.max_epochs // experiment.trainer.accumulate_grad_batches
    if note := describe_averaging(experiment.training.ema_decay, steps):
        warn(recorder.console, "averaged weights", note)


def choose_threshold(
    experiment: Experiment, data: PreparedData, task: Segmenting, trainer: pl.Trainer, which: Mapping[str, Any]
) -> None:
    """Add the scorer of masks, and choose an `auto` threshold on the validation images.

    Args:
        experiment: the experiment.
        data: its images.
        task: receives the scorer, for masks at their original size, and the threshold.
        trainer: trainer of the task.
        which: arguments of `trainer.validate`. The checkpoint at `ckpt_path` receives the threshold.
    """
    task.scorer = build_scorer(data, experiment)
    if experiment.model.mask.threshold == "auto":
        task.search = ThresholdSearch()
        trainer.validate(task, **which)
        if trainer.is_global_zero:
            export_best(which["ckpt_path"], threshold=task.threshold)
        trainer.strategy.barrier()


def fit_classical(
    experiment: Experiment, data: PreparedData, recorder: FitRecorder, store: RunStore, tags: Mapping[str, str]
) -> None:
    """Fit a classical classifier and test it."""
    with progress_bars(recorder.console) as bars, weights_file(experiment.model.weights, store) as checkpoint:
        inputs = compute_inputs(experiment, data, bars, checkpoint)
    recorder.print_features(inputs)
    with recorder.start(inputs.source) as run:
        assert run is not None, "classical classifiers are fitted by one process"
        run.set_tags(tags)
        model = fit_classifier(experiment, data, inputs, recorder.folder)
        for role in ("val",) if recorder.trial else ("val", "test"):
            recorder.save_predictions(role, predict_subset(model, data, inputs.features, role))
        if recorder.trial:
            recorder.finish_trial(run, None)
        else:
            recorder.finish(run, None, 0, model)
