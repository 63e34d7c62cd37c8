"""Test the tables of results for the terminal."""

import io

import pandas as pd
from rich.console import Console

from skincancer.visualization.tables import intervals_table


def printed(n_classes: int) -> str:
    metrics = ["accuracy", *(f"recall/class {i:03d}" for i in range(n_classes))]
    values = [0.5, *(1 - i / 1000 for i in range(n_classes))]
    table = pd.DataFrame({"metric": metrics, "value": values, "low": 0.1, "high": 0.9, "n_resamples": 10})
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(intervals_table("test", table, "10 images", synthetic=False))
    return console.export_text()


def test_of_many_classes_the_lowest_recalls_are_printed():
    text = printed(114)
    assert "accuracy" in text
    assert [f"class {i:03d}" in text for i in range(114)] == [i >= 94 for i in range(114)]
    assert "10 images; the 20 lowest recalls of 114 classes (all: intervals.csv)" in " ".join(text.split())


def test_of_few_classes_every_recall_is_printed():
    text = printed(20)
    assert all(f"class {i:03d}" in text for i in range(20))
    assert "lowest" not in text
