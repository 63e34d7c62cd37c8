"""The figures of published studies, from `published.yaml`, beside ours; nothing in them is corrected."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from skincancer.system.yaml_files import load_yaml

COLUMNS = [
    "study", "experiment", "split", "metric", "published", "published_low", "published_high", "ours", "low", "high", "data", "remark",
]  # fmt: skip
OTHER_DATA = "other data"


def published_table(cells: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return the published figures of the splits of a comparison, ours beside them where the experiment is among those compared.

    Figures of other experiments are listed where ours are of the study's data, so that a stand-in can be read beside them.

    Args:
        cells: as `comparison.cells_table` makes it, of one or more metrics.
        dataset: the catalog's name of the data that ours are of.

    Returns:
        The columns of `COLUMNS`; published values are fractions. `published_low` and `published_high` are Wilson's 95 % interval where
        the number of images is known; `data` is `other data` where ours are not the study's; `remark` says how many images theirs were,
        and in what ours depart from the experiment. Empty where no study has such a figure.
    """
    ours = {(row["experiment"], row["split"], row["metric"]): row for row in cells.to_dict("records")}
    rows = []
    for study in _studies():
        for figure in study["figures"]:
            place = (figure["experiment"], str(figure["split"]), figure["metric"])
            known = place in ours
            if not known and (dataset not in study["data"] or figure["split"] not in set(cells["split"])):
                continue
            mine = ours[place] if known else {**dict.fromkeys(("value", "low", "high"), float("nan")), "departures": ""}
            remarks = [f"{figure['correct']} of {figure['of']} images" if "of" in figure else ""]
            remarks.append(f"ours: {mine['departures']}" if mine["departures"] else "")
            low = high = float("nan")
            if "of" in figure:
                interval = stats.binomtest(figure["correct"], figure["of"]).proportion_ci(method="wilson")
                low, high = float(interval.low), float(interval.high)
            rows.append(
                [
                    study["name"], *place, figure["value"] / 100, low, high, mine["value"], mine["low"], mine["high"],
                    dataset if dataset in study["data"] else OTHER_DATA,
                    "; ".join(filter(None, remarks)),
                ]
            )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def published_metrics(cells: Iterable[tuple[str, str]]) -> set[str]:
    """Return the metrics that studies have published of these experiments at these splits."""
    places = set(cells)
    return {
        f["metric"] for study in _studies() for f in study["figures"] if (f["experiment"], str(f["split"])) in places
    }


def protocols(names: Iterable[str]) -> list[str]:
    """Return source, protocol and contradictions of studies, a line each."""
    wanted = set(names)
    lines = []
    for study in _studies():
        if study["name"] in wanted:
            parts = [study["source"], f"protocol: {study['protocol']}", study.get("contradictions", "")]
            lines.append(f"{study['name']}: " + "; ".join(part for part in parts if part))
    return lines


def _studies() -> list[dict[str, Any]]:
    return list(load_yaml(Path(__file__).with_name("published.yaml"))["studies"])
