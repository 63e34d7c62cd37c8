"""Find and export the best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint


def best_checkpoint(trainer: pl.Trainer) -> Path:
    """Return the path of the best checkpoint by the monitor."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor:
            return Path(callback.best_model_path)
    raise AssertionError("build_trainer always adds a checkpoint with a monitor")


def export_best(path: Path, **changes: Any) -> int:
    """Strip a checkpoint to weights and hyper-parameters, and return its epoch (from 1).

    Args:
        path: file that is replaced. Evaluation and prediction need no more than what is kept.
        changes: hyper-parameters chosen after training, such as the threshold.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    content["hyper_parameters"].update(changes)
    kept = ("state_dict", "hyper_parameters", "hparams_name", "epoch", "global_step", "pytorch-lightning_version")
    slim = path.with_suffix(".tmp")
    torch.save({name: content[name] for name in kept if name in content}, slim)
    slim.replace(path)
    return int(content["epoch"]) + 1
