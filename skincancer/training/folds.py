"""Fit an experiment on every fold of a split."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console

from skincancer.engines.resources import Resources
from skincancer.engines.run_orders import fit_order, raise_failures, run_orders
from skincancer.models.compatibility import check_models
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.system.credentials import mask_passwords


def fit_folds(
    experiments: Sequence[Experiment], command: Sequence[str], resources: Resources, console: Console
) -> list[str]:
    """Fit an experiment on every fold, each in its own process.

    Args:
        experiments: the experiment, resolved at each fold.
        command: words of `compare` that pool the folds, to print.
        resources: machines, GPUs and cores.
        console: console for the progress.

    Returns:
        MLflow run ids of the folds.

    Raises:
        ConfigError: the experiment cannot run on this machine.
        RunError: the store or the cluster cannot be used, or a fold failed.
    """
    first = check_models(experiments[0], None)
    store = RunStore(first.tracking.uri).open()
    group = first.data.name or first.data.dataset
    store.check_experiment(f"{group}-{first.task}")
    finished = run_orders(
        [fit_order(number, experiment) for number, experiment in enumerate(experiments)],
        [f"{experiment.name} {experiment.data.split}" for experiment in experiments],
        resources, store, first.trainer.accelerator, lambda text: console.print(text, markup=False),
    )  # fmt: skip
    raise_failures(finished, "folds")
    console.print(
        f"pooled folds: {mask_passwords(shlex.join(['python', '-m', 'skincancer.compare', *command]))}", markup=False
    )
    return [done.run_id for done in finished]
