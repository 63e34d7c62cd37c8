"""Metrics of classes that plugins register. This module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class CustomMetric(NamedTuple):
    """A function `f(label, probability, weight) -> value`, and its direction."""

    function: Callable[[Any, Any, Any], float]
    higher_is_better: bool


CUSTOM_METRICS: dict[str, CustomMetric] = {}


def custom_metrics(task: str) -> tuple[str, ...]:
    """Return the names of the metrics that plugins add to a task."""
    return () if task == "segmentation" else tuple(CUSTOM_METRICS)


def is_lower_better(metric: str) -> bool:
    """Return whether a metric of a plugin is better if it is lower."""
    return metric in CUSTOM_METRICS and not CUSTOM_METRICS[metric].higher_is_better
