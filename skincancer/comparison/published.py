"""Published figures from `published.yaml`, uncorrected, next to those of a comparison."""

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


def published_table(entries: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return published figures of the splits of a comparison, next to ours.

    Figures of an experiment that is not compared are listed if the comparison uses the data set of the study.

    Args:
        entries: table of `tables.entries_table`, of one or more metrics.
        dataset: data set of the comparison.

    Returns:
        Table with the columns `COLUMNS`. `published` is a fraction, `published_low` and `published_high` are its Wilson 95 % interval
        if the number of images is known. `data` is `other data` if ours is not the data set of the study. `remark` contains the
        published number of images and the deviations of our runs from the experiment file.
    """
    ours = {(row["experiment"], row["split"], row["metric"]): row for row in entries.to_dict("records")}
    rows = []
    for study in _studies():
        for figure in study["figures"]:
            place = (figure["experiment"], str(figure["split"]), figure["metric"])
            compared = place in ours
            if not compared and (dataset not in study["data"] or figure["split"] not in set(entries["split"])):
                continue
            our = (
                ours[place] if compared else {**dict.fromkeys(("value", "low", "high"), float("nan")), "departures": ""}
            )
            remarks = [f"{figure['correct']} of {figure['of']} images" if "of" in figure else ""]
            remarks.append(f"ours: {our['departures']}" if our["departures"] else "")
            low = high = float("nan")
            if "of" in figure:
                interval = stats.binomtest(figure["correct"], figure["of"]).proportion_ci(method="wilson")
                low, high = float(interval.low), float(interval.high)
            rows.append(
                [
                    study["name"], *place, figure["value"] / 100, low, high, our["value"], our["low"], our["high"],
                    dataset if dataset in study["data"] else OTHER_DATA,
                    "; ".join(filter(None, remarks)),
                ]
            )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def published_metrics(entries: Iterable[tuple[str, str]]) -> set[str]:
    """Return the published metrics of these experiments and splits."""
    places = set(entries)
    return {
        f["metric"] for study in _studies() for f in study["figures"] if (f["experiment"], str(f["split"])) in places
    }


def protocols(names: Iterable[str]) -> list[str]:
    """Return one line per study: source, protocol and contradictions."""
    requests = set(names)
    lines = []
    for study in _studies():
        if study["name"] in requests:
            parts = [study["source"], f"protocol: {study['protocol']}", study.get("contradictions", "")]
            lines.append(f"{study['name']}: " + "; ".join(part for part in parts if part))
    return lines


def _studies() -> list[dict[str, Any]]:
    return list(load_yaml(Path(__file__).with_name("published.yaml"))["studies"])
