"""The Trainer's parts that are ours: averaged weights, monitors, devices."""

import pytest

from skincancer import training
from skincancer.errors import ConfigError, RunError
from skincancer.schema import TrainerConfig


@pytest.mark.parametrize(
    ("decay", "steps", "told"),
    [(0.0, 1, False), (0.998, 999, True), (0.998, 1000, False), (0.9, 20, False), (0.9, 19, True)],
)
def test_averaging_over_most_of_a_run_is_told(decay, steps, told):
    assert bool(training.averaging_note(decay, steps)) == told


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
