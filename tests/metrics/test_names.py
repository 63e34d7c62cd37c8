"""Metric names: complete for each task, and loaded without a library."""

import subprocess
import sys

import pytest

from skincancer.metrics.names import (
    CURVES,
    DEFAULT_METRICS,
    LOWER_IS_BETTER,
    MAIN_METRICS,
    TASK_METRICS,
    default_monitor,
    epoch_columns,
)


@pytest.mark.parametrize("task", ["classification", "segmentation", "joint"])
def test_every_named_metric_is_a_metric_of_the_task(task: str):
    assert {DEFAULT_METRICS[task], *MAIN_METRICS[task]} <= set(TASK_METRICS[task])
    assert default_monitor(task) in epoch_columns(task)
    assert set(CURVES) & set(TASK_METRICS[task])


def test_directions_and_curves_name_known_metrics():
    known = {"loss", *(name for names in TASK_METRICS.values() for name in names)}
    assert {*LOWER_IS_BETTER, *CURVES} <= known


def test_the_table_of_epochs_has_the_main_metrics_under_plain_titles():
    assert list(epoch_columns("joint").values()) == [
        "epoch", "train loss", "valid loss", "accuracy", "balanced accuracy", "AUROC", "mask Jaccard", "time (s)",
    ]  # fmt: skip
    assert list(epoch_columns("segmentation"))[3:-1] == ["val/jaccard", "val/dice", "val/thresholded_jaccard"]


def test_the_names_are_loaded_without_any_library():
    code = (
        "import sys; import skincancer.metrics.names, skincancer.schema.dotted_keys\n"
        "assert not {'scipy', 'pandas', 'torch', 'sklearn', 'mlflow'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
