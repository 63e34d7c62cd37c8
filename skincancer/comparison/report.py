"""A comparison as a person reads it: tables for the terminal and the page, CSV and LaTeX for the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from skincancer.comparison import figures
from skincancer.comparison.published import protocols
from skincancer.comparison.tables import RESAMPLES, Comparison
from skincancer.data.catalog import SYNTHETIC_NOTE, SYNTHETIC_WARNING
from skincancer.runs import artifacts
from skincancer.visualization.html import Picture, Section, Table, Text, write_page
from skincancer.visualization.style import save

_CAPTIONS = {
    "intervals": "Each method at each split: the metric, and its 95 % interval over lesions.",
    "roc": "ROC curves on each run's own test images: mean over classes and seeds.",
    "calibration": "Accuracy against confidence on each run's own test images; a dot's area is its share of the images.",
    "learning_curves": "Validation during training, against the training images seen: equal epochs are not equal work.",
    "training_size": "The metric against the size of the training part.",
}


_HOW_TO_READ = (
    "Intervals cover the sampling of test lesions; not the spread of training, which several seeds show, and not another clinic's "
    "images. Common images are those that every compared run was tested on: only there are all figures of a table of the same images. "
    "A test between experiments asks whether these trained models differ on such lesions."
)


@dataclass(frozen=True)
class Sheet:
    """A table of texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


def sheets(found: Comparison) -> list[Sheet]:
    """Return the tables of a comparison: experiment × split, details, tests between experiments, published figures."""
    shown = []
    for metric in found.metrics:
        table = found.table[found.table["metric"] == metric]
        shown.append(_matrix(table, metric))
        shown.append(_details(table, metric))
        if len(found.pairs):
            shown.append(_pairs(found.pairs[found.pairs["metric"] == metric], metric))
    if "mcnemar_p" in found.pairs:
        shown.append(_tests(found.pairs[found.pairs["metric"] == found.metrics[0]]))
    if len(found.published):
        shown.append(_published(found.published))
    return shown


def _matrix(table: pd.DataFrame, metric: str) -> Sheet:
    splits = list(dict.fromkeys(table["split"]))
    texts = {
        (row["experiment"], row["split"]): spread(row["value"], row["low"], row["high"], row["sd"])
        for row in table.to_dict("records")
    }
    rows = [[name, *(texts.get((name, split), "–") for split in splits)] for name in dict.fromkeys(table["experiment"])]
    several = (
        "mean ± sd over seeds; "
        if table["sd"].notna().any()
        else "one seed each: the spread of training is not covered; "
    )
    return Sheet(
        f"{_plain(metric)}, each run on its own test images", ["experiment", *splits], rows,
        f"{several}95 % intervals: bootstrap over lesions within classes, {RESAMPLES:,} resamples",
    )  # fmt: skip


def _details(table: pd.DataFrame, metric: str) -> Sheet:
    n_common = int(table["common_images"].iloc[0])
    on_common = f"{_plain(metric)} on {n_common:,} common images"
    columns = [
        "experiment",
        "split",
        "seeds",
        "test images",
        "lesions",
        on_common,
        "training images",
        "steps",
        "images seen",
    ]
    rows = []
    for row in table.to_dict("records"):
        common = (
            spread(row["common_value"], row["common_low"], row["common_high"], row["common_sd"]) if n_common else "–"
        )
        work = [_count(row[name]) for name in ("train_images", "optimizer_steps", "images_seen")]
        counts = [f"{row['n_images']:,}", f"{row['n_lesions']:,}"]
        rows.append([row["experiment"], row["split"], row["seeds"], *counts, common, *work])
    return Sheet(
        "runs", columns, rows, "equal epochs are not equal work: compare steps and images seen (means over runs)"
    )


def _pairs(table: pd.DataFrame, metric: str) -> Sheet:
    columns = ["split", "first", "second", "images", "lesions", f"difference of {_plain(metric)}", "p", "p (Holm)"]
    rows = [
        [
            row["split"], row["first"], row["second"], f"{row['n_images']:,}", f"{row['n_lesions']:,}",
            signed(row["difference"], row["low"], row["high"]), p_value(row["p"]), p_value(row["p_holm"]),
        ]
        for row in table.to_dict("records")
    ]  # fmt: skip
    caption = f"first minus second on the same images: paired bootstrap over lesions; Holm's correction over the {len(rows)} rows"
    return Sheet("experiments against each other", columns, rows, caption)


def _tests(table: pd.DataFrame) -> Sheet:
    columns = [
        "split", "first", "second", "right alone", "McNemar p", "p (Holm)", "difference of AUROC", "DeLong p", "p (Holm)",
    ]  # fmt: skip
    rows = [
        [
            row["split"], row["first"], row["second"], f"{row['first_only']:.0f} : {row['second_only']:.0f}",
            p_value(row["mcnemar_p"]), p_value(row["mcnemar_holm"]), signed(row["auroc_difference"], np.nan, np.nan),
            p_value(row["delong_p"]), p_value(row["delong_holm"]),
        ]
        for row in table.to_dict("records")
    ]  # fmt: skip
    seeds = ", ".join(dict.fromkeys(str(seed) for seed in table["seed"]))
    caption = (
        "right alone: lesions of which one has more images right than the other, McNemar's counts (exact test under 25); DeLong's test "
        f"takes lesions as clusters; both of the models of seed {seeds}; Holm's correction over the {len(rows)} rows"
    )
    return Sheet("McNemar's and DeLong's tests", columns, rows, caption)


