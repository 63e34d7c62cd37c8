"""Runs side by side: `python -m skincancer.compare --experiments A B --splits 80:20 70:30 40:60`; trains what is missing if asked."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skincancer.comparison.request import Request, Wanted, check_metrics, default_metrics, resolve_entry, run_query
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
_MOST_LINKS = 50  # about a hundred characters each, of the 8,000 that MLflow keeps of a tag
_MOST_TAG = 7000  # characters; MLflow takes 8,000


def compare(
    request: Request, *, run_missing: bool = False, out: Path | None = None, console: Console | None = None
) -> str:
    """Compare finished fits; print, and log the comparison as a run of its own; return its id.

    Args:
        request: what to compare.
        run_missing: train what is not there yet, one after the other, each in a process of its own.
        out: a folder that gets the files too.
        console: where to print.

    Raises:
        ConfigError: unknown experiment, split, metric or key.
        RunError: nothing is there to compare, a run cannot be compared, or a missing one could not be trained.
    """
    wanted = [resolve_entry(name, split, request) for name in request.experiments for split in request.splits]
    if not request.runs:  # the plugins of runs may have metrics too
        check_metrics(request.metrics)
    if out is not None:
        check_folder(out, "--out")
    from skincancer.comparison.load import collect_entries
    from skincancer.comparison.tables import compare_cells
    from skincancer.runs.finished import FinishedRun
    from skincancer.runs.search import runs_by_id
    from skincancer.runs.store import RunStore

    console = console or make_console()
    store = RunStore(request.uri)
    by_hand = runs_by_id(store, request.runs)
    for run in by_hand:
        load_plugins(FinishedRun(run.info.run_id, store, run).config.get("plugins", ()))
    check_metrics(request.metrics)
    tasks = [cell.experiment.task for cell in wanted] + [run.data.params["task"] for run in by_hand]
    metrics = tuple(dict.fromkeys(request.metrics)) or default_metrics(tasks)
    if run_missing:
        _train_missing(store, wanted, request, console)
    with progress_bars(console) as bars:
        cells = collect_entries(store, wanted, by_hand, request, metrics, console, bars("reading runs"))
    # of runs given by hand alone, the data set is theirs
    dataset = request.dataset if wanted else cells[0].runs[0].params["dataset"]
    found = compare_cells(cells, metrics, dataset)
    return _log(store, found, out, console)


def _train_missing(store: RunStore, wanted: Sequence[Wanted], request: Request, console: Console) -> None:
    """Train what is not there; go on after a failure, and tell of all at the end."""
    from skincancer.runs.search import find_runs

    failed = []
    for cell in wanted:
        query = run_query(cell, request)
        there = {
            (run.data.params["split"], int(run.data.params["seed"])) for run in find_runs(store, request.dataset, query)
        }
        for seed in request.seeds or sorted({seed for _, seed in there}) or (cell.experiment.seed,):
            for split in query.splits():
                if (split, seed) in there:
                    continue
                command = _fit_command(cell, split, seed, request)
                told = hide(shlex.join(["python", *command[1:]]))
                console.print(f"training: {told}", markup=False)
                if code := _run(command):
                    failed.append(f"{told}: exit code {code}")
    if failed:
        raise RunError(
            f"{len(failed)} missing runs could not be trained; the others are finished, and the same command goes on from there:\n  "
            + "\n  ".join(failed)
        )


def _fit_command(cell: Wanted, split: str, seed: int, request: Request) -> list[str]:
    flags = {"data.dataset": request.dataset, "data.split": split, "seed": seed, **request.flags}
    if request.uri:
        flags["tracking.uri"] = request.uri
    texts = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flags.items()]
    return [sys.executable, "-m", "skincancer.fit", "--experiment", cell.given, *texts]


def _run(command: Sequence[str]) -> int:
    """Run a fit and wait for it; a signal to this process reaches it too."""
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except Interrupted as interrupt:
        process.send_signal(interrupt.signum)
        process.wait()
        raise


def _log(store: RunStore, found: Comparison, out: Path | None, console: Console) -> str:
    """Print the comparison and log it as a run of kind compare."""
    from skincancer.comparison.report import sheets, warnings, write_files
    from skincancer.runs.lifecycle import start_run

    names = list(dict.fromkeys(cell.experiment for cell in found.cells))
    splits = list(dict.fromkeys(cell.split for cell in found.cells))
    runs = [run for cell in found.cells for run in cell.runs]
    group = f"{found.dataset}-{runs[0].params['task']}"
    ids = " ".join(run.run_id for run in runs)
    tags = {
        "kind": "compare", "synthetic": str(found.synthetic).lower(),
        "compared_runs": ids if len(ids) <= _MOST_TAG else f"see {COMPARED_RUNS}", "mlflow.note.content": _links(found),
    }  # fmt: skip
    title = f"compare {_short(names)} {' '.join(splits)}"
    with start_run(store, group, title, tags, system_metrics=False) as run:
        run.log_params(
            {
                "experiments": _short(names), "splits": " ".join(splits), "dataset": found.dataset, "metric": " ".join(found.metrics),
                "compared": len(runs), "common_images": int(found.table["common_images"].iloc[0]),
            }
        )  # fmt: skip
        for path in write_files(found, run.folder):
            run.log_file(str(path.relative_to(run.folder)))
        if out is not None:
            shutil.copytree(run.folder, out, dirs_exist_ok=True)
    for sheet in sheets(found):
        console.print(make_table(sheet.title, sheet.columns, sheet.rows, sheet.caption))
    if bands := warnings(found):
        warn(console, "before these figures are used", "\n".join(bands))
    where = f"{run.record.info.artifact_uri if out is None else out}/{COMPARISON_PAGE}"
    console.print(f"run {run.run_id} in {group}\n{where}", markup=False)
    return run.run_id


def _links(found: Comparison) -> str:
    """Return the run's description: links to the compared runs, as the UI of MLflow reads them."""
    lines = [
        f"- [{cell.experiment} {cell.split} s{run.seed}](#/experiments/{run.experiment_id}/runs/{run.run_id})"
        for cell in found.cells
        for run in cell.runs
    ]
    more = len(lines) - _MOST_LINKS
    rest = f"\n- and {more} more: {COMPARED_RUNS}" if more > 0 else ""
    return "Compared runs\n\n" + "\n".join(lines[:_MOST_LINKS]) + rest


