"""Shared by the benchmarks: alternating measurements, medians with ranges, and the machine."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version


def in_turns(work: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Measure all pieces of work in turns, and return the results of each.

    The order is A B A B …, so that a busy machine slows all pieces alike. The first `warm_up` rounds are not returned.
    """
    results: dict[str, list[float]] = {name: [] for name in work}
    for number in range(warm_up + rounds):
        for name, one in work.items():
            result = one()
            if number >= warm_up:
                results[name].append(result)
    return results


def ratios(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Return the ratios of the values to the reference of the same round."""
    return [value / other for value, other in zip(values, reference, strict=True)]


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Format the median with the smallest and the largest value."""
    median, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{median} ({low}–{high})"


def machine(device: str = "cpu") -> str:
    """Describe the machine, with its load average at the start."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return (
        f"{cores} cores ({platform.machine()}), load {load:.1f} at the start, python {platform.python_version()}, "
        f"torch {version('torch')}, device {device}"
    )
