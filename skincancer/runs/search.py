"""Search for finished fits in the MLflow store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run as MlflowRun

from skincancer.errors import RunError
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore
from skincancer.schema.folds import expand_folds

# Number of runs per request.
PAGE = 200


@dataclass(frozen=True)
class Query:
    """Conditions on the fits of one entry of a comparison.

    Args:
        experiment, split: values of these params; the split `fold:*/k` means all k folds.
        params: required values of other params.
        settings: required values of dotted keys of the config.
        seeds: seeds to use. None for all seeds.
    """

    experiment: str
    split: str
    params: Mapping[str, str]
    settings: Mapping[str, Any]
    seeds: tuple[int, ...] | None = None

    def splits(self) -> list[str]:
        """Return the splits of the single runs."""
        return expand_folds(self.split) or [self.split]


def find_runs(store: RunStore, dataset: str, query: Query) -> list[MlflowRun]:
    """Return the FINISHED fits of a query, the newest per seed and fold.

    The names of the searched MLflow experiments are `<dataset>-<task>`.
    """
    similar = store.client.search_experiments(filter_string=f"name LIKE '{dataset}-%'")
    # "_" in a LIKE pattern matches any character, so compare again.
    groups = [group.experiment_id for group in similar if group.name.startswith(f"{dataset}-")]
    runs: dict[tuple[str, str], MlflowRun] = {}
    for split in query.splits():
        params = {"experiment": query.experiment, "split": split, "dataset": dataset, **query.params}
        conditions = [f"params.`{name}` = {_quoted(value)}" for name, value in params.items()]
        for run in _search(store, groups, ["tags.kind = 'fit'", "attributes.status = 'FINISHED'", *conditions]):
            key = (split, run.data.params.get("seed", "0"))
            has_seed = query.seeds is None or int(key[1]) in query.seeds
            if has_seed and key not in runs and _has(store, run, query.settings):
                runs[key] = run
    return [runs[key] for key in sorted(runs, key=lambda key: (int(key[1]), key[0]))]


def runs_by_id(store: RunStore, run_ids: Sequence[str]) -> list[MlflowRun]:
    """Return fits by their ids.

    Raises:
        RunError: a run is unknown, deleted, not FINISHED, not a fit, or named twice.
    """
    if len(set(run_ids)) != len(run_ids):
        raise RunError(f"--runs {' '.join(run_ids)} names a run twice; use each run once.")
    runs = [store.finished(run_id) for run_id in run_ids]
    for run in runs:
        kind = run.data.tags.get("kind")
        if kind not in ("fit", "trial"):
            raise RunError(f"run {run.info.run_id} is of kind {kind!r}; use runs of fits.")
    return runs


def search_runs(store: RunStore, conditions: Sequence[str]) -> Iterator[MlflowRun]:
    """Yield the FINISHED runs of a store, the newest first.

    Args:
        store: MLflow store.
        conditions: filters in the language of MLflow.
    """
    groups = [group.experiment_id for group in store.client.search_experiments()]
    return _search(store, groups, ["attributes.status = 'FINISHED'", *conditions])


def _search(store: RunStore, groups: Sequence[str], conditions: Sequence[str]) -> Iterator[MlflowRun]:
    """Yield runs, the newest first."""
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
    """Quote a value for the filter language of MLflow, which has no escapes."""
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value:
        return f'"{value}"'
    raise RunError(f"{value!r} contains both kinds of quotes, which MLflow cannot search for; rename the experiment.")


def _has(store: RunStore, run: MlflowRun, settings: Mapping[str, Any]) -> bool:
    """Return whether the config of a run has these values."""
    if not settings:
        return True
    values = FinishedRun(run.info.run_id, store, run).settings
    return all(values.get(key) == value for key, value in settings.items())
