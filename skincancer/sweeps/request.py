"""Options of a sweep, and their check before any long work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skincancer.config.experiments import find_experiment
from skincancer.config.resolve import resolve
from skincancer.config.search_space import PLACE_KEYS, grid
from skincancer.engines.resources import Resources
from skincancer.errors import ConfigError
from skincancer.schema.dotted_keys import TYPES
from skincancer.schema.experiment import Experiment
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.space_check import check_space
from skincancer.system.yaml_files import load_yaml


@dataclass(frozen=True)
class Request:
    """Options of a sweep.

    Args:
        experiment: Name of a shipped experiment, or a path.
        flags: Dotted keys that override the experiment.
        trials: Total number of trials, including those of earlier starts.
        study: Name of the study. None derives it from experiment, data set and split.
        storage: URL of the storage. None uses a journal next to the MLflow store.
        minutes: Time after which no trial is started.
        sampler: tpe, random or grid.
        pruner: median, hyperband or none.
        resources: Machines, GPUs and cores of the trials.
    """

    experiment: str
    flags: Mapping[str, Any]
    trials: int = 0
    study: str | None = None
    storage: str | None = None
    minutes: float | None = None
    sampler: str = "tpe"
    pruner: str = "median"
    resources: Resources = field(default_factory=Resources)

    @property
    def places(self) -> dict[str, Any]:
        """Keys that differ between machines, except the MLflow store."""
        return {key: value for key, value in self.flags.items() if key in PLACE_KEYS and key != "tracking.uri"}


def default_name(experiment: Experiment) -> str:
    """Return the default name of a study: experiment, data set and split."""
    return re.sub(
        r"[^\w.]+", "-", f"{experiment.name}-{experiment.data.name or experiment.data.dataset}-{experiment.data.split}"
    )


def check_request(request: Request) -> tuple[Plan, Experiment, list[Experiment], list[str]]:
    """Check the experiment and the corners of its search space, without torch.

    Returns:
        Plan without data hashes; experiment; experiments with networks to check; and notes to print.
    """
    if request.trials < 1:
        raise ConfigError(f"--trials is {request.trials}; expected the total number of trials, 1 or more.")
    experiment, notes = resolve(request.experiment, request.flags)
    search, trainer = experiment.search, experiment.trainer
    if not search:
        raise ConfigError(
            f"--experiment {request.experiment} has no search: block. Add one to its file, such as\n"
            "  search:\n    model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}"
        )
    if str(trainer.devices) not in ("1", "auto") or trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.devices is {trainer.devices} (nodes: {trainer.num_nodes}); a trial uses one device. Several "
            "trials run at the same time with --workers, and on several machines with --cluster."
        )
    for key in search:
        if key in request.flags:
            raise ConfigError(
                f"--{key} is set on the command line and in search:. Remove the flag, or remove the key from the search: block."
            )
    if trainer.limit_val_batches != 1 and "data.batch_size" in search:
        raise ConfigError(
            f"search: data.batch_size cannot be searched with trainer.limit_val_batches {trainer.limit_val_batches}, because trials "
            "would be compared on different images. Remove one of the two keys."
        )
    content = load_yaml(find_experiment(request.experiment))
    flags = {key: value for key, value in request.flags.items() if key not in PLACE_KEYS}
    plan = Plan(experiment.name, content, flags, dict(search), request.sampler, request.pruner, "", "")
    checked = check_space(plan, request.places)
    for key, choices in checked.unused.items():
        if request.sampler == "grid":
            raise ConfigError(
                f"--sampler grid: {key} has no effect with {choices}, so the grid would repeat trials. Sweep the choices "
                "with which it has an effect separately, or use another sampler."
            )
        notes.append(f"{key} has no effect with {choices}; such trials ignore it")
    if request.sampler == "grid":
        grid(search, TYPES)
    return plan, experiment, checked.networks, notes
