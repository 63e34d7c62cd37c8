"""Metric names, their direction and the default of each task."""

from __future__ import annotations

from skincancer.metrics.classification import METRICS
from skincancer.metrics.custom import is_lower_better
from skincancer.metrics.segmentation import MASK_METRICS

MONITORS = {
    "classification": "val/balanced_accuracy",
    "segmentation": "val/jaccard",
    "joint": "val/balanced_accuracy",
}
MONITORED = {
    "classification": METRICS,
    "segmentation": MASK_METRICS,
    "joint": (*METRICS, *(f"mask_{name}" for name in MASK_METRICS)),
}


DEFAULT_METRICS = {"classification": "balanced_accuracy", "joint": "balanced_accuracy", "segmentation": "jaccard"}


def best_name(monitor: str) -> str:
    """Return the name that the best checkpoint's value of a monitored metric is logged by."""
    return f"best/{monitor.removeprefix('val/')}"


def monitor_mode(monitor: str) -> str:
    """Return `min` for losses, calibration error and distances, `max` for every other metric."""
    lower = monitor in ("val/loss", "val/ece", "val/hd95", "val/mask_hd95")
    return "min" if lower or is_lower_better(monitor.removeprefix("val/")) else "max"


MASK_PREFIX = "mask_"  # of a joint run's columns and metrics
LOWER_IS_BETTER = ("hd95", "mask_hd95", "ece")


def is_mask_metric(metric: str) -> bool:
    """Say whether a metric is of masks; of the names that both have, classes are meant and `mask_` says masks."""
    name = metric.removeprefix(MASK_PREFIX)
    return name in MASK_METRICS and (name != metric or name not in METRICS)
