"""The figures of published studies, from `published.yaml`, beside ours; nothing in them is corrected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from scipy import stats

from skincancer.config import load_yaml

COLUMNS = [
    "study", "experiment", "split", "metric", "published", "published_low", "published_high", "ours", "low", "high", "data", "remark",
]  # fmt: skip
OTHER_DATA = "other data"


def published_table(cells: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return the published figures of the experiments, splits and metrics of a comparison, ours beside them.

    Args:
        cells: as `comparison.cells_table` makes it, of one or more metrics.
        dataset: the catalog's name of the data that ours are of.

    Returns:
        The columns of `COLUMNS`; published values are fractions. `published_low` and `published_high` are Wilson's 95 % interval where
        the number of images is known; `data` is `other data` where ours are not the study's. Empty where no study has such a figure.
    """
    ours = cells.set_index(["experiment", "split", "metric"])
    rows = []
    for study in _studies():
        for figure in study["figures"]:
            place = (figure["experiment"], str(figure["split"]), figure["metric"])
            if place not in ours.index:
                continue
            mine = ours.loc[place]
            low = high = float("nan")
            if "of" in figure:
                interval = stats.binomtest(figure["correct"], figure["of"]).proportion_ci(method="wilson")
                low, high = float(interval.low), float(interval.high)
            rows.append(
                [
                    study["name"], *place, figure["value"] / 100, low, high, mine["value"], mine["low"], mine["high"],
                    dataset if dataset in study["data"] else OTHER_DATA,
                    f"{figure['correct']} of {figure['of']} images" if "of" in figure else "",
                ]
            )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def protocols(names: Iterable[str]) -> list[str]:
    """Return source, protocol and contradictions of studies, a line each."""
    wanted = set(names)
    lines = []
    for study in _studies():
        if study["name"] in wanted:
            parts = [study["source"], f"protocol: {study['protocol']}", study.get("contradictions", "")]
            lines.append(f"{study['name']}: " + "; ".join(part for part in parts if part))
    return lines


def _studies() -> list[dict[str, object]]:
    return list(load_yaml(Path(__file__).with_name("published.yaml"))["studies"])
