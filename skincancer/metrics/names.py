"""Metric names, their direction, and the metrics of each task."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from skincancer.errors import ConfigError
from skincancer.metrics.custom import is_lower_better

# Metrics of the positive class of two, each with its name as a mean over more classes.
MACRO_NAMES = {
    "average_precision": "average_precision_macro",
    "sensitivity": "recall_macro",
    "specificity": "specificity_macro",
    "precision": "precision_macro",
}
OF_POSITIVE = (*MACRO_NAMES, "ppv", "npv")
# Metrics of two classes. `recall/<class>` of every class follows, in the order of the classes.
TWO_CLASS_METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "auroc_macro", *MACRO_NAMES, "ece")
METRICS = (*TWO_CLASS_METRICS, *MACRO_NAMES.values())
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
    "f1_macro": "macro F1",
    "auroc_macro": "AUROC",
    **{macro: f"macro {macro.removesuffix('_macro').replace('_', ' ')}" for macro in MACRO_NAMES.values()},
    "ppv": "PPV",
    "npv": "NPV",
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


def positive_of(classes: Sequence[str]) -> str:
    """Return the positive class: the second of two classes, otherwise ""."""
    return classes[1] if len(classes) == 2 else ""


def class_metric(metric: str, n_classes: int) -> str:
    """Return the name that a metric has for this number of classes."""
    names = {macro: name for name, macro in MACRO_NAMES.items()} if n_classes == 2 else MACRO_NAMES
    return names.get(metric, metric)


def check_class_metric(key: str, metric: str, n_classes: int) -> None:
    """Check that a metric exists for this number of classes.

    Args:
        key: key or flag with the metric, for the message.
        metric: name, with or without `val/`.
        n_classes: number of classes, 0 for a segmenter.

    Raises:
        ConfigError: the metric has another name for this number of classes.
    """
    prefix, name = ("val/", metric.removeprefix("val/")) if metric.startswith("val/") else ("", metric)
    if n_classes and (other := class_metric(name, n_classes)) != name:
        raise ConfigError(f"{key} is {metric!r}; for {n_classes} classes it is called {prefix}{other}. Use that name.")


def metric_title(metric: str, positive: str = "") -> str:
    """Return the printed name of a metric.

    Args:
        metric: name of a metric, without prefix of a subset.
        positive: positive class, which the names of its metrics contain in brackets; "" if there is none.
    """
    if metric.startswith(RECALL):
        return metric
    title = TITLES.get(metric, metric.replace("_", " "))
    return f"{title} ({positive})" if positive and metric in OF_POSITIVE else title


def epoch_columns(task: str) -> dict[str, str]:
    """Return the columns of the printed table of epochs, and their titles."""
    metrics = {f"val/{name}": metric_title(name) for name in MAIN_METRICS[task]}
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
