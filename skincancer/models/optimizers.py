"""Optimisers and learning-rate schedules by name. torch is imported inside, so that config checks names in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Parameter
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def adam(parameters: Sequence[Parameter], options: Mapping[str, Any]) -> Optimizer:
    """Adam (Kingma and Ba 2015); `weight_decay` is an L2 penalty."""
    from torch.optim import Adam

    return Adam(parameters, lr=options["lr"], weight_decay=options["weight_decay"])


def adamw(parameters: Sequence[Parameter], options: Mapping[str, Any]) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019); `weight_decay` is decoupled."""
    from torch.optim import AdamW

    return AdamW(parameters, lr=options["lr"], weight_decay=options["weight_decay"])


def sgd(parameters: Sequence[Parameter], options: Mapping[str, Any]) -> Optimizer:
    """SGD with Nesterov momentum, where momentum is above 0."""
    from torch.optim import SGD

    momentum = options["momentum"]
    return SGD(
        parameters, lr=options["lr"], momentum=momentum, weight_decay=options["weight_decay"], nesterov=momentum > 0
    )


OPTIMIZERS: dict[str, Callable[[Sequence[Parameter], Mapping[str, Any]], Optimizer]] = {
    "adam": adam, "adamw": adamw, "sgd": sgd,
}  # fmt: skip


def constant(optimizer: Optimizer, options: Mapping[str, Any], steps: int, epochs: int) -> LRScheduler:
    """The learning rate as given, from start to end."""
    from torch.optim.lr_scheduler import ConstantLR

    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def cosine(optimizer: Optimizer, options: Mapping[str, Any], steps: int, epochs: int) -> LRScheduler:
    """Linear warm-up over `warmup_epochs`, then half a cosine down to 0 (Loshchilov and Hutter 2017, without restarts)."""
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    warmup = round(options["warmup_epochs"] * steps / epochs)
    down = CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup))
    if not warmup:
        return down
    up = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [up, down], milestones=[warmup])


def one_cycle(optimizer: Optimizer, options: Mapping[str, Any], steps: int, epochs: int) -> LRScheduler:
    """One cycle up to `lr` and down again (Smith and Topin 2018); momentum, or Adam's beta1, in opposition: 0.95 to 0.85 and back."""
    from torch.optim.lr_scheduler import OneCycleLR

    return OneCycleLR(optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps)


def step(optimizer: Optimizer, options: Mapping[str, Any], steps: int, epochs: int) -> LRScheduler:
    """Times `gamma` after every `step_epochs` epochs."""
    from torch.optim.lr_scheduler import StepLR

    return StepLR(optimizer, step_size=max(1, round(options["step_epochs"] * steps / epochs)), gamma=options["gamma"])


# each steps once an optimiser step; `steps` and `epochs` are those of the whole run
SCHEDULES: dict[str, Callable[[Optimizer, Mapping[str, Any], int, int], LRScheduler]] = {
    "constant": constant, "cosine": cosine, "one_cycle": one_cycle, "step": step,
}  # fmt: skip
