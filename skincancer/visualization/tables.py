"""Tables of results for the terminal."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.table import Table

from skincancer.data.catalog import SYNTHETIC_NOTE
from skincancer.system.console import make_table


def intervals_table(title: str, intervals: pd.DataFrame, caption: str, synthetic: bool) -> Table:
    """Return a printable table of metrics with their intervals.

    `intervals` has the columns metric, value, low, high, and maybe note. The title of synthetic data contains a warning.
    """
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
