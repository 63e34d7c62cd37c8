"""Read, train where missing, compare and log the runs of a comparison."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from skincancer.comparison.load import collect_entries
from skincancer.comparison.report import sheets, warnings, write_files
from skincancer.comparison.request import (
    EntryRequest,
    Request,
    check_metrics,
    default_metrics,
    run_query,
    split_and_seed,
)
from skincancer.comparison.tables import Comparison, compare_entries
from skincancer.config.resolve import resolve
from skincancer.engines.run_orders import fit_order, raise_failures, run_orders
from skincancer.plugins import load_plugins
from skincancer.runs.artifacts import COMPARED_RUNS, COMPARISON_PAGE
from skincancer.runs.finished import FinishedRun
from skincancer.runs.lifecycle import start_run
from skincancer.runs.search import find_runs, runs_by_id
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.system.console import make_table, progress_bars, warn

# MLflow keeps 8,000 characters of a tag; a link has about a hundred.
_MOST_LINKS = 50
_MOST_TAG = 7000


def compare_requests(
    request: Request, requests: Sequence[EntryRequest], run_missing: bool, out: Path | None, console: Console
) -> tuple[str, Comparison]:
    """Compare the runs of resolved entries. Arguments are as in `skincancer.compare.compare`."""
    store = RunStore(request.uri)
    explicit_runs = runs_by_id(store, request.runs)
    for run in explicit_runs:
        load_plugins(FinishedRun(run.info.run_id, store, run).config.get("plugins", ()))
    check_metrics(request.metrics)
    tasks = [entry.experiment.task for entry in requests] + [run.data.params["task"] for run in explicit_runs]
    metrics = tuple(dict.fromkeys(request.metrics)) or default_metrics(tasks)
    store.check_experiment(
        f"{request.dataset_name if requests else explicit_runs[0].data.params.get('dataset')}-{tasks[0]}"
    )
    if run_missing:
        _train_missing(store, requests, request, console)
    with progress_bars(console) as bars:
        entries = collect_entries(store, requests, explicit_runs, request, metrics, console, bars("reading runs"))
    dataset = request.dataset_name if requests else entries[0].runs[0].params["dataset"]
    comparison = compare_entries(entries, metrics, dataset)
    return _log(store, comparison, out, console), comparison


def _train_missing(store: RunStore, requests: Sequence[EntryRequest], request: Request, console: Console) -> None:
    """Train all missing runs, and report failures at the end."""
    missing: list[Experiment] = []
    for entry in requests:
        query = run_query(entry, request)
        existing = {split_and_seed(run) for run in find_runs(store, request.dataset_name, query)}
        for seed in request.seeds or sorted({seed for _, seed in existing}) or (entry.experiment.seed,):
            for split in query.splits():
                if (split, seed) not in existing:
                    flags = {"data.dataset": request.dataset, "data.split": split, "seed": seed, **request.flags}
                    missing.append(resolve(entry.path, flags)[0])
    if not missing:
        return
    console.print(f"training {len(missing)} missing runs", markup=False)
    finished = run_orders(
        [fit_order(number, experiment) for number, experiment in enumerate(missing)],
        [f"{experiment.name} {experiment.data.split} s{experiment.seed}" for experiment in missing],
        request.resources, store, missing[0].trainer.accelerator,
        lambda text: console.print(text, markup=False),
    )  # fmt: skip
    raise_failures(finished, "missing runs")


def _log(store: RunStore, comparison: Comparison, out: Path | None, console: Console) -> str:
    """Print the comparison and log it as a run of kind compare."""
    names = list(dict.fromkeys(entry.experiment for entry in comparison.entries))
    splits = list(dict.fromkeys(entry.split for entry in comparison.entries))
    runs = [run for entry in comparison.entries for run in entry.runs]
    group = f"{comparison.dataset}-{runs[0].params['task']}"
    ids = " ".join(run.run_id for run in runs)
    tags = {
        "kind": "compare", "synthetic": str(comparison.synthetic).lower(),
        "compared_runs": ids if len(ids) <= _MOST_TAG else f"see {COMPARED_RUNS}", "mlflow.note.content": _links(comparison),
    }  # fmt: skip
    title = f"compare {_short(names)} {' '.join(splits)}"
    with start_run(store, group, title, tags, system_metrics=False) as run:
        run.log_params(
            {
                "experiments": _short(names), "splits": " ".join(splits), "dataset": comparison.dataset,
                "metric": " ".join(comparison.metrics), "compared": len(runs),
                "common_images": int(comparison.table["common_images"].iloc[0]),
            }
        )  # fmt: skip
        for path in write_files(comparison, run.folder, console):
            run.log_file(str(path.relative_to(run.folder)))
        if out is not None:
            shutil.copytree(run.folder, out, dirs_exist_ok=True)
    for sheet in sheets(comparison):
        console.print(make_table(sheet.title, sheet.columns, sheet.rows, sheet.caption))
    if bands := warnings(comparison):
        warn(console, "read these warnings before you use the values", "\n".join(bands))
    where = f"{run.record.info.artifact_uri if out is None else out}/{COMPARISON_PAGE}"
    console.print(f"run {run.run_id} in {group}\n{where}", markup=False)
    return run.run_id


def _links(comparison: Comparison) -> str:
    """Return links to the compared runs for the UI of MLflow."""
    lines = [
        f"- [{entry.experiment} {entry.split} s{run.seed}](#/experiments/{run.experiment_id}/runs/{run.run_id})"
        for entry in comparison.entries
        for run in entry.runs
    ]
    more = len(lines) - _MOST_LINKS
    rest = f"\n- and {more} more: {COMPARED_RUNS}" if more > 0 else ""
    return "Compared runs\n\n" + "\n".join(lines[:_MOST_LINKS]) + rest


def _short(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 200 else f"{len(names)} experiments"
