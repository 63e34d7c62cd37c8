"""Report of a comparison: tables, page, CSV and LaTeX files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from skincancer.comparison import figures
from skincancer.comparison.published import protocols
from skincancer.comparison.tables import Comparison, table_title
from skincancer.data.catalog import SYNTHETIC_NOTE, SYNTHETIC_WARNING
from skincancer.data.groups import describe_unknown_lesions
from skincancer.metrics.names import metric_title
from skincancer.runs import artifacts
from skincancer.system.console import optional
from skincancer.visualization.html import Picture, Section, Table, Text, write_page
from skincancer.visualization.style import save

_CAPTIONS = {
    "intervals": "The metric of each method at each split, with its 95 % interval over lesions.",
    "roc": "ROC curves on each run's own test images: mean over classes and seeds.",
    "calibration": "Accuracy against confidence on each run's own test images; the area of a dot is its share of the images.",
    "learning_curves": "Validation during training, against the training images seen: equal epochs are not equal work.",
    "training_size": "The metric against the size of the training set.",
}
_HOW_TO_READ = (
    "Intervals cover the sampling of test lesions. They do not cover the variation of training, which several seeds show, nor images of "
    "another clinic. All runs were tested on the common images: only there, all figures of a table use the same images. "
    "A test between experiments asks whether these trained models differ on such lesions."
)


@dataclass(frozen=True)
class Sheet:
    """Table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


def sheets(comparison: Comparison) -> list[Sheet]:
    """Return the tables of metrics, runs, tests and published figures."""
    tables = []
    for metric in comparison.metrics:
        table = comparison.table[comparison.table["metric"] == metric]
        title = table_title(table)
        tables.append(_matrix(table, title))
        tables.append(_details(table, title))
        if len(comparison.pairs):
            tables.append(_pairs(comparison.pairs[comparison.pairs["metric"] == metric], title))
    if "mcnemar_p" in comparison.pairs:
        tables.append(_tests(comparison.pairs[comparison.pairs["metric"] == comparison.metrics[0]]))
    if len(comparison.published):
        tables.append(_published(comparison.published))
    return tables


def _matrix(table: pd.DataFrame, title: str) -> Sheet:
    splits = list(dict.fromkeys(table["split"]))
    texts = {
        (row["experiment"], row["split"]): format_estimate(row["value"], row["low"], row["high"], row["sd"])
        for row in table.to_dict("records")
    }
    rows = [[name, *(texts.get((name, split), "–") for split in splits)] for name in dict.fromkeys(table["experiment"])]
    seeds = "mean ± sd over seeds" if table["sd"].notna().any() else "one seed each, without the variation of training"
    return Sheet(
        f"{title}, each run on its own test images", ["experiment", *splits], rows,
        f"{seeds}; 95 % intervals over lesions",
    )  # fmt: skip


def _details(table: pd.DataFrame, title: str) -> Sheet:
    n_common = int(table["common_images"].iloc[0])
    on_common = f"{title} on {n_common:,} common images"
    columns = [
        "experiment", "split", "seeds", "test images", "lesions", on_common, "training images", "steps", "images seen",
    ]  # fmt: skip
    rows = []
    for row in table.to_dict("records"):
        common = (
            format_estimate(row["common_value"], row["common_low"], row["common_high"], row["common_sd"])
            if n_common
            else "–"
        )
        work = [_count(row[name]) for name in ("train_images", "optimizer_steps", "images_seen")]
        counts = [f"{row['n_images']:,}", f"{row['n_lesions']:,}"]
        rows.append([row["experiment"], row["split"], row["seeds"], *counts, common, *work])
    return Sheet(
        "runs", columns, rows, "equal epochs are not equal work; compare steps and images seen (means over runs)"
    )


def _pairs(table: pd.DataFrame, title: str) -> Sheet:
    columns = ["split", "first", "second", "images", "lesions", f"difference of {title}", "p", "p (Holm)"]
    rows = [
        [
            row["split"], row["first"], row["second"], f"{row['n_images']:,}", f"{row['n_lesions']:,}",
            format_difference(row["difference"], row["low"], row["high"]), format_p(row["p"]), format_p(row["p_holm"]),
        ]
        for row in table.to_dict("records")
    ]  # fmt: skip
    caption = f"first minus second on the same images; paired by lesion; Holm's correction over the {len(rows)} rows"
    return Sheet("experiments against each other", columns, rows, caption)


def _tests(table: pd.DataFrame) -> Sheet:
    columns = [
        "split", "first", "second", "right alone", "McNemar p", "p (Holm)", "difference of AUROC", "DeLong p", "p (Holm)",
    ]  # fmt: skip
    rows = [
        [
            row["split"], row["first"], row["second"], f"{row['first_only']:.0f} : {row['second_only']:.0f}",
            format_p(row["mcnemar_p"]), format_p(row["mcnemar_holm"]), format_difference(row["auroc_difference"], np.nan, np.nan),
            format_p(row["delong_p"]), format_p(row["delong_holm"]),
        ]
        for row in table.to_dict("records")
    ]  # fmt: skip
    seeds = ", ".join(dict.fromkeys(str(seed) for seed in table["seed"]))
    caption = (
        "right alone: lesions with more correct images in one than in the other, McNemar's counts (exact test under 25); DeLong's test "
        f"has lesions as clusters; both use the models of seed {seeds}; Holm's correction over the {len(rows)} rows"
    )
    return Sheet("McNemar's and DeLong's tests", columns, rows, caption)


