"""Load the runs of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlflow.entities import Run as MlflowRun
from rich.console import Console

from skincancer.comparison.entries import Cell, ComparedRun
from skincancer.comparison.predictions import load_scores
from skincancer.comparison.request import Request, Wanted, experiment_values, group_runs, run_query, split_and_seed
from skincancer.errors import ConfigError, DataError, RunError, nearest
from skincancer.runs.artifacts import predictions_file
from skincancer.runs.finished import FinishedRun
from skincancer.runs.search import find_runs
from skincancer.runs.store import RunStore
from skincancer.system.console import warn


def collect_entries(
    store: RunStore,
    wanted: Sequence[Wanted],
    by_hand: Sequence[MlflowRun],
    request: Request,
    metrics: Sequence[str],
    console: Console,
    progress: Callable[[int, int], None],
) -> list[Cell]:
    """Find the runs of every cell, and read them; say which are not there."""
    places: dict[tuple[str, str], list[MlflowRun]] = {
        (cell.experiment.name, cell.split): find_runs(store, request.dataset, run_query(cell, request))
        for cell in wanted
    }
    for place, runs in group_runs(by_hand, places).items():
        given = {split_and_seed(run) for run in runs}
        places[place] = [run for run in places.get(place, []) if split_and_seed(run) not in given] + runs
    missing = [f"{name} {split}" for (name, split), found in places.items() if not found]
    if len(missing) == len(places):
        raise RunError(
            f"no finished run of {', '.join(missing)} on {request.dataset} in {store}. "
            "Train them (--run-missing does), or give --runs RUN_ID …"
        )
    if missing:
        warn(console, "missing runs", f"not there yet, and left out: {', '.join(missing)}. --run-missing trains them.")
    shipped = {(cell.experiment.name, cell.split): experiment_values(cell.shipped) for cell in wanted}
    total, done, cells = sum(map(len, places.values())), 0, []
    for (name, split), found in places.items():
        loaded = []
        for run in found:
            loaded.append(load_run(store, run, metrics[0]))
            done += 1
            progress(done, total)
        if loaded:
            cells.append(Cell(name, split, tuple(loaded), shipped.get((name, split), {})))
    _check_classes(cells, metrics)
    return cells


def _check_classes(cells: Sequence[Cell], metrics: Sequence[str]) -> None:
    classes = [name for cell in cells for run in cell.runs for name in run.classes]
    for metric in metrics:
        name = metric.removeprefix("recall/")
        if name != metric and name not in classes:
            known = ", ".join(dict.fromkeys(classes))
            raise ConfigError(f"--metric is {metric!r}, but the classes are {known}.{nearest(name, classes)}")


def load_run(store: RunStore, run: MlflowRun, metric: str) -> ComparedRun:
    """Read a finished fit.

    Args:
        store: MLflow store of the run.
        run: as the search returned it.
        metric: metric of classes or of masks.

    Raises:
        RunError: predictions are missing, malformed or of another task, or the artifacts are gone.
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
            "Leave it out of --runs, or delete it (mlflow runs delete)."
        ) from error
