"""Check that a machine of a cluster can run the trials of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from mlflow.exceptions import MlflowException

from skincancer.data.prepare import prepare_data
from skincancer.inference.model import mask_source
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.sweeps.plan import Plan, used_images
from skincancer.system.console import make_console, progress_bars

_REMEDIES = {
    "version": "Install the same version of skincancer",
    "sweep's run": "Set MLFLOW_TRACKING_URI, where `ray start` is called, to the store of the sweep",
    "index_hash": "Set SKINCANCER_DATA, where `ray start` is called, to the same data",
}


def machine_facts(experiment: Experiment, parent: str) -> dict[str, str]:
    """Return what a machine must share with a sweep, and prepare the data.

    Args:
        experiment: experiment of the sweep.
        parent: MLflow run id of the sweep.
    """
    store = RunStore(experiment.tracking.uri)
    with progress_bars(make_console()) as bars:
        masks = mask_source(experiment.data, store) if experiment.data.crop else None
        data = prepare_data(experiment.data, masks, bars, task=experiment.task)
    try:
        store.client.get_run(parent)
    except MlflowException:
        found = f"not in {store}"
    else:
        found = parent
    return {
        "version": version("skincancer"), "sweep's run": found, "index_hash": data.index_hash, "split_hash": data.split_hash,
        "images": used_images(data),
    }  # fmt: skip


def refusal(plan: Plan, parent: str, facts: Mapping[str, Any]) -> str:
    """Return why a machine must not run trials, "" if it may."""
    expected = {"version": version("skincancer"), "sweep's run": parent} | {
        name: getattr(plan, name) for name in ("index_hash", "split_hash", "images")
    }
    for name, value in expected.items():
        # Studies of older versions have no record of their images.
        if facts.get(name) != value and (value or name != "images"):
            remedy = _REMEDIES.get(name, _REMEDIES["index_hash"])
            return f"its {name} is {facts.get(name)}; expected {value}. {remedy}."
    return ""
