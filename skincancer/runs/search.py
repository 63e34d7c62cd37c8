"""Search for finished fits in the MLflow store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run as MlflowRun

from skincancer.errors import RunError
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore

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


def find_runs(store: RunStore, dataset: str, query: Query) -> list[MlflowRun]:
    """Return the FINISHED fits of a query, the newest of each seed (and fold), by seed.

    Args:
        store: MLflow store.
        dataset: the MLflow experiments that are searched are `<dataset>-<task>`.
        query: conditions on the runs.
    """
    alike = store.client.search_experiments(filter_string=f"name LIKE '{dataset}-%'")
    groups = [
        group.experiment_id for group in alike if group.name.startswith(f"{dataset}-")
    ]  # _ stands for any character
    found: dict[tuple[str, str], MlflowRun] = {}
    for split in query.splits():
        wanted = {"experiment": query.experiment, "split": split, "dataset": dataset, **query.params}
        conditions = [f"params.`{name}` = {_quoted(value)}" for name, value in wanted.items()]
        for run in _search(store, groups, ["tags.kind = 'fit'", "attributes.status = 'FINISHED'", *conditions]):
            key = (split, run.data.params.get("seed", "0"))
            asked = query.seeds is None or int(key[1]) in query.seeds
            if asked and key not in found and _has(store, run, query.settings):
                found[key] = run
    return [found[key] for key in sorted(found, key=lambda key: (int(key[1]), key[0]))]


def runs_by_id(store: RunStore, run_ids: Sequence[str]) -> list[MlflowRun]:
    """Return fits by their ids.

    Raises:
        RunError: unknown, deleted, not FINISHED, no fit, or given twice.
    """
    if len(set(run_ids)) != len(run_ids):
        raise RunError(f"--runs {' '.join(run_ids)}: a run is given twice")
    runs = [store.finished(run_id) for run_id in run_ids]
    for run in runs:
        kind = run.data.tags.get("kind")
        if kind not in ("fit", "trial"):
            raise RunError(f"run {run.info.run_id} is of kind {kind!r}; compare takes fits.")
    return runs


def _search(store: RunStore, groups: Sequence[str], conditions: Sequence[str]) -> Iterator[MlflowRun]:
    """Yield runs, the newest first; none where there is no such MLflow experiment."""
    token: str | None = None
    while groups:
        page = store.client.search_runs(
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


def _has(store: RunStore, run: MlflowRun, settings: Mapping[str, Any]) -> bool:
    """Return whether the config of a run has these values."""
    if not settings:
        return True
    own = FinishedRun(run.info.run_id, store, run).settings
    return all(own.get(key) == value for key, value in settings.items())
