"""Requests for a comparison: experiments, splits, metrics and explicit runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from skincancer.comparison.entries import METHOD
from skincancer.config.resolve import resolve
from skincancer.engines.resources import Resources
from skincancer.errors import ConfigError, nearest
from skincancer.metrics.custom import CUSTOM_METRICS
from skincancer.metrics.names import DEFAULT_METRICS, MASK_METRICS, METRICS, PREFIXED_METRICS, is_mask_metric
from skincancer.schema.dotted_keys import flatten
from skincancer.schema.experiment import Experiment

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from skincancer.runs.search import Query


@dataclass(frozen=True)
class Request:
    """Request for a comparison.

    Attributes:
        experiments: names or paths.
        splits: values of `data.split`; `fold:*/k` means all k folds, pooled.
        metrics: metrics of the tables, the first also for tests and figures. Empty for the default of the task.
        seeds: seeds to compare. None for all existing seeds (to train missing runs: the seed of the experiment).
        runs: explicit run ids. They replace runs of the search, or are all runs if there are no experiments.
        flags: dotted keys that the configs must have, also used to train missing runs.
        uri: MLflow store.
        resources: machines, GPUs and cores that train missing runs.
    """

    experiments: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("80:20",)
    dataset: str = "demo"
    metrics: tuple[str, ...] = ()
    seeds: tuple[int, ...] | None = None
    runs: tuple[str, ...] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    uri: str | None = None
    resources: Resources = field(default_factory=Resources)

    @property
    def dataset_name(self) -> str:
        """Name of the data set in runs (`data.name`)."""
        return str(self.flags.get("data.name") or self.dataset)


@dataclass(frozen=True)
class EntryRequest:
    """Requested entry: an experiment resolved at a split.

    Attributes:
        path: name or path of the experiment.
        shipped: experiment without the flags of the request.
    """

    path: str
    split: str
    experiment: Experiment
    shipped: Experiment


def resolve_entry(name: str, split: str, request: Request) -> EntryRequest:
    """Resolve an experiment at a split, which also checks its keys."""
    data = {"data.dataset": request.dataset, "data.split": split.replace("fold:*/", "fold:0/")}
    experiment, _ = resolve(name, {**request.flags, **data})
    shipped, _ = resolve(name, data)
    return EntryRequest(name, split, experiment, shipped)


def check_metrics(metrics: Sequence[str]) -> None:
    """Check that all metrics are known, and all of masks or of classes."""
    masks = (*MASK_METRICS, *PREFIXED_METRICS)
    for metric in metrics:
        if metric not in (*METRICS, *CUSTOM_METRICS, *masks) and not metric.startswith("recall/"):
            allowed = (*METRICS, *CUSTOM_METRICS, "recall/CLASS", *masks)
            raise ConfigError(f"--metric is {metric!r}; use one of {', '.join(allowed)}.{nearest(metric, allowed)}")
    if len({is_mask_metric(metric) for metric in metrics}) > 1:
        raise ConfigError(
            f"--metric {' '.join(metrics)}: some are of masks and some of classes; use two calls (a joint run has "
            "both, its mask metrics begin with mask_)."
        )


def default_metrics(tasks: Sequence[str]) -> tuple[str]:
    """Return the metric that all tasks share."""
    defaults = list(dict.fromkeys(DEFAULT_METRICS[task] for task in tasks))
    if len(defaults) != 1:
        raise ConfigError(
            f"the tasks are {', '.join(dict.fromkeys(tasks))}, which have no metric in common. Use runs of one kind, or --metric "
            "with metrics of classes or of masks."
        )
    return (defaults[0],)


def run_query(entry: EntryRequest, request: Request) -> Query:
    """Return the search for the runs of one entry."""
    from skincancer.runs.search import Query

    data = entry.experiment.data
    params = {"target": data.target, "split_seed": str(data.split_seed), "task": entry.experiment.task}
    values = flatten(entry.experiment.to_dict())
    # Locations of files, runs and plugins do not define a method.
    locations = ("data.root", "data.images", "plugins")
    settings = {key: values[key] for key in request.flags if key not in locations and not key.startswith("tracking.")}
    return Query(entry.experiment.name, entry.split, params, settings, request.seeds)


def experiment_values(shipped: Experiment) -> dict[str, Any]:
    """Return the values of an experiment in dotted keys, like params of runs."""
    values = flatten(shipped.to_dict()) | {"model.backbone": shipped.model.learner}
    if shipped.model.is_hand_crafted:
        # Hand-crafted features are measured at a size of their own.
        del values["data.size"]
    return values


def split_and_seed(run: MlflowRun) -> tuple[str, int]:
    """Return the split and the seed of a run."""
    return run.data.params["split"], int(run.data.params["seed"])


def group_runs(
    runs: Sequence[MlflowRun], places: Mapping[tuple[str, str], Any]
) -> dict[tuple[str, str], list[MlflowRun]]:
    """Group explicit runs by experiment, settings and split.

    Different settings of one experiment become part of its name. Ids distinguish runs of the same settings and seed.
    """
    names = [_name_with_settings(run, runs) for run in runs]
    counts = Counter((name, *split_and_seed(run)) for name, run in zip(names, runs, strict=True))
    grouped: dict[tuple[str, str], list[MlflowRun]] = {}
    for name, run in zip(names, runs, strict=True):
        split, seed = split_and_seed(run)
        folds = "fold:*/" + split.rpartition("/")[2]
        label = f"{name} {run.info.run_id[:8]}" if counts[name, split, seed] > 1 else name
        grouped.setdefault((label, folds if (label, folds) in places else split), []).append(run)
    return grouped


def _name_with_settings(run: MlflowRun, runs: Sequence[MlflowRun]) -> str:
    """Return the experiment of a run, with its differing params in brackets."""
    name, params = run.data.params["experiment"], run.data.params
    others = [other.data.params for other in runs if other.data.params["experiment"] == name]
    different = [
        f"{param} {params[param]}"
        for param in METHOD
        if param in params and any(other.get(param, params[param]) != params[param] for other in others)
    ]
    return f"{name} ({', '.join(different)})" if different else str(name)
