"""Lightning settings and plugins of all verbs."""

from __future__ import annotations

import logging
import signal
import threading
import warnings

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins import LayerSync
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn

# Warnings of Lightning about choices that are intended here.
_INTENDED = (
    "The '.*' does not have many workers",  # the store is memory-mapped, so batches are not decoded
    "The number of training batches",  # small data sets log once per epoch
    "You're using the WeightAveraging callback",  # tests use the averaged weights
    "It is recommended to use `self.log",  # every rank computes metrics from the same gathered table
    "Found .* module\\(s\\) in eval mode at the start of training",  # frozen BatchNorm
    "Checkpoint directory .* exists and is not empty",  # a resumed run
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # inside Lightning
)


def quiet_lightning() -> None:
    """Hide tips of Lightning and warnings about intended choices."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its only information is which rank exited with an error.
    logging.getLogger("lightning_fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    for message in _INTENDED:
        warnings.filterwarnings("ignore", message=message)


class OwnSignals(Callback):
    """Restore the SIGTERM handler of before the Trainer.

    Lightning's handler calls a collective operation, which waits until the time-out if other ranks do not call it.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def _restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    on_train_start = on_validation_start = on_test_start = _restore


class SyncBatchNorm(LayerSync):
    """Convert BatchNorm layers of torch and timm.

    Lightning's own plugin drops the activations of timm's layers.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Convert before training. Parameters, buffers and their names stay."""
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Keep the converted layers, which evaluate as the original ones do."""
        return model
