"""`report.html` of a fit, from the files of the run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run as MlflowRun

from skincancer.data.groups import count_images
from skincancer.metrics.names import MASK_PREFIXES, metric_title
from skincancer.reports import run_description
from skincancer.reports.error_analysis import SHOWN_ERRORS, attention_means, choose_sample, read_attention
from skincancer.reports.thumbnails import Thumbnails, embed_figure, thumbnail_cells
from skincancer.runs import artifacts
from skincancer.runs.finished import FinishedRun
from skincancer.schema.tasks import TASKS
from skincancer.visualization.html import Cell, Part, Section, Table, Text, write_page
from skincancer.visualization.tables import format_interval, with_titles

NO_DEVICE = "Research software. No medical device: not for diagnosis, and not for decisions about patients."


def write_report(folder: Path, run: MlflowRun, thumbnails: Thumbnails) -> Path:
    """Write `report.html` into the folder of a run, and return its path.

    Args:
        folder: folder with config.yaml, classes.json, split.csv and predictions/test.csv. All other files are optional.
        run: MLflow run with params, tags, metrics and start time.
        thumbnails: thumbnails of the test images (`thumbnails.store_thumbnails`).

    Raises:
        RunError: a required file is missing.
    """
    files = FinishedRun(folder, record=run)
    config = files.config
    title = f"{config['name']} · {files.dataset.title} · {config['data']['split']} · seed {config['seed']}"
    start = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    description = config.get("description") or ""
    subtitle = f"{description + '. ' if description else ''}Run {run.info.run_id}, {start:%d %B %Y, %H:%M} UTC."
    sections = [
        results_section(files), run_description.data_section(files), run_description.training_section(files), *figure_sections(files),
        subgroups_section(files), errors_section(files, thumbnails), predictions_section(files, thumbnails),
        run_description.configuration_section(files), run_description.environment_section(files),
        run_description.licence_section(files.dataset),
    ]  # fmt: skip
    return write_page(
        folder / artifacts.REPORT_FILE, title, subtitle, sections, run_description.warnings(files), NO_DEVICE
    )


SHOWN_PREDICTIONS = 30
FIGURES = {
    "Classes": {
        "confusion_matrix": "Which classes are confused.",
        "roc": "Sensitivity against the rate of false alarms.",
        "precision_recall": "Precision against recall; ticks at the right edge: precision of random guessing.",
    },
    "Calibration": {"reliability": "Accuracy of the predictions at each confidence."},
    "Masks": {
        "jaccard_histogram": "Overlap of the predicted masks of the test images with the true ones.",
        "overlays": "The best, median and worst test images, with contours of true and predicted masks.",
    },
}
ATTENTION = {
    "attention_in_mask": "of the map, inside the true mask",
    "mask_share": "of the image, inside the true mask",
}
SCORES = ("jaccard", "dice", "sensitivity", "specificity", "hd95")


def results_section(run: FinishedRun) -> Section:
    """Return the section on test metrics."""
    intervals = run.table(artifacts.INTERVALS_FILE, "metric")
    if intervals is None:
        return Section("Results")
    caption = (
        f"{count_images(run.predictions('test'), ' of ')}. Intervals over lesions cover the sampling of test lesions, but not that of "
        "training images or seeds, nor images of another clinic."
    )
    if TASKS[run.task].has_masks:
        caption += " Metrics of masks are means over images at their original size; hd95 in pixels."
    rows = _with_intervals(with_titles(intervals, run.positive))
    return Section("Results", [Table("Test", ["metric", "value", "95 % interval"], rows, caption)])


def _with_intervals(table: pd.DataFrame, names: dict[str, str] | None = None) -> list[list[Cell]]:
    return [
        [
            (names or {}).get(row["metric"], row["metric"]),
            _number(row["value"]),
            format_interval(row["low"], row["high"], row.get("note")),
        ]
        for row in table.to_dict("records")
    ]


def _number(value: float) -> str | None:
    return None if np.isnan(value) else f"{value:.3f}"


def figure_sections(run: FinishedRun) -> list[Section]:
    """Return the sections of all figures that the run has."""
    return [
        Section(title, [part for name, caption in figures.items() for part in embed_figure(run.folder, name, caption)])
        for title, figures in FIGURES.items()
    ]


def subgroups_section(run: FinishedRun) -> Section:
    """Return the section on metrics by age, sex, site and other attributes."""
    table = run.table(artifacts.SUBGROUPS_FILE)
    if table is None or table.empty:
        return Section("Subgroups")
    if not {"metric", "value", "low", "high"} <= set(table):
        rows = table.astype(object).where(table.notna(), None).to_numpy(object).tolist()
        return Section("Subgroups", [Table("", [str(name).replace("_", " ") for name in table], rows)])
    measured = table["metric"].notna()
    hidden = ", ".join(
        f"{row['attribute']} {row['group']} ({row['n_lesions']} lesions)" for row in table[~measured].to_dict("records")
    )
    parts: list[Part] = []
    if measured.any():
        groups = _pivot_groups(table[measured])
        caption = (
            "In brackets: 95 % intervals. Metrics of classes with few lesions in a group are left out. Groups may differ in their "
            "lesions as much as in the performance of the model on them."
        )
        columns = [metric_title(str(name), run.positive) for name in groups]
        parts.append(Table("", columns, groups.to_numpy(object).tolist(), caption))
    if hidden:
        parts.append(Text(f"Not shown, because of few lesions: {hidden}."))
    return Section("Subgroups", parts)


def _pivot_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per group and one column per metric, None for missing cells."""
    keys = [str(name) for name in table if name not in ("metric", "value", "low", "high", "note")]
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        # pandas converts a column of counts to float if a count is missing.
        counts = {key: int(row[key]) if isinstance(row[key], float) else row[key] for key in keys}
        group = groups.setdefault(tuple(counts.values()), counts)
        if row["value"] is not None:
            bounds = f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] is not None else ""
            group[str(row["metric"])] = f"{row['value']:.3f}{bounds}"
    pivoted = pd.DataFrame(list(groups.values()), dtype=object)
    return pivoted.where(pivoted.notna(), None)


