"""Tables of results for the terminal."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.table import Table

from skincancer.data.catalog import SYNTHETIC_NOTE
from skincancer.metrics.names import RECALL, metric_title
from skincancer.system.console import make_table
from skincancer.visualization.style import MOST_CLASSES


def with_titles(intervals: pd.DataFrame, positive: str) -> pd.DataFrame:
    """Replace the names of metrics by their titles.

    `positive` is the positive class, "" if there is none.
    """
    return intervals.assign(metric=[metric_title(name, positive) for name in intervals["metric"]])


def intervals_table(title: str, intervals: pd.DataFrame, caption: str, synthetic: bool) -> Table:
    """Return a printable table of metrics with their intervals.

    `intervals` has the columns metric, value, low, high, and maybe note. The title of synthetic data contains a warning. Of many classes,
    only those with the lowest recalls are printed.
    """
    recalls = intervals.loc[intervals["metric"].str.startswith(RECALL), "value"].astype(float)
    if len(recalls) > MOST_CLASSES:
        intervals = intervals.drop(recalls.sort_values(kind="stable").index[MOST_CLASSES:])
        caption += f"; the {MOST_CLASSES} lowest recalls of {len(recalls)} classes (all: intervals.csv)"
    numbers = intervals.astype({"value": float, "low": float, "high": float}).to_dict("records")
    rows = [
        [row["metric"], f"{row['value']:.3f}", format_interval(row["low"], row["high"], row.get("note"))]
        for row in numbers
    ]
    title += f" — {SYNTHETIC_NOTE.upper()}" if synthetic else ""
    return make_table(title, ["metric", "value", "95 % interval"], rows, caption)


def format_interval(low: float, high: float, note: object = "") -> str:
    """Format an interval, or the reason why it is undefined."""
    if np.isfinite(low):
        return f"{low:.3f} – {high:.3f}"
    # An empty cell of a CSV file is NaN.
    return f"– ({note})" if isinstance(note, str) and note else "–"
