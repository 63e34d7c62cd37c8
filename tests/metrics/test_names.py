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
    has_digested_keys,
    metric_keys,
    restore_names,
)

HARMLESS = ("nv", "atypical_nevus", "1", "Spitz nevus", "a.b-c", "naevus à halo", "junctional/compound", "5: other")
# Class names that MLflow refuses, or that a store without regard to case would confuse.
REFUSED = (
    "Bowen's disease", "melanoma (in situ)", "nevus, blue", "ADHD+", "x" * 260, "..", ".", "/", "a//b", "/nevus", "nevus/", "a/../b",
    "#1", "50%", "a?b", "a&b", "[other]", "{x}", "a*b", '"quoted"', "a;b", "a=b", "<5 mm", "a|b", "a@b", "~", "a^b", "`a`", "$x$", "a!b",
    "mélanome…", "黑色素瘤（原位）", "na\u0308vus", "🦠", "Nevus", "nevus", "NEVUS", "\\", "a\\b",
)  # fmt: skip


@pytest.mark.parametrize("before", ["val/", "best/", "test/"])
def test_every_class_has_a_key_that_mlflow_accepts(before):
    from mlflow.utils.validation import _validate_metric_name

    names = [f"{before}recall/{name}" for name in (*HARMLESS, *REFUSED)] + [f"{before}accuracy"]
    keys = metric_keys(names)
    for key in keys.values():
        _validate_metric_name(key)
        assert len(key) <= 250
    assert len({key.casefold() for key in keys.values()}) == len(names)
    for name in HARMLESS:
        assert keys[f"{before}recall/{name}"] == f"{before}recall/{name}"
    values = {key: float(i) for i, key in enumerate(keys.values())}
    assert has_digested_keys(values)
    restored = restore_names(values, (*HARMLESS, *REFUSED))
    assert restored == {name: float(i) for i, name in enumerate(names)}


def test_a_key_does_not_depend_on_the_subset_or_other_classes():
    (key,) = metric_keys(["val/recall/Bowen's disease"]).values()
    assert key == "val/recall/Bowen_s disease-c499aa77"
    others = metric_keys(["test/recall/nv", "test/recall/Bowen's disease"])
    assert others["test/recall/Bowen's disease"] == key.replace("val/", "test/")


def test_harmless_names_need_no_class_list():
    keys = metric_keys(["val/loss", "val/recall/nv", "best_epoch", "system/cpu"])
    assert all(key == name for name, key in keys.items())
    assert not has_digested_keys(keys)
    assert metric_keys(["Nevus", "a (b)", ".."]).keys() == {"Nevus", "a (b)", ".."}
    assert ".." not in metric_keys([".."]).values()


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