def errors_section(run: FinishedRun, thumbnails: Thumbnails) -> Section:
    """Return the section on the worst errors, attention and the worst masks."""
    parts: list[Part] = []
    test = run.predictions("test")
    errors = run.table(artifacts.ERRORS_FILE, "image_id", "lesion_id", "label", "prediction")
    if errors is not None:
        labelled = int((test["label"] != "").sum())
        parts.append(Text(f"{len(errors):,} of {labelled:,} test images are assigned to a wrong class."))
    if errors is not None and len(errors):
        caption = "The errors with the highest loss: the input of the network, with a Grad-CAM overlay."
        parts += embed_figure(run.folder, "errors", caption)
        worst = errors.head(SHOWN_ERRORS)
        cells = thumbnail_cells(thumbnails, worst["image_id"].tolist())
        rows: list[list[Cell]] = []
        for thumbnail, row in zip(cells, worst.to_dict("records"), strict=True):
            p_label, p_prediction = _probability(row["p_label"]), _probability(row["p_prediction"])
            rows.append(
                [thumbnail, row["image_id"], row["label"], p_label, row["prediction"], p_prediction, row["loss"]]
            )
        columns = ["", "image", "truth", "its probability", "prediction", "its probability", "loss"]
        parts.append(Table("Errors with the highest loss", columns, rows, f"Complete list: {artifacts.ERRORS_FILE}."))
    parts += _attention(run)
    worst_jaccard = f"{MASK_PREFIXES[run.task]}jaccard"
    if TASKS[run.task].has_masks:
        known = test.dropna(subset=worst_jaccard).sort_values(worst_jaccard, kind="stable")
        caption = (
            f"Complete list: {artifacts.predictions_file('test')}. The figure above shows contours of the worst masks."
        )
        parts.append(_scores(run, thumbnails, known.head(SHOWN_ERRORS), "Masks with the lowest Jaccard", caption))
    return Section("Errors", parts)


def _attention(run: FinishedRun) -> list[Part]:
    path = run.folder / artifacts.ATTENTION_FILE
    if not path.is_file():
        return []
    attention = read_attention(path)
    means = attention_means(attention)
    if means.empty:
        return [Text("There are no Grad-CAM maps: the last feature map has too few cells.")]
    caption = (
        f"Means over {int(attention['sample'].sum())} test images sampled at random, for the Grad-CAM map of the predicted class. "
        f"A uniform map has the second share inside the mask. Each image: {artifacts.ATTENTION_FILE}."
    )
    return [
        Table("Where the model looks", ["share", "mean", "95 % interval"], _with_intervals(means, ATTENTION), caption)
    ]


def predictions_section(run: FinishedRun, thumbnails: Thumbnails) -> Section:
    """Return the section with a sample of the test images."""
    test = run.predictions("test")
    chosen = choose_sample(test["image_id"].tolist(), SHOWN_PREDICTIONS)
    sample = test.set_index("image_id", drop=False).loc[chosen]
    caption = f"{len(sample)} of {len(test):,} test images, sampled at random. Complete list: {artifacts.predictions_file('test')}."
    if not TASKS[run.task].has_classes:
        return Section("Predictions", [_scores(run, thumbnails, sample, "", caption)])
    mask = ["mask_jaccard"] if "mask_jaccard" in sample else []
    rows = [
        [thumbnail, *_prediction(row), *(float(row[name]) for name in mask)]
        for thumbnail, row in zip(thumbnail_cells(thumbnails, chosen), sample.to_dict("records"), strict=True)
    ]
    columns = ["", "image", "truth", "its probability", "prediction", "its probability", ""]
    return Section("Predictions", [Table("", [*columns, *(name.replace("_", " ") for name in mask)], rows, caption)])


def _prediction(row: dict[Any, Any]) -> list[Cell]:
    truth, prediction = row["label"], row["prediction"]
    right = "" if not truth else "right" if truth == prediction else "WRONG"
    p_truth = _probability(row[f"p_{truth}"]) if truth else None
    return [row["image_id"], truth, p_truth, prediction, _probability(row[f"p_{prediction}"]), right]


def _probability(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0005 else "<0.001"


def _scores(run: FinishedRun, thumbnails: Thumbnails, table: pd.DataFrame, title: str, caption: str) -> Table:
    """Return a table of images with their mask metrics."""
    prefix = MASK_PREFIXES[run.task]
    names: Sequence[str] = [name for name in SCORES if prefix + name in table]
    image_ids = table["image_id"].tolist()
    rows: list[list[Cell]] = [
        [thumbnail, row["image_id"], *(_score(name, row[prefix + name]) for name in names)]
        for thumbnail, row in zip(thumbnail_cells(thumbnails, image_ids), table.to_dict("records"), strict=True)
    ]
    return Table(title, ["", "image", *names], rows, caption)


def _score(name: str, value: float) -> Cell:
    return f"{value:.1f}" if name == "hd95" and np.isfinite(value) else float(value)
