"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.nn import Parameter
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)


def adam(parameters: Sequence[Parameter], options: Mapping[str, Any]) -> Optimizer:
    """Return Adam (Kingma and Ba 2015), with `weight_decay` as an L2 penalty."""
    return Adam(parameters, lr=options["lr"], weight_decay=options["weight_decay"])


def adamw(parameters: Sequence[Parameter], options: Mapping[str, Any]) -> Optimizer:
    """Return AdamW (Loshchilov and Hutter 2019), with decoupled `weight_decay`."""
    return AdamW(parameters, lr=options["lr"], weight_decay=options["weight_decay"])


def sgd(parameters: Sequence[Parameter], options: Mapping[str, Any]) -> Optimizer:
    """Return SGD, with Nesterov momentum if `momentum` is above 0."""
    momentum = options["momentum"]
    return SGD(
        parameters, lr=options["lr"], momentum=momentum, weight_decay=options["weight_decay"], nesterov=momentum > 0
    )


OPTIMIZERS: dict[str, Callable[[Sequence[Parameter], Mapping[str, Any]], Optimizer]] = {
    "adam": adam, "adamw": adamw, "sgd": sgd,
}  # fmt: skip


def constant(optimizer: Optimizer, options: Mapping[str, Any], steps: int, epochs: int) -> LRScheduler:
    """Keep the learning rate constant."""
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def cosine(optimizer: Optimizer, options: Mapping[str, Any], steps: int, epochs: int) -> LRScheduler:
    """Warm up linearly over `warmup_epochs`, then follow half a cosine to 0.

    Loshchilov and Hutter 2017, without restarts.
    """
    warmup = round(options["warmup_epochs"] * steps / epochs)
    down = CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup))
    if not warmup:
        return down
    up = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [up, down], milestones=[warmup])


def one_cycle(optimizer: Optimizer, options: Mapping[str, Any], steps: int, epochs: int) -> LRScheduler:
    """Raise the learning rate to `lr` and lower it again (Smith and Topin 2018).

    Momentum, or Adam's beta1, moves from 0.95 to 0.85 and back.
    """
    return OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps)


def step(optimizer: Optimizer, options: Mapping[str, Any], steps: int, epochs: int) -> LRScheduler:
    """Multiply the learning rate by `gamma` after every `step_epochs` epochs."""
    return StepLR(optimizer, step_size=max(1, round(options["step_epochs"] * steps / epochs)), gamma=options["gamma"])


# Schedules step once per optimiser step. `steps` and `epochs` count the whole run.
SCHEDULES: dict[str, Callable[[Optimizer, Mapping[str, Any], int, int], LRScheduler]] = {
    "constant": constant, "cosine": cosine, "one_cycle": one_cycle, "step": step,
}  # fmt: skip
