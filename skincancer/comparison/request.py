"""Runs that a comparison asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from skincancer.config.resolve import resolve
from skincancer.errors import ConfigError, nearest
from skincancer.metrics.custom import CUSTOM_METRICS
from skincancer.metrics.names import DEFAULT_METRICS, MASK_METRICS, METRICS, PREFIXED_METRICS, is_mask_metric
from skincancer.schema import Experiment, flatten

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from skincancer.runs.search import Query


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


def resolve_entry(name: str, split: str, request: Request) -> Wanted:
    """Resolve an experiment at a split (of folds at the first), which checks all that can be known without data."""
    places = {"data.dataset": request.dataset, "data.split": split.replace("fold:*/", "fold:0/")}
    experiment, _ = resolve(name, {**request.flags, **places})
    shipped, _ = resolve(name, places)
    return Wanted(name, split, experiment, shipped)


def check_metrics(metrics: Sequence[str]) -> None:
    """Check that all metrics are known and of one kind, of masks or of classes."""
    masks = (*MASK_METRICS, *PREFIXED_METRICS)
    for metric in metrics:
        if metric not in (*METRICS, *CUSTOM_METRICS, *masks) and not metric.startswith("recall/"):
            allowed = (*METRICS, *CUSTOM_METRICS, "recall/CLASS", *masks)
            raise ConfigError(f"--metric is {metric!r}; choose from {', '.join(allowed)}.{nearest(metric, allowed)}")
    if len({is_mask_metric(metric) for metric in metrics}) > 1:
        raise ConfigError(
            f"--metric {' '.join(metrics)}: some are of masks and some of classes; compare them in two calls (a joint run "
            "takes both; its masks' metrics begin with mask_)."
        )


def default_metrics(tasks: Sequence[str]) -> tuple[str]:
    """Return the metric that all tasks share."""
    defaults = list(dict.fromkeys(DEFAULT_METRICS[task] for task in tasks))
    if len(defaults) != 1:
        raise ConfigError(
            f"the tasks are {', '.join(dict.fromkeys(tasks))}, which have no metric in common. Compare runs of one kind, or give --metric: "
            "of classes, or of masks."
        )
    return (defaults[0],)


def run_query(cell: Wanted, request: Request) -> Query:
    """Return the search for the runs of one entry."""
    from skincancer.runs.search import Query

    data = cell.experiment.data
    params = {"target": data.target, "split_seed": str(data.split_seed), "task": cell.experiment.task}
    own = flatten(cell.experiment.to_dict())
    # Places of files and of runs are no part of a method, and modules of plugins are places too.
    places = ("data.root", "plugins")
    settings = {key: own[key] for key in request.flags if key not in places and not key.startswith("tracking.")}
    return Query(cell.experiment.name, cell.split, params, settings, request.seeds)


def experiment_values(shipped: Experiment) -> dict[str, Any]:
    """Return what an experiment says, in dotted keys, as the params of its runs have it."""
    said = flatten(shipped.to_dict()) | {"model.backbone": shipped.model.learner}
    if shipped.model.is_hand_made:
        del said["data.size"]  # features are measured at a size of their own
    return said


def split_and_seed(run: MlflowRun) -> tuple[str, int]:
    """Return the split and the seed of a run."""
    return run.data.params["split"], int(run.data.params["seed"])


def group_runs(
    runs: Sequence[MlflowRun], places: Mapping[tuple[str, str], Any]
) -> dict[tuple[str, str], list[MlflowRun]]:
    """Group runs given by hand by experiment and split; those that differ by neither, nor by seed, are told apart by their ids."""
    named = Counter((run.data.params["experiment"], *split_and_seed(run)) for run in runs)
    grouped: dict[tuple[str, str], list[MlflowRun]] = {}
    for run in runs:
        name, (split, seed) = run.data.params["experiment"], split_and_seed(run)
        folds = "fold:*/" + split.rpartition("/")[2]
        if named[name, split, seed] > 1:
            name = f"{name} {run.info.run_id[:8]}"
        grouped.setdefault((name, folds if (name, folds) in places else split), []).append(run)
    return grouped
