"""Trainer settings: averaged weights, monitors, devices."""

import re

import pytest
import pytorch_lightning as pl
import torch

from skincancer.errors import ConfigError
from skincancer.metrics.names import monitor_mode
from skincancer.models.backbones import build_backbone
from skincancer.models.lightning import SyncBatchNorm
from skincancer.schema.training import TrainerConfig
from skincancer.training.callbacks import EpochBars, describe_averaging
from skincancer.training.trainer import check_devices


@pytest.mark.parametrize(
    ("decay", "steps", "warns"),
    [(0.0, 1, False), (0.998, 999, True), (0.998, 1000, False), (0.9, 20, False), (0.9, 19, True)],
)
def test_averaging_over_most_of_a_run_is_reported(decay, steps, warns):
    assert bool(describe_averaging(decay, steps)) == warns


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 19, 20, 99, 100, 999, 1001, 12345])
def test_the_suggested_decay_is_another_and_is_accepted(steps):
    warning = describe_averaging(0.99999, steps)
    suggested = float(re.search(r"Use (?:at most )?(0(?:\.\d+)?)", warning)[1])
    assert suggested < 0.99999
    assert describe_averaging(suggested, steps) == ""
    # Rounding must not lead to the refused value.
    assert "0.998," not in describe_averaging(0.998, 999)


def test_monitors_are_maximised_except_losses_calibration_error_and_distances():
    names = ("loss", "ece", "hd95", "balanced_accuracy", "auroc_macro", "jaccard")
    modes = [monitor_mode(f"val/{name}") for name in names]
    assert modes == ["min", "min", "min", "max", "max", "max"]


def test_half_precision_of_gpus_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match="16-mixed, which needs a GPU"):
        check_devices(TrainerConfig(accelerator="cpu", precision="16-mixed"))


def test_synchronised_batchnorm_of_cpu_processes_is_refused(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"trainer\.sync_batchnorm is true, which needs GPUs"):
        check_devices(TrainerConfig(accelerator="cpu", devices=2, sync_batchnorm=True))
    check_devices(TrainerConfig(accelerator="cpu", devices=1, sync_batchnorm=True))


def test_synchronised_batchnorm_keeps_activations_weights_and_their_names():
    network = build_backbone("test_efficientnet", 32)
    images = torch.randn(2, 3, 32, 32)
    names, expected = list(network.state_dict()), network.eval()(images)
    plugin = SyncBatchNorm()
    converted = plugin.revert(plugin.apply(network))
    layers = [layer for layer in converted.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    assert layers
    assert all(isinstance(layer, torch.nn.SyncBatchNorm) for layer in layers)
    assert list(converted.state_dict()) == names
    torch.testing.assert_close(converted(images), expected)


class Described(pl.LightningModule):
    """Record the descriptions of the progress bars during training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.said: list[str] = []

    def training_step(self, batch, batch_idx):
        bars = self.trainer.progress_bar_callback
        self.said.append(bars.progress.tasks[bars.train_progress_bar_id].description)
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_progress_bars_count_epochs_from_one(tmp_path):
    model = Described()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[EpochBars(leave=False)],
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader([0, 1], batch_size=2))
    assert [text.strip() for text in model.said] == ["epoch 1/2", "epoch 2/2"]
