"""Tests that the names which config knows without torch equal the registries."""

from __future__ import annotations

from skincancer.models import losses, names, optimizers


def test_names_equal_the_registries() -> None:
    assert tuple(optimizers.OPTIMIZERS) == names.OPTIMIZERS
    assert tuple(optimizers.SCHEDULES) == names.SCHEDULES
    assert losses.LOSSES is names.LOSSES
    assert losses.MASK_LOSSES is names.MASK_LOSSES


def test_every_name_of_a_loss_has_a_function() -> None:
    assert all(map(callable, [*losses.LOSSES.values(), *losses.MASK_LOSSES.values()]))
