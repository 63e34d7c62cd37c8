"""Runs side by side: `python -m skincancer.compare --experiments A B --splits 80:20 70:30 40:60`; trains what is missing if asked."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer import config
from skincancer.addresses import hide, shown
from skincancer.environment import git_tags
from skincancer.errors import ConfigError, RunError, nearest
from skincancer.files import check_folder
from skincancer.schema import Experiment
from skincancer.terminal import (
    Interrupted,
    make_console,
    make_table,
    progress_bars,
    run_verb,
    signals_as_interrupts,
    warn,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from mlflow.entities import Run as MlflowRun
    from mlflow.tracking import MlflowClient
    from rich.console import Console

    from skincancer.evaluation.cells import Cell
    from skincancer.evaluation.comparison import Comparison
    from skincancer.evaluation.runs import Query

DEFAULT_METRICS = {"classification": "balanced_accuracy", "joint": "balanced_accuracy", "segmentation": "jaccard"}
_INSTEAD = {"data.split": "--splits", "seed": "--seeds", "data.dataset": "--dataset"}
_MOST_LINKS = 50  # about a hundred characters each, of the 8,000 that MLflow keeps of a tag
_MOST_TAG = 7000  # characters; MLflow takes 8,000


@dataclass(frozen=True)
class Request:
    """What to compare.

    Args:
        experiments: names or paths.
        splits: as `data.split`; `fold:*/k` stands for all k folds, pooled.
        dataset: the catalog's name.
        metrics: tests and figures are of the first; none takes the task's own.
        seeds: those to take; None takes all that are there (and, of what is to be trained, the experiment's own).
        runs: ids of runs given by hand: they go before those found, or are all if there are no experiments.
        flags: dotted keys that the runs' configs must have, and that missing ones are trained with.
        uri: the tracking store.
    """

    experiments: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("80:20",)
    dataset: str = "demo"
    metrics: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    runs: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    uri: str | None = None


@dataclass(frozen=True)
class Wanted:
    """One cell of the table: an experiment as it resolves at a split."""

    given: str  # name or path, for fit
    split: str
    experiment: Experiment
    shipped: Experiment  # without the request's flags


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
    wanted = [_resolve(name, split, request) for name in request.experiments for split in request.splits]
    _check_metrics(request.metrics)
    if out is not None:
        check_folder(out, "--out")
    from skincancer import tracking
    from skincancer.evaluation.comparison import compare_cells
    from skincancer.evaluation.runs import runs_by_id

    console = console or make_console()
    client = tracking.connect(request.uri)
    by_hand = runs_by_id(client, request.runs)
    tasks = [cell.experiment.task for cell in wanted] + [run.data.params["task"] for run in by_hand]
    metrics = tuple(dict.fromkeys(request.metrics)) or _default_metric(tasks)
    if run_missing:
        _train_missing(client, wanted, request, console)
    with progress_bars(console) as bars:
        cells = _collect(client, wanted, by_hand, request, metrics, console, bars("reading runs"))
    # of runs given by hand alone, the data set is theirs
    dataset = request.dataset if wanted else cells[0].runs[0].params["dataset"]
    found = compare_cells(cells, metrics, dataset)
    return _log(client, found, out, console)


def _resolve(name: str, split: str, request: Request) -> Wanted:
    """Resolve an experiment at a split (of folds at the first), which checks all that can be known without data."""
    places = {"data.dataset": request.dataset, "data.split": split.replace("fold:*/", "fold:0/")}
    experiment, _ = config.resolve(name, {**request.flags, **places})
    shipped, _ = config.resolve(name, places)
    return Wanted(name, split, experiment, shipped)


def _check_metrics(metrics: Sequence[str]) -> None:
    from skincancer.evaluation.masks import MASK_METRICS
    from skincancer.evaluation.metrics import METRICS
    from skincancer.evaluation.scores import is_mask_metric

    masks = [*MASK_METRICS, *(f"mask_{name}" for name in MASK_METRICS)]
    for metric in metrics:
        if metric not in (*METRICS, *masks) and not metric.startswith("recall/"):
            allowed = (*METRICS, "recall/CLASS", *masks)
            raise ConfigError(
                f"--metric is {metric!r}; choose from {', '.join(allowed)}.{nearest(metric, [*METRICS, *masks])}"
            )
    if len({is_mask_metric(metric) for metric in metrics}) > 1:
        raise ConfigError(
            f"--metric {' '.join(metrics)}: some are of masks and some of classes; compare them in two calls (a joint run "
            "takes both; its masks' metrics begin with mask_)."
        )


def _default_metric(tasks: Sequence[str]) -> tuple[str]:
    defaults = list(dict.fromkeys(DEFAULT_METRICS[task] for task in tasks))
    if len(defaults) != 1:
        raise ConfigError(
            f"the tasks are {', '.join(dict.fromkeys(tasks))}, which have no metric in common. Compare runs of one kind, or give --metric: "
            "of classes, or of masks."
        )
    return (defaults[0],)


def _query(cell: Wanted, request: Request) -> Query:
    from skincancer.evaluation.runs import Query

    data = cell.experiment.data
    params = {"target": data.target, "split_seed": str(data.split_seed), "task": cell.experiment.task}
    own = config.flatten(cell.experiment.to_dict())
    # where a file lies, and where runs are written, is no part of a method
    settings = {key: own[key] for key in request.flags if key != "data.root" and not key.startswith("tracking.")}
    return Query(cell.experiment.name, cell.split, params, settings, request.seeds)


def _train_missing(client: MlflowClient, wanted: Sequence[Wanted], request: Request, console: Console) -> None:
    """Train what is not there; go on after a failure, and tell of all at the end."""
    from skincancer.evaluation.runs import find_runs

    failed = []
    for cell in wanted:
        query = _query(cell, request)
        there = {
            (run.data.params["split"], int(run.data.params["seed"]))
            for run in find_runs(client, request.dataset, query)
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


def _said(shipped: Experiment) -> dict[str, Any]:
    """Return what an experiment says, in dotted keys, as the params of its runs have it."""
    said = config.flatten(shipped.to_dict()) | {"model.backbone": shipped.model.learner}
    if shipped.model.is_hand_made:
        del said["data.size"]  # features are measured at a size of their own
    return said


def _collect(
    client: MlflowClient,
    wanted: Sequence[Wanted],
    by_hand: Sequence[MlflowRun],
    request: Request,
    metrics: Sequence[str],
    console: Console,
    progress: Callable[[int, int], None],
) -> list[Cell]:
    """Find the runs of every cell, and read them; say which are not there."""
    from skincancer.evaluation.cells import Cell
    from skincancer.evaluation.runs import find_runs, load_run

    places: dict[tuple[str, str], list[MlflowRun]] = {
        (cell.experiment.name, cell.split): find_runs(client, request.dataset, _query(cell, request)) for cell in wanted
    }
    for place, runs in _by_place(by_hand, places).items():
        given = {_key(run) for run in runs}
        places[place] = [run for run in places.get(place, []) if _key(run) not in given] + runs
    missing = [f"{name} {split}" for (name, split), found in places.items() if not found]
    if len(missing) == len(places):
        raise RunError(
            f"no finished run of {', '.join(missing)} on {request.dataset} in {shown(client.tracking_uri)}. "
            "Train them (--run-missing does), or give --runs RUN_ID …"
        )
    if missing:
        warn(console, "missing runs", f"not there yet, and left out: {', '.join(missing)}. --run-missing trains them.")
    shipped = {(cell.experiment.name, cell.split): _said(cell.shipped) for cell in wanted}
    total, done, cells = sum(map(len, places.values())), 0, []
    for (name, split), found in places.items():
        loaded = []
        for run in found:
            loaded.append(load_run(client, run, metrics[0]))
            done += 1
            progress(done, total)
        if loaded:
            cells.append(Cell(name, split, tuple(loaded), shipped.get((name, split), {})))
    _check_classes(cells, metrics)
    return cells


def _key(run: MlflowRun) -> tuple[str, int]:
    return run.data.params["split"], int(run.data.params["seed"])


def _by_place(
    runs: Sequence[MlflowRun], places: Mapping[tuple[str, str], Any]
) -> dict[tuple[str, str], list[MlflowRun]]:
    """Group runs given by hand by experiment and split; those that differ by neither, nor by seed, are told apart by their ids."""
    named = Counter((run.data.params["experiment"], *_key(run)) for run in runs)
    grouped: dict[tuple[str, str], list[MlflowRun]] = {}
    for run in runs:
        name, (split, seed) = run.data.params["experiment"], _key(run)
        folds = "fold:*/" + split.rpartition("/")[2]
        if named[name, split, seed] > 1:
            name = f"{name} {run.info.run_id[:8]}"
        grouped.setdefault((name, folds if (name, folds) in places else split), []).append(run)
    return grouped


def _check_classes(cells: Sequence[Cell], metrics: Sequence[str]) -> None:
    classes = [name for cell in cells for run in cell.runs for name in run.classes]
    for metric in metrics:
        name = metric.removeprefix("recall/")
        if name != metric and name not in classes:
            known = ", ".join(dict.fromkeys(classes))
            raise ConfigError(f"--metric is {metric!r}, but the classes are {known}.{nearest(name, classes)}")


def _log(client: MlflowClient, found: Comparison, out: Path | None, console: Console) -> str:
    """Print the comparison, and write it down as a run of kind compare."""
    import shutil

    from skincancer import tracking
    from skincancer.evaluation.compare_pages import sheets, warnings, write_files

    names = list(dict.fromkeys(cell.experiment for cell in found.cells))
    splits = list(dict.fromkeys(cell.split for cell in found.cells))
    runs = [run for cell in found.cells for run in cell.runs]
    group = f"{found.dataset}-{runs[0].params['task']}"
    ids = " ".join(run.run_id for run in runs)
    tags = {
        "kind": "compare", **git_tags(), "synthetic": str(found.synthetic).lower(),
        "compared_runs": ids if len(ids) <= _MOST_TAG else "see runs.csv", "mlflow.note.content": _links(found),
    }  # fmt: skip
    title = f"compare {_short(names)} {' '.join(splits)}"
    with tracking.start_run(client, group, title, tags, system_metrics=False) as run:
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
    where = out / "compare.html" if out is not None else client.get_run(run.run_id).info.artifact_uri + "/compare.html"
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
    return "Compared runs\n\n" + "\n".join(lines[:_MOST_LINKS]) + (f"\n- and {more} more: runs.csv" if more > 0 else "")


def _short(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 200 else f"{len(names)} experiments"


def _add_flags(parser: ArgumentParser) -> None:
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


def _verb(argv: Sequence[str]) -> None:
    parser = config.build_parser(
        "python -m skincancer.compare",
        "Finished runs side by side. Any --KEY VALUE keeps to runs whose config has that value.",
    )
    parser.usage = "%(prog)s --experiments A B … [--splits 80:20 …] [--dataset NAME] [--KEY VALUE …]"
    _add_flags(parser)
    flags, own = config.parse_flags(parser, ["--run_missing" if flag == "--run-missing" else flag for flag in argv])
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
            f"give --experiments NAME …, of {', '.join(config.list_experiments())}, or paths; or --runs RUN_ID …"
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
