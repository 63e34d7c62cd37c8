"""Compare finished runs, and train missing ones on request.

`python -m skincancer.compare --experiments A B --splits 80:20 70:30 40:60`
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skincancer.comparison.request import (
    EntryRequest,
    Request,
    check_metrics,
    default_metrics,
    resolve_entry,
    run_query,
)
from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.experiments import list_experiments
from skincancer.errors import ConfigError, RunError
from skincancer.plugins import load_plugins
from skincancer.runs.artifacts import COMPARED_RUNS, COMPARISON_PAGE
from skincancer.system.console import make_console, make_table, program, progress_bars, run_verb, warn
from skincancer.system.credentials import hide
from skincancer.system.files import check_folder
from skincancer.system.interrupts import Interrupted, signals_as_interrupts

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from skincancer.comparison.tables import Comparison
    from skincancer.runs.store import RunStore


_INSTEAD = {"data.split": "--splits", "seed": "--seeds", "data.dataset": "--dataset"}
# MLflow keeps 8,000 characters of a tag; a link has about a hundred.
_MOST_LINKS = 50
_MOST_TAG = 7000


def compare(
    request: Request, *, run_missing: bool = False, out: Path | None = None, console: Console | None = None
) -> tuple[str, Comparison]:
    """Compare finished fits, print the comparison and log it as a run.

    Args:
        request: experiments, splits, metrics and runs to compare.
        run_missing: whether to train missing runs, one after the other, each in its own process.
        out: additional folder for the files.
        console: console for the tables.

    Returns:
        The id of the logged run, and the comparison.

    Raises:
        ConfigError: an experiment, split, metric or key is unknown.
        RunError: there is no run, a run cannot be compared, or training of a missing run failed.
    """
    requests = [resolve_entry(name, split, request) for name in request.experiments for split in request.splits]
    # The plugins of explicit runs may define metrics, so check those below.
    if not request.runs:
        check_metrics(request.metrics)
    if out is not None:
        check_folder(out, "--out")
    from skincancer.comparison.load import collect_entries
    from skincancer.comparison.tables import compare_entries
    from skincancer.runs.finished import FinishedRun
    from skincancer.runs.search import runs_by_id
    from skincancer.runs.store import RunStore

    console = console or make_console()
    store = RunStore(request.uri)
    explicit_runs = runs_by_id(store, request.runs)
    for run in explicit_runs:
        load_plugins(FinishedRun(run.info.run_id, store, run).config.get("plugins", ()))
    check_metrics(request.metrics)
    tasks = [entry.experiment.task for entry in requests] + [run.data.params["task"] for run in explicit_runs]
    metrics = tuple(dict.fromkeys(request.metrics)) or default_metrics(tasks)
    if run_missing:
        _train_missing(store, requests, request, console)
    with progress_bars(console) as bars:
        entries = collect_entries(store, requests, explicit_runs, request, metrics, console, bars("reading runs"))
    dataset = request.dataset if requests else entries[0].runs[0].params["dataset"]
    comparison = compare_entries(entries, metrics, dataset)
    return _log(store, comparison, out, console), comparison


def _train_missing(store: RunStore, requests: Sequence[EntryRequest], request: Request, console: Console) -> None:
    """Train all missing runs, and report failures at the end."""
    from skincancer.runs.search import find_runs

    failed = []
    for entry in requests:
        query = run_query(entry, request)
        existing = {
            (run.data.params["split"], int(run.data.params["seed"])) for run in find_runs(store, request.dataset, query)
        }
        for seed in request.seeds or sorted({seed for _, seed in existing}) or (entry.experiment.seed,):
            for split in query.splits():
                if (split, seed) in existing:
                    continue
                command = _fit_command(entry, split, seed, request)
                line = hide(shlex.join(["python", *command[1:]]))
                console.print(f"training: {line}", markup=False)
                if code := _run(command):
                    failed.append(f"{line}: exit code {code}")
    if failed:
        raise RunError(
            f"{len(failed)} missing runs could not be trained. The others are finished; fix the cause and rerun the same command:\n  "
            + "\n  ".join(failed)
        )


def _fit_command(entry: EntryRequest, split: str, seed: int, request: Request) -> list[str]:
    flags = {"data.dataset": request.dataset, "data.split": split, "seed": seed, **request.flags}
    if request.uri:
        flags["tracking.uri"] = request.uri
    texts = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flags.items()]
    return [sys.executable, "-m", "skincancer.fit", "--experiment", entry.path, *texts]


def _run(command: Sequence[str]) -> int:
    """Run a fit, pass signals on to the fit, and wait."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except Interrupted as interrupt:
        process.send_signal(interrupt.signum)
        process.wait()
        raise


