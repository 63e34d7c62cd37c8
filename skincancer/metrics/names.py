"""Metric names, their direction, and the metrics of each task."""

from __future__ import annotations

from skincancer.metrics.custom import is_lower_better

# Areas under curves.
AREAS = ("auroc_macro", "average_precision_macro")
# `recall/<class>` of every class follows, in the order of the classes.
METRICS = ("accuracy", "balanced_accuracy", "f1_macro", *AREAS, "sensitivity", "specificity", "precision", "ece")
MASK_METRICS = ("jaccard", "dice", "thresholded_jaccard", "pixel_accuracy", "sensitivity", "specificity", "hd95")
# The joint task has metrics of both kinds, so its mask metrics and their columns have a prefix.
MASK_PREFIX = "mask_"
MASK_PREFIXES = {"classification": "", "segmentation": "", "joint": MASK_PREFIX}
PREFIXED_METRICS = tuple(MASK_PREFIX + name for name in MASK_METRICS)

TASK_METRICS = {"classification": METRICS, "segmentation": MASK_METRICS, "joint": (*METRICS, *PREFIXED_METRICS)}
DEFAULT_METRICS = {"classification": "balanced_accuracy", "segmentation": "jaccard", "joint": "balanced_accuracy"}
# Main metrics of each task, in the table of epochs and in the learning curves.
MAIN_METRICS = {
    "classification": ("accuracy", "balanced_accuracy", "auroc_macro"),
    "segmentation": ("jaccard", "dice", "thresholded_jaccard"),
    "joint": ("accuracy", "balanced_accuracy", "auroc_macro", "mask_jaccard"),
}
TITLES = {
    "auroc_macro": "AUROC",
    "jaccard": "Jaccard",
    "dice": "Dice",
    "thresholded_jaccard": "thresholded Jaccard",
    "mask_jaccard": "mask Jaccard",
}
# The joint task has no `jaccard`, so each task draws its own names in this order.
CURVES = (*MAIN_METRICS["joint"], "jaccard", "dice")
LOWER_IS_BETTER = ("loss", "ece", "hd95", "mask_hd95")


def default_monitor(task: str) -> str:
    """Return the metric that chooses the best epoch of a task."""
    return f"val/{DEFAULT_METRICS[task]}"


def epoch_columns(task: str) -> dict[str, str]:
    """Return the columns of the printed table of epochs, and their titles."""
    metrics = {f"val/{name}": TITLES.get(name, name.replace("_", " ")) for name in MAIN_METRICS[task]}
    losses = {"train/loss": "train loss", "val/loss": "valid loss"}
    return {"epoch": "epoch", **losses, **metrics, "epoch_seconds": "time (s)"}


def best_name(monitor: str) -> str:
    """Return the logged name of the monitored metric of the best checkpoint."""
    return f"best/{monitor.removeprefix('val/')}"


def monitor_mode(monitor: str) -> str:
    """Return `min` for losses, calibration error and distances, `max` for other metrics."""
    metric = monitor.removeprefix("val/")
    return "min" if metric in LOWER_IS_BETTER or is_lower_better(metric) else "max"


def is_mask_metric(metric: str) -> bool:
    """Return whether a metric scores masks.

    Sensitivity and specificity without the prefix are metrics of classes.
    """
    return metric in PREFIXED_METRICS or (metric in MASK_METRICS and metric not in METRICS)
