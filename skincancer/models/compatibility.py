"""Check of the network of an experiment, before data and Lightning are loaded."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from skincancer.errors import ConfigError
from skincancer.models.backbones import build_backbone, check_backbone, current_name, frozen_parameters
from skincancer.models.segmenters import TIMM_PREFIX, build_joint, build_segmenter, check_segmenter
from skincancer.models.weights import check_weights
from skincancer.schema.experiment import Experiment
from skincancer.schema.tasks import TASKS
from skincancer.system.console import make_console
from skincancer.system.launcher import is_rank_zero


def with_current_name(experiment: Experiment) -> Experiment:
    """Replace a backbone that timm has renamed by its current name."""
    name = experiment.model.backbone
    prefix = TIMM_PREFIX if name.startswith(TIMM_PREFIX) else ""
    current = prefix + current_name(name.removeprefix(prefix))
    return experiment if current == name else replace(experiment, model=replace(experiment.model, backbone=current))


def check_models(experiment: Experiment, resume: str | None = None) -> Experiment:
    """Check the network and the file of its first weights.

    Returns:
        The experiment, with timm's current name of the backbone.

    Raises:
        ConfigError: as in `check_network`.
        WeightsError: there is no file of the weights, which a run to resume does not need.
    """
    old, experiment = experiment.model.backbone, with_current_name(experiment)
    if experiment.model.backbone != old and is_rank_zero():
        make_console().print(f"model.backbone {old} is called {experiment.model.backbone} in timm now", markup=False)
    check_network(experiment)
    if resume is None and not experiment.model.is_hand_crafted:
        check_weights(experiment.model.weights)
    return experiment


def check_network(experiment: Experiment) -> None:
    """Check that the network exists and takes images of the size `data.size`.

    Raises:
        ConfigError: the network is unknown or takes other sizes, cannot be trained on one image although the batch size is 1, or
            this machine cannot compile it.
    """
    model, size = with_current_name(experiment).model, experiment.data.size
    if model.is_hand_crafted:
        return
    task = TASKS[experiment.task]
    if task.has_masks:
        check_segmenter(model.architecture, model.backbone, size, task.has_classes)
    else:
        check_backbone(model.backbone, size, str(model.freeze))
    if experiment.data.batch_size == 1:
        check_single_image(experiment)
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


def check_single_image(experiment: Experiment) -> None:
    """Check that the network can be trained on a batch of one image.

    torch refuses to train BatchNorm on one value per channel: a single image with features of 1 × 1.

    Raises:
        ConfigError: a trained BatchNorm layer gets one value per channel.
    """
    model, size = with_current_name(experiment).model, experiment.data.size
    # Mask R-CNN has no trained BatchNorm. Synchronised BatchNorm has the images of all ranks.
    if not model.is_network or model.architecture == "maskrcnn" or experiment.trainer.sync_batchnorm:
        return
    freeze = "none" if model.unfreeze_epoch is not None else str(model.freeze)
    network: nn.Module
    if TASKS[experiment.task].has_masks:
        joint = TASKS[experiment.task].has_classes
        names = model.architecture, model.backbone, size
        network = segmenter = build_joint(*names, classes=2, dropout=0.0) if joint else build_segmenter(*names)
        frozen = {f"model.encoder.{name}" for name, _ in segmenter.encoder.named_parameters() if freeze == "all"}
    else:
        network = build_backbone(model.backbone, size)
        frozen = frozen_parameters(network, freeze)
    single: list[str] = []
    for prefix, module in network.named_modules():
        own = {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
        if isinstance(module, _BatchNorm) and not (own and own <= frozen):
            module.register_forward_pre_hook(
                lambda _, inputs, name=prefix: single.append(name) if inputs[0].numel() == inputs[0].shape[1] else None
            )
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    if single:
        raise ConfigError(
            f"data.batch_size is {experiment.data.batch_size}, which makes a training batch of one image; {model.architecture or 'the'} "
            f"{model.backbone} expects two or more at {size} px: its BatchNorm layer {single[0]} has one value per channel of an image. "
            "Use --data.batch_size 3 or more, or a larger --data.size."
        )
