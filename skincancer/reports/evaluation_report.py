"""`report.html` of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from mlflow.entities import Run as MlflowRun

from skincancer.data.catalog import SYNTHETIC_WARNING, Dataset
from skincancer.reports import fit_report, run_description
from skincancer.reports.fit_report import NO_DEVICE
from skincancer.runs.artifacts import FIGURES, REPORT_FILE
from skincancer.runs.finished import FinishedRun
from skincancer.visualization.html import Picture, Section, Table, write_page
from skincancer.visualization.tables import format_interval


def write_evaluation_report(
    folder: Path,
    run: MlflowRun,
    title: str,
    entry: Dataset,
    tables: Sequence[tuple[str, str, pd.DataFrame]],
    notes: Sequence[tuple[str, str]],
) -> Path:
    """Write `report.html` into the folder of an evaluation, and return its path.

    Args:
        folder: folder with figures/ and, if computed, subgroups.csv.
        run: MLflow run of the evaluation.
        title: title of the page.
        entry: catalog entry of the evaluated data.
        tables: title, caption, and table with the columns metric (title), value, low, high.
        notes: title and text of each warning.
    """
    files = FinishedRun(folder, record=run)
    params = [[name.replace("_", " "), value] for name, value in sorted(run.data.params.items())]
    evaluated = run.data.tags.get("evaluated_run", "")
    results = [
        Table(
            head,
            ["metric", "value", "95 % interval"],
            [
                [
                    str(row["metric"]),
                    float(row["value"]),
                    format_interval(row["low"], row["high"], row.get("note")),
                ]
                for row in table.to_dict("records")
            ],
            caption,
        )
        for head, caption, table in tables
    ]
    figures = [
        Picture(path, f"{path.stem.replace('_', ' ')} of the evaluation", path.stem.replace("_", " "))
        for path in sorted((folder / FIGURES).glob("*.png"))
    ]
    bands = [SYNTHETIC_WARNING] if entry.synthetic else []
    bands += [f"{head}: {text}" for head, text in notes]
    sections = [
        Section("Results", results),
        Section("What was evaluated", [Table("", ["what", "value"], [["evaluated run", evaluated], *params])]),
        Section("Figures", figures), fit_report.subgroups_section(files), run_description.environment_section(files),
        run_description.licence_section(entry),
    ]  # fmt: skip
    subtitle = f"Evaluation {run.info.run_id} on {entry.title}."
    return write_page(folder / REPORT_FILE, title, subtitle, sections, bands, NO_DEVICE)