def _published(table: pd.DataFrame) -> Sheet:
    rows = []
    for row in table.to_dict("records"):
        known = np.isfinite(row["published_low"])
        published = f"{row['published']:.3f}" + (
            f" ({row['published_low']:.3f}–{row['published_high']:.3f})" if known else ""
        )
        ours = spread(row["ours"], row["low"], row["high"], np.nan) if np.isfinite(row["ours"]) else "–"
        rows.append(
            [
                row["study"],
                row["experiment"],
                row["split"],
                _plain(row["metric"]),
                published,
                ours,
                row["data"],
                row["remark"] or "–",
            ]
        )
    columns = ["study", "experiment", "split", "metric", "published", "ours", "data of ours", "remark"]
    return Sheet("published figures", columns, rows, " · ".join(protocols(dict.fromkeys(table["study"]))))


def spread(value: float, low: float, high: float, sd: float) -> str:
    """Write a metric with its standard deviation and interval, where it has them."""
    if not np.isfinite(value):
        return "–"
    text = f"{value:.3f}" + (f" ± {sd:.3f}" if np.isfinite(sd) else "")
    return text + (f" ({low:.3f}–{high:.3f})" if np.isfinite(low) else "")


def signed(value: float, low: float, high: float) -> str:
    """Write a difference with its interval."""
    if not np.isfinite(value):
        return "–"
    return f"{value:+.3f}" + (f" ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else "")


def p_value(p: float) -> str:
    """Write a p-value: three digits, or that it is smaller."""
    return "–" if not np.isfinite(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "–"


def _plain(metric: str) -> str:
    return metric.replace("_", " ")


def warnings(found: Comparison) -> list[str]:
    """Return what nobody may overlook."""
    bands = [SYNTHETIC_WARNING] if found.synthetic else []
    if found.obstacle:
        bands.append(
            f"Nothing could be paired: {found.obstacle}. The figures stand side by side, but no test was made."
        )
    return bands + [f"Hard to compare: {line}." for line in found.differences]


def write_files(found: Comparison, folder: Path) -> list[Path]:
    """Write the page, tables as CSV and LaTeX, the list of runs, and the figures into a folder; return their paths."""
    (folder / artifacts.FIGURES).mkdir(parents=True, exist_ok=True)
    title = " against ".join(dict.fromkeys(cell.experiment for cell in found.cells))
    title = title if len(title) <= 90 else f"{len({cell.experiment for cell in found.cells})} experiments"
    note = SYNTHETIC_NOTE if found.synthetic else ""
    first = found.table[found.table["metric"] == found.metrics[0]]
    drawn = figures.draw_all(found.cells, first, found.metrics[0], title=f"{title} · {found.dataset}", note=note)
    pictures = []
    for name, figure in drawn.items():
        path = save(figure, folder / artifacts.figure_file(name))
        pictures.append(Picture(path, alt=f"{name.replace('_', ' ')} of the compared runs", caption=_CAPTIONS[name]))
    found.table.to_csv(folder / artifacts.COMPARISON_TABLE, index=False, float_format="%.9g")
    found.pairs.to_csv(folder / artifacts.COMPARISON_TESTS, index=False, float_format="%.9g")
    found.published.to_csv(folder / artifacts.COMPARISON_PUBLISHED, index=False, float_format="%.9g")
    runs = pd.DataFrame(
        {"experiment": cell.experiment, "split": run.params.get("split"), "seed": run.seed, "run_id": run.run_id}
        for cell in found.cells
        for run in cell.runs
    )
    runs.to_csv(folder / artifacts.COMPARED_RUNS, index=False)
    (folder / artifacts.COMPARISON_LATEX).write_text(_latex(found), encoding="utf-8")
    ids = [[str(value) for value in row] for row in runs.itertuples(index=False)]
    sections = [
        Section("Results", [Table(sheet.title, sheet.columns, sheet.rows, sheet.caption) for sheet in sheets(found)]),
        Section("Figures", pictures),
        Section("How to read this", [Text(_HOW_TO_READ)]),
        Section("Runs", [Table("", ["experiment", "split", "seed", "run"], ids)]),
    ]
    metrics = ", ".join(_plain(metric) for metric in found.metrics)
    footer = "Made by skincancer: research software, not a medical device."
    write_page(
        folder / artifacts.COMPARISON_PAGE,
        f"Comparison: {title}",
        f"{found.dataset}, {metrics}",
        sections,
        warnings(found),
        footer,
    )
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _latex(found: Comparison) -> str:
    """Return every table as LaTeX (booktabs), texts escaped."""
    parts = ["% \\usepackage{booktabs}"]
    for sheet in sheets(found):
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
