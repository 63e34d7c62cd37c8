"""Load the runs of a comparison."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient

from skincancer.comparison.entries import ComparedRun
from skincancer.comparison.predictions import load_scores
from skincancer.comparison.request import Request, Wanted, experiment_values, group_runs, run_query, split_and_seed
from skincancer.errors import ConfigError, DataError, RunError, nearest
from skincancer.runs.artifacts import download
from skincancer.system.console import warn
from skincancer.system.credentials import shown

if TYPE_CHECKING:
    from rich.console import Console

    from skincancer.comparison.entries import Cell


def collect_entries(
    client: MlflowClient,
    wanted: Sequence[Wanted],
    by_hand: Sequence[MlflowRun],
    request: Request,
    metrics: Sequence[str],
    console: Console,
    progress: Callable[[int, int], None],
) -> list[Cell]:
    """Find the runs of every cell, and read them; say which are not there."""
    from skincancer.comparison.entries import Cell
    from skincancer.runs.search import find_runs

    places: dict[tuple[str, str], list[MlflowRun]] = {
        (cell.experiment.name, cell.split): find_runs(client, request.dataset, run_query(cell, request))
        for cell in wanted
    }
    for place, runs in group_runs(by_hand, places).items():
        given = {split_and_seed(run) for run in runs}
        places[place] = [run for run in places.get(place, []) if split_and_seed(run) not in given] + runs
    missing = [f"{name} {split}" for (name, split), found in places.items() if not found]
    if len(missing) == len(places):
        raise RunError(
            f"no finished run of {', '.join(missing)} on {request.dataset} in {shown(client.tracking_uri)}. "
            "Train them (--run-missing does), or give --runs RUN_ID …"
        )
    if missing:
        warn(console, "missing runs", f"not there yet, and left out: {', '.join(missing)}. --run-missing trains them.")
    shipped = {(cell.experiment.name, cell.split): experiment_values(cell.shipped) for cell in wanted}
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


def _check_classes(cells: Sequence[Cell], metrics: Sequence[str]) -> None:
    classes = [name for cell in cells for run in cell.runs for name in run.classes]
    for metric in metrics:
        name = metric.removeprefix("recall/")
        if name != metric and name not in classes:
            known = ", ".join(dict.fromkeys(classes))
            raise ConfigError(f"--metric is {metric!r}, but the classes are {known}.{nearest(name, classes)}")


def load_run(client: MlflowClient, run: MlflowRun, metric: str) -> ComparedRun:
    """Read a finished fit back.

    Args:
        client: of its store.
        run: found there.
        metric: says whether its classes or its masks are wanted.

    Raises:
        RunError: it has no predictions, they are of another task or malformed, or its artifacts are gone.
    """
    run_id = run.info.run_id
    with tempfile.TemporaryDirectory() as folder:
        # a classical classifier, whose params name its features, is fitted at once
        epochs_file = [] if "features" in run.data.params else ["epochs.csv"]
        names = ("classes.json", "predictions/test.csv", *epochs_file)
        classes_file, table, *epochs = (download(client, run_id, name, Path(folder)) for name in names)
        try:
            classes = tuple(json.loads(classes_file.read_text(encoding="utf-8"))["classes"])
            scores = load_scores(table, classes, metric)
            return ComparedRun(
                run_id, run.info.experiment_id, run.data.params, run.data.tags, run.data.metrics, classes, scores,
                pd.read_csv(epochs[0]) if epochs else pd.DataFrame(),
            )  # fmt: skip
        except (DataError, ValueError, KeyError) as error:
            raise RunError(
                f"run {run_id} ({run.info.run_name}) cannot be compared by {metric}: {error} "
                "Leave it out of --runs, or delete it (mlflow runs delete)."
            ) from error
