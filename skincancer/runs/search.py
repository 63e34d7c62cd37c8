"""Finished fits in the tracking store: found by search, page by page, and read back for a comparison."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Run as MlflowRun
from mlflow.tracking import MlflowClient

from skincancer.errors import RunError
from skincancer.runs.artifacts import check_finished, download
from skincancer.schema import flatten
from skincancer.system.yaml_files import load_yaml

PAGE = 200  # runs asked for at once
_FOLD = re.compile(r"fold:\*/(\d+)")


@dataclass(frozen=True)
class Query:
    """Which fits one cell of a comparison is made of.

    Args:
        experiment: its name, as in the param.
        split: as in the param; `fold:*/k` stands for all k folds.
        params: what else the params must be.
        settings: dotted keys of the config that must have these values.
        seeds: those wanted; None takes every seed that is there.
    """

    experiment: str
    split: str
    params: Mapping[str, str]
    settings: Mapping[str, Any]
    seeds: tuple[int, ...] | None = None

    def splits(self) -> list[str]:
        """Return the splits of the runs themselves."""
        folds = _FOLD.fullmatch(self.split)
        return [f"fold:{i}/{folds[1]}" for i in range(int(folds[1]))] if folds else [self.split]


def find_runs(client: MlflowClient, dataset: str, query: Query) -> list[MlflowRun]:
    """Return the FINISHED fits of a query, the newest of each seed (and fold), by seed.

    Args:
        client: an open store.
        dataset: the MLflow experiments looked into are `<dataset>-<task>`.
        query: what to look for.
    """
    alike = client.search_experiments(filter_string=f"name LIKE '{dataset}-%'")
    groups = [
        group.experiment_id for group in alike if group.name.startswith(f"{dataset}-")
    ]  # _ stands for any character
    found: dict[tuple[str, str], MlflowRun] = {}
    for split in query.splits():
        wanted = {"experiment": query.experiment, "split": split, "dataset": dataset, **query.params}
        conditions = [f"params.`{name}` = {_quoted(value)}" for name, value in wanted.items()]
        for run in _search(client, groups, ["tags.kind = 'fit'", "attributes.status = 'FINISHED'", *conditions]):
            key = (split, run.data.params.get("seed", "0"))
            asked = query.seeds is None or int(key[1]) in query.seeds
            if asked and key not in found and _has(client, run, query.settings):
                found[key] = run
    return [found[key] for key in sorted(found, key=lambda key: (int(key[1]), key[0]))]


def runs_by_id(client: MlflowClient, run_ids: Sequence[str]) -> list[MlflowRun]:
    """Return fits given by hand.

    Raises:
        RunError: unknown, deleted, not FINISHED, no fit, or given twice.
    """
    if len(set(run_ids)) != len(run_ids):
        raise RunError(f"--runs {' '.join(run_ids)}: a run is given twice")
    runs = [check_finished(client, run_id) for run_id in run_ids]
    for run in runs:
        kind = run.data.tags.get("kind")
        if kind not in ("fit", "trial"):
            raise RunError(f"run {run.info.run_id} is of kind {kind!r}; compare takes fits.")
    return runs


def _search(client: MlflowClient, groups: Sequence[str], conditions: Sequence[str]) -> Iterator[MlflowRun]:
    """Yield runs, the newest first; none where there is no such MLflow experiment."""
    token: str | None = None
    while groups:
        page = client.search_runs(
            list(groups), " and ".join(conditions), max_results=PAGE, order_by=["attributes.start_time DESC"], page_token=token,
        )  # fmt: skip
        yield from page
        token = page.token
        if not token:
            return


def _quoted(value: str) -> str:
    """Quote a value for MLflow's filter language, which knows no escapes."""
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value:
        return f'"{value}"'
    raise RunError(
        f"{value!r} holds both kinds of quotes, so that no run can be searched by it; rename the experiment."
    )


def _has(client: MlflowClient, run: MlflowRun, settings: Mapping[str, Any]) -> bool:
    """Say whether a run's config has these values."""
    if not settings:
        return True
    own = read_config(client, run)
    return all(own.get(key) == value for key, value in settings.items())


def read_config(client: MlflowClient, run: MlflowRun) -> dict[str, Any]:
    """Return the config of a run by dotted key."""
    with tempfile.TemporaryDirectory() as folder:
        return flatten(load_yaml(download(client, run.info.run_id, "config.yaml", Path(folder))))