def _short(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 200 else f"{len(names)} experiments"


def make_parser() -> ArgumentParser:
    """Return the parser of compare's flags."""
    parser = build_parser(
        program("compare"), "Finished runs side by side. Any --KEY VALUE keeps to runs whose config has that value."
    )
    parser.usage = "%(prog)s --experiments A B … [--splits 80:20 …] [--dataset NAME] [--KEY VALUE …]"
    parser.add_argument("--experiments", type=str, nargs="+", metavar="NAME", help="names or paths of experiments")
    parser.add_argument(
        "--splits", type=str, nargs="+", metavar="SPLIT", help="default 80:20; fold:*/5 pools five folds"
    )
    parser.add_argument("--dataset", type=str, help="the data set of the runs (default demo)")
    parser.add_argument(
        "--metric", type=str, nargs="+", help="default balanced_accuracy, of masks jaccard; tests are of each"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds (default: all that are there)")
    parser.add_argument(
        "--runs", type=str, nargs="+", metavar="RUN_ID", help="runs given by hand; they go before those found"
    )
    parser.add_argument("--run_missing", action="store_true", help="train what is not there yet, one after the other")
    parser.add_argument("--out", type=str, metavar="DIR", help="a folder that gets page, tables and figures too")
    return parser


def _verb(argv: Sequence[str]) -> None:
    flags, own = parse_flags(make_parser(), ["--run_missing" if flag == "--run-missing" else flag for flag in argv])
    if own.get("experiment") or own.get("list"):
        raise ConfigError("compare takes --experiments A B …; python -m skincancer.fit --list names them.")
    uri = flags.pop("tracking.uri", None)
    dataset = flags.pop("data.dataset", None)
    if dataset and own.get("dataset") not in (None, dataset):
        raise ConfigError(f"--dataset {own['dataset']} and --data.dataset {dataset} contradict each other; give one.")
    for key, instead in _INSTEAD.items():
        if key in flags:
            raise ConfigError(f"--{key} is given; compare takes {instead}.")
    if not own.get("experiments") and not own.get("runs"):
        raise ConfigError(
            f"give --experiments NAME …, of {', '.join(list_experiments())}, or paths; or --runs RUN_ID …"
        )
    request = Request(
        experiments=tuple(dict.fromkeys(own.get("experiments") or ())), splits=tuple(dict.fromkeys(own.get("splits") or ("80:20",))),
        dataset=own.get("dataset") or dataset or "demo", metrics=tuple(own.get("metric") or ()),
        seeds=tuple(own["seeds"]) if own.get("seeds") else None, runs=tuple(own.get("runs") or ()), flags=flags, uri=uri,
    )  # fmt: skip
    with signals_as_interrupts():
        compare(request, run_missing=bool(own.get("run_missing")), out=Path(own["out"]) if own.get("out") else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
