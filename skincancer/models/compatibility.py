"""Check of the network of an experiment, before data and Lightning are loaded."""

from __future__ import annotations

from dataclasses import replace

import torch

from skincancer.errors import ConfigError
from skincancer.models.backbones import check_backbone, current_name
from skincancer.models.segmenters import TIMM_PREFIX, check_segmenter
from skincancer.schema.experiment import Experiment
from skincancer.schema.tasks import TASKS
from skincancer.system.launcher import is_rank_zero


def with_current_name(experiment: Experiment) -> Experiment:
    """Replace a backbone that timm has renamed by its current name."""
    name = experiment.model.backbone
    prefix = TIMM_PREFIX if name.startswith(TIMM_PREFIX) else ""
    current = prefix + current_name(name.removeprefix(prefix))
    return experiment if current == name else replace(experiment, model=replace(experiment.model, backbone=current))


def check_network(experiment: Experiment) -> None:
    """Check that the network exists and takes images of the size `data.size`.

    Raises:
        ConfigError: the network is unknown or takes other sizes, or this machine cannot compile it.
    """
    model, size = with_current_name(experiment).model, experiment.data.size
    if model.is_hand_crafted:
        return
    task = TASKS[experiment.task]
    if task.has_masks:
        check_segmenter(model.architecture, model.backbone, size, task.has_classes)
    else:
        check_backbone(model.backbone, size, str(model.freeze))
    if model.compile and is_rank_zero():
        _check_compile(experiment.trainer.accelerator)


def _check_compile(accelerator: str) -> None:
    """Check that this machine can compile a small function."""
    device = "cuda" if torch.cuda.is_available() and accelerator != "cpu" else "cpu"
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # torch raises many types for a missing or broken compiler
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"model.compile is True, but torch.compile fails on this machine ({type(error).__name__}: {reason}). Install a C++ compiler "
            "(on Debian and Ubuntu: g++), or name one by the variable CXX. Or use --model.compile false."
        ) from error
