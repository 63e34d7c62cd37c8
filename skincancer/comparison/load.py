"""Load the runs of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlflow.entities import Run as MlflowRun
from rich.console import Console

from skincancer.comparison.entries import ComparedRun, Entry
from skincancer.comparison.predictions import load_scores
from skincancer.comparison.request import (
    EntryRequest,
    Request,
    experiment_values,
    group_runs,
    run_query,
    split_and_seed,
)
from skincancer.errors import ConfigError, DataError, RunError, nearest
from skincancer.runs.artifacts import predictions_file
from skincancer.runs.finished import FinishedRun
from skincancer.runs.search import find_runs
from skincancer.runs.store import RunStore
from skincancer.system.console import warn


def collect_entries(
    store: RunStore,
    requests: Sequence[EntryRequest],
    explicit_runs: Sequence[MlflowRun],
    request: Request,
    metrics: Sequence[str],
    console: Console,
    progress: Callable[[int, int], None],
) -> list[Entry]:
    """Find and read the runs of every entry, and warn of missing ones."""
    places: dict[tuple[str, str], list[MlflowRun]] = {
        (entry.experiment.name, entry.split): find_runs(store, request.dataset_name, run_query(entry, request))
        for entry in requests
    }
    for place, runs in group_runs(explicit_runs, places).items():
        replaced = {split_and_seed(run) for run in runs}
        places[place] = [run for run in places.get(place, []) if split_and_seed(run) not in replaced] + runs
    missing = [f"{name} {split}" for (name, split), runs in places.items() if not runs]
    if len(missing) == len(places):
        raise RunError(
            f"no finished run of {', '.join(missing)} on {request.dataset_name} in {store}. "
            "Train them (use --run-missing), or use --runs RUN_ID …"
        )
    if missing:
        warn(console, "missing runs", f"{', '.join(missing)} are left out; use --run-missing to train them.")
    shipped = {(entry.experiment.name, entry.split): experiment_values(entry.shipped) for entry in requests}
    total, done, entries = sum(map(len, places.values())), 0, []
    for (name, split), runs in places.items():
        loaded = []
        for run in runs:
            loaded.append(load_run(store, run, metrics[0]))
            done += 1
            progress(done, total)
        if loaded:
            entries.append(Entry(name, split, tuple(loaded), shipped.get((name, split), {})))
    _check_classes(entries, metrics)
    return entries


def _check_classes(entries: Sequence[Entry], metrics: Sequence[str]) -> None:
    classes = [name for entry in entries for run in entry.runs for name in run.classes]
    for metric in metrics:
        name = metric.removeprefix("recall/")
        if name != metric and name not in classes:
            known = ", ".join(dict.fromkeys(classes))
            raise ConfigError(f"--metric is {metric!r}, but the classes are {known}.{nearest(name, classes)}")


def load_run(store: RunStore, run: MlflowRun, metric: str) -> ComparedRun:
    """Read a finished fit for a metric of classes or of masks.

    Raises:
        RunError: predictions are missing, malformed or of another task.
    """
    finished = FinishedRun(run.info.run_id, store, run)
    try:
        scores = load_scores(finished.file(predictions_file("test")), finished.classes, metric)
        return ComparedRun(
            finished.id, run.info.experiment_id, finished.params, finished.tags, finished.metrics, finished.classes, scores,
            finished.epochs,
        )  # fmt: skip
    except (DataError, ValueError, KeyError) as error:
        raise RunError(
            f"run {finished.id} ({run.info.run_name}) cannot be compared by {metric}: {error} "
            "Remove it from --runs, or delete it (mlflow runs delete)."
        ) from error
