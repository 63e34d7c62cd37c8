from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from skincancer.models.optimizers import OPTIMIZERS, SCHEDULES

LR = 0.1
OPTIONS = {"lr": LR, "weight_decay": 0.02, "momentum": 0.8}
SCHEDULE = {"warmup_epochs": 0.0, "step_epochs": 10, "gamma": 0.1}


def build(name: str, **options: float) -> tuple[Optimizer, Parameter]:
    parameter = Parameter(torch.tensor([1.0, -2.0]))
    return OPTIMIZERS[name]([parameter], {**OPTIONS, **options}), parameter


# class, and the options it must be built with
EXPECTED_OPTIMIZERS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"lr": LR, "weight_decay": 0.02, "betas": (0.9, 0.999)}),
    "adamw": (torch.optim.AdamW, {"lr": LR, "weight_decay": 0.02, "betas": (0.9, 0.999)}),
    "sgd": (torch.optim.SGD, {"lr": LR, "weight_decay": 0.02, "momentum": 0.8, "nesterov": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_name_gives_that_optimizer_with_the_given_options(name: str) -> None:
    optimizer, parameter = build(name)
    kind, options = EXPECTED_OPTIMIZERS[name]
    assert type(optimizer) is kind
    assert [group["params"] for group in optimizer.param_groups] == [[parameter]]
    assert {key: optimizer.defaults[key] for key in options} == options


def first_steps_by_hand(name: str, start: float, gradients: tuple[float, float]) -> float:
    lr, decay, momentum = LR, 0.02, 0.8
    x, m, v = start, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        if name == "sgd":  # Nesterov: g + momentum * velocity
            gradient += decay * x
            m = gradient if step == 1 else momentum * m + gradient
            x -= lr * (gradient + momentum * m)
            continue
        if name == "adam":
            gradient += decay * x
        else:
            x -= lr * decay * x
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        x -= lr * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return x


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_steps_by_hand(name: str) -> None:
    optimizer, parameter = build(name)
    for gradient in (0.3, -0.7):
        parameter.grad = torch.full((2,), gradient)
        optimizer.step()
    expected = [first_steps_by_hand(name, start, (0.3, -0.7)) for start in (1.0, -2.0)]
    torch.testing.assert_close(parameter.data, torch.tensor(expected))


def test_sgd_without_momentum_is_plain() -> None:
    optimizer, parameter = build("sgd", momentum=0.0, weight_decay=0.0)
    assert optimizer.defaults["nesterov"] is False
    for _ in range(2):
        parameter.grad = torch.tensor([1.0, 2.0])
        optimizer.step()
    torch.testing.assert_close(parameter.data, torch.tensor([1.0 - 2 * LR, -2.0 - 4 * LR]))


def rates(name: str, steps: int, epochs: int, optimizer: str = "sgd", **options: float) -> list[float]:
    """Return the learning rate of every optimiser step of a run, as Lightning drives the schedule."""
    built, parameter = build(optimizer)
    schedule = SCHEDULES[name](built, {**SCHEDULE, **options}, steps, epochs)
    seen = []
    for _ in range(steps):
        seen.append(float(built.param_groups[0]["lr"]))
        parameter.grad = torch.ones(2)
        built.step()
        schedule.step()
    return seen


def by_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def expected_constant(step: int) -> float:
    return LR


def expected_cosine(step: int) -> float:  # 20 steps of 5 epochs, 1.5 of them warm-up: 6 steps
    return LR * (step + 1) / 7 if step < 6 else by_cosine(LR, 0.0, (step - 6) / 14)


def expected_one_cycle(step: int) -> float:  # up to step 0.3 * 20 - 1 from 1/25, down to 1/10,000 of that at step 19
    low = LR / 25
    return by_cosine(low, LR, step / 5) if step <= 5 else by_cosine(LR, low / 1e4, (step - 5) / 14)


def expected_step(step: int) -> float:  # every 2 of 5 epochs: every 8 steps
    return LR * 0.5 ** (step // 8)


EXPECTED_RATES: dict[str, tuple[dict[str, float], Callable[[int], float]]] = {
    "constant": ({}, expected_constant),
    "cosine": ({"warmup_epochs": 1.5}, expected_cosine),
    "one_cycle": ({}, expected_one_cycle),
    "step": ({"step_epochs": 2, "gamma": 0.5}, expected_step),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_by_hand(name: str) -> None:
    options, expected = EXPECTED_RATES[name]
    assert rates(name, 20, 5, **options) == pytest.approx([expected(step) for step in range(20)], rel=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_every_schedule_drives_every_optimizer_through_the_shortest_runs(name: str, optimizer: str, steps: int) -> None:
    seen = rates(name, steps, 1, optimizer)
    assert all(0 < rate <= LR * (1 + 1e-9) for rate in seen)


def test_cosine_warms_up_linearly_and_falls_to_nearly_nothing() -> None:
    seen = rates("cosine", 1000, 10, warmup_epochs=1.0)
    assert max(seen) == seen[100] == pytest.approx(LR)
    rises = [after - before for before, after in pairwise(seen[:101])]
    assert rises == pytest.approx([LR / 101] * 100, rel=1e-6)
    assert all(after < before for before, after in pairwise(seen[100:]))
    assert 0 < seen[-1] < LR * 1e-5


def test_cosine_without_warmup_starts_at_the_top() -> None:
    seen = rates("cosine", 10, 2)
    assert seen == pytest.approx([by_cosine(LR, 0.0, step / 10) for step in range(10)])


def test_one_cycle_peaks_once_and_ends_below_its_start() -> None:
    seen = rates("one_cycle", 100, 5)
    assert max(seen) == seen[29] == pytest.approx(LR)
    assert seen[0] == pytest.approx(LR / 25)
    assert seen[-1] == pytest.approx(LR / 25 / 1e4)


def test_step_falls_at_the_ends_of_epochs() -> None:
    seen = rates("step", 60, 20, step_epochs=10)  # 3 steps an epoch
    assert seen == pytest.approx([LR] * 30 + [LR / 10] * 30)