def _published(table: pd.DataFrame) -> Sheet:
    rows = []
    for row in table.to_dict("records"):
        known = np.isfinite(row["published_low"])
        published = f"{row['published']:.3f}" + (
            f" ({row['published_low']:.3f}–{row['published_high']:.3f})" if known else ""
        )
        ours = format_estimate(row["ours"], row["low"], row["high"], np.nan) if np.isfinite(row["ours"]) else "–"
        rows.append(
            [
                row["study"], row["experiment"], row["split"], metric_title(row["metric"]), published, ours, row["data"],
                row["remark"] or "–",
            ]
        )  # fmt: skip
    columns = ["study", "experiment", "split", "metric", "published", "ours", "data of ours", "remark"]
    return Sheet("published figures", columns, rows, " · ".join(protocols(dict.fromkeys(table["study"]))))


def format_estimate(value: float, low: float, high: float, sd: float) -> str:
    """Format a metric with its standard deviation and interval, if finite."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:.3f}" + (f" ± {sd:.3f}" if np.isfinite(sd) else "")
    return text + (f" ({low:.3f}–{high:.3f})" if np.isfinite(low) else "")


def format_difference(value: float, low: float, high: float) -> str:
    """Format a difference with its interval."""
    if not np.isfinite(value):
        return "–"
    return f"{value:+.3f}" + (f" ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else "")


def format_p(p: float) -> str:
    """Format a p-value with three digits, or as <0.001."""
    return "–" if not np.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "–"


def warnings(comparison: Comparison) -> list[str]:
    """Return the warnings that the page and the terminal show first."""
    bands = [SYNTHETIC_WARNING] if comparison.synthetic else []
    if comparison.obstacle:
        bands.append(f"Nothing could be paired: {comparison.obstacle}. The figures are listed without tests.")
    # Runs of one data set have the same lesion ids.
    scores = pd.DataFrame(
        {"image_id": score.image_id, "lesion_id": score.lesion_id}
        for entry in comparison.entries
        for score in entry.scores
    )
    images = scores.explode(["image_id", "lesion_id"]).drop_duplicates("image_id")
    if unknown := describe_unknown_lesions(images):
        bands.append(f"Lesions of the test images: {unknown}.")
    return bands + [f"Hard to compare: {line}." for line in comparison.differences]


def write_files(comparison: Comparison, folder: Path, console: Console) -> list[Path]:
    """Write page, tables and figures into a folder, and return their paths."""
    (folder / artifacts.FIGURES).mkdir(parents=True, exist_ok=True)
    title = " against ".join(dict.fromkeys(entry.experiment for entry in comparison.entries))
    title = title if len(title) <= 90 else f"{len({entry.experiment for entry in comparison.entries})} experiments"
    note = SYNTHETIC_NOTE if comparison.synthetic else ""
    first = comparison.table[comparison.table["metric"] == comparison.metrics[0]]
    plots = figures.draw_all(
        comparison.entries, first, comparison.metrics[0], title=f"{title} · {comparison.dataset}", note=note
    )
    images = []
    for name, draw in plots.items():
        with optional(console, f"the figure {name}"):
            path = save(draw(), folder / artifacts.figure_file(name))
            images.append(Picture(path, alt=f"{name.replace('_', ' ')} of the compared runs", caption=_CAPTIONS[name]))
    comparison.table.to_csv(folder / artifacts.COMPARISON_TABLE, index=False, float_format="%.9g")
    comparison.pairs.to_csv(folder / artifacts.COMPARISON_TESTS, index=False, float_format="%.9g")
    comparison.published.to_csv(folder / artifacts.COMPARISON_PUBLISHED, index=False, float_format="%.9g")
    runs = pd.DataFrame(
        {"experiment": entry.experiment, "split": run.params.get("split"), "seed": run.seed, "run_id": run.run_id}
        for entry in comparison.entries
        for run in entry.runs
    )
    runs.to_csv(folder / artifacts.COMPARED_RUNS, index=False)
    (folder / artifacts.COMPARISON_LATEX).write_text(_latex(comparison), encoding="utf-8")
    ids = [[str(value) for value in row] for row in runs.itertuples(index=False)]
    sections = [
        Section(
            "Results", [Table(sheet.title, sheet.columns, sheet.rows, sheet.caption) for sheet in sheets(comparison)]
        ),
        Section("Figures", images),
        Section("How to read this", [Text(_HOW_TO_READ)]),
        Section("Runs", [Table("", ["experiment", "split", "seed", "run"], ids)]),
    ]
    metrics = ", ".join(metric_title(metric) for metric in comparison.metrics)
    footer = "Made by skincancer: research software, not a medical device."
    with optional(console, artifacts.COMPARISON_PAGE):
        write_page(
            folder / artifacts.COMPARISON_PAGE, f"Comparison: {title}", f"{comparison.dataset}, {metrics}", sections, warnings(comparison),
            footer,
        )  # fmt: skip
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _latex(comparison: Comparison) -> str:
    """Return all tables as LaTeX (booktabs)."""
    parts = ["% \\usepackage{booktabs}"]
    for sheet in sheets(comparison):
        frame = pd.DataFrame([list(row) for row in sheet.rows], columns=list(sheet.columns))
        escaped = [str(text).translate(_LATEX) for text in (sheet.title, sheet.caption)]
        frame.columns = [str(name).translate(_LATEX) for name in frame.columns]
        frame = frame.map(lambda cell: str(cell).translate(_LATEX))
        body = frame.to_latex(index=False, escape=False)
        parts.append(f"\\begin{{table}}\n\\caption{{{escaped[0]}. {escaped[1]}}}\n{body}\\end{{table}}")
    return "\n\n".join(parts) + "\n"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$", "<": r"$<$", "−": "$-$", "×": r"$\times$",
    }
)  # fmt: skip
