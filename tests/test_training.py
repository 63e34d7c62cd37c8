"""The Trainer's parts that are ours: averaged weights, monitors, devices."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from skincancer import training
from skincancer.errors import ConfigError, RunError
from skincancer.schema import TrainerConfig


def test_averaged_weights_against_the_formula():
    module = pl.LightningModule()
    module.weight = nn.Parameter(torch.zeros(1))
    callback = training.AveragedWeights(0.5)
    trainer = SimpleNamespace(global_step=0)
    callback.setup(trainer, module, "fit")
    expected = None
    for step in range(1, 15):
        nn.init.constant_(module.weight, float(step * step))
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = step * step if expected is None else decay * expected + (1 - decay) * step * step
        assert float(callback._average_model.module.weight.detach()) == pytest.approx(expected, rel=1e-6)


def test_monitors_are_maximised_but_for_losses_and_calibration_error():
    modes = {name: training.monitor_mode(f"val/{name}") for name in ("loss", "ece", "balanced_accuracy", "auroc_macro")}
    assert modes == {"loss": "min", "ece": "min", "balanced_accuracy": "max", "auroc_macro": "max"}


def test_several_devices_from_a_script_stop_with_a_word():
    with pytest.raises(RunError, match=r"from a notebook or a script, use one device"):
        training.check_launcher(TrainerConfig(devices=2))
    training.check_launcher(TrainerConfig(devices=1))


def test_half_precision_of_gpus_is_refused_on_a_cpu():
    with pytest.raises(ConfigError, match="16-mixed needs a GPU"):
        training.check_devices(TrainerConfig(accelerator="cpu", precision="16-mixed"))