def _log(store: RunStore, comparison: Comparison, out: Path | None, console: Console) -> str:
    """Print the comparison and log it as a run of kind compare."""
    from skincancer.comparison.report import sheets, warnings, write_files
    from skincancer.runs.lifecycle import start_run

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
        for path in write_files(comparison, run.folder):
            run.log_file(str(path.relative_to(run.folder)))
        if out is not None:
            shutil.copytree(run.folder, out, dirs_exist_ok=True)
    for sheet in sheets(comparison):
        console.print(make_table(sheet.title, sheet.columns, sheet.rows, sheet.caption))
    if bands := warnings(comparison):
        warn(console, "before these figures are used", "\n".join(bands))
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


def make_parser() -> ArgumentParser:
    """Return the parser of the flags of compare."""
    parser = build_parser(
        program("compare"), "Compare finished runs. --KEY VALUE selects runs by a value of their config."
    )
    parser.usage = "%(prog)s --experiments A B … [--splits 80:20 …] [--dataset NAME] [--KEY VALUE …]"
    parser.add_argument("--experiments", type=str, nargs="+", metavar="NAME", help="names or paths of experiments")
    parser.add_argument("--splits", type=str, nargs="+", help="splits (default 80:20); fold:*/5 pools five folds")
    parser.add_argument("--dataset", type=str, help="data set of the runs (default demo)")
    parser.add_argument("--metric", type=str, nargs="+", help="metrics (default balanced_accuracy, for masks jaccard)")
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds (default: all existing ones)")
    parser.add_argument(
        "--runs", type=str, nargs="+", metavar="RUN_ID", help="explicit runs; they replace others of the same seed"
    )
    parser.add_argument("--run_missing", action="store_true", help="train missing runs, one after the other")
    parser.add_argument("--out", type=str, metavar="DIR", help="additional folder for page, tables and figures")
    return parser


def _verb(argv: Sequence[str]) -> None:
    flags, own = parse_flags(make_parser(), ["--run_missing" if flag == "--run-missing" else flag for flag in argv])
    if own.get("experiment") or own.get("list"):
        raise ConfigError("--experiment and --list are not flags of compare; use --experiments A B … (see fit --list).")
    uri = flags.pop("tracking.uri", None)
    dataset = flags.pop("data.dataset", None)
    if dataset and own.get("dataset") not in (None, dataset):
        raise ConfigError(f"--dataset {own['dataset']} and --data.dataset {dataset} contradict each other; use one.")
    for key, instead in _INSTEAD.items():
        if key in flags:
            raise ConfigError(f"--{key} is not a flag of compare; use {instead}.")
    if not own.get("experiments") and not own.get("runs"):
        raise ConfigError(
            f"--experiments is missing; use paths or names of {', '.join(list_experiments())}; or use --runs RUN_ID …"
        )
    request = Request(
        experiments=tuple(dict.fromkeys(own.get("experiments") or ())), splits=tuple(dict.fromkeys(own.get("splits") or ("80:20",))),
        dataset=own.get("dataset") or dataset or "demo", metrics=tuple(own.get("metric") or ()),
        seeds=tuple(own["seeds"]) if own.get("seeds") else None, runs=tuple(own.get("runs") or ()), flags=flags, uri=uri,
    )  # fmt: skip
    with signals_as_interrupts():
        compare(request, run_missing=bool(own.get("run_missing")), out=Path(own["out"]) if own.get("out") else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
