"""Metric names, their direction, and the metrics of each task."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

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
RECALL = "recall/"
# Names that MLflow accepts as keys of metrics, and the form of the keys of all other names.
_ACCEPTED, _LONGEST = re.compile(r"[\w./ :-]+"), 200
_DIGESTED = re.compile(rf"{RECALL}.*-[0-9a-f]{{8}}$")
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


def metric_keys(names: Iterable[str]) -> dict[str, str]:
    """Return the MLflow key of each metric that is logged together.

    A name that MLflow accepts is its own key. In other names of classes, and where names differ only in case, `_` replaces the characters
    that MLflow refuses, and a digest of the class keeps the keys unique.
    """
    names = list(names)
    folded = Counter(name.casefold() for name in names)
    return {name: name if _is_key(name) and folded[name.casefold()] == 1 else _digested(name) for name in names}


def _is_key(name: str) -> bool:
    return bool(_ACCEPTED.fullmatch(name)) and len(name) <= _LONGEST and posixpath.normpath(f"x/{name}") == f"x/{name}"


def _digested(name: str) -> str:
    before, recall, text = name.partition(RECALL)
    before, text = (before, text) if recall else ("", name)
    digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8]
    readable = re.sub(r"[^\w -]", "_", text)[:100]
    return f"{before}{recall}{readable}-{digest}"


def has_digested_keys(keys: Iterable[str]) -> bool:
    """Return whether some keys are not the names of their metrics."""
    return any(_DIGESTED.search(key) for key in keys)


def restore_names(metrics: Mapping[str, float], classes: Sequence[str]) -> dict[str, float]:
    """Return metrics with the names of classes instead of MLflow keys."""
    names = {key: name for name, key in metric_keys(f"{RECALL}{name}" for name in classes).items()}

    def restore(key: str) -> str:
        before, recall, text = key.partition(RECALL)
        return before + names.get(recall + text, recall + text)

    return {restore(key): value for key, value in metrics.items()}
