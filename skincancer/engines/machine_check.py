"""Check that a machine of a cluster can run the orders of its driver."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mlflow.exceptions import MlflowException

from skincancer.data.prepare import PreparedData, prepare_data
from skincancer.inference.model import mask_source
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.system.console import make_console, progress_bars
from skincancer.system.provenance import package_version

# The address of the driver is used on all machines, unless it contains a password.
_OTHER_STORE = (
    "Use a store that all machines reach, such as an MLflow server. If its address contains a password, set MLFLOW_TRACKING_URI where "
    "`ray start` is called"
)
_REMEDIES = {
    "version": "Install the same version of skincancer",
    "MLflow store": _OTHER_STORE,
    "run": _OTHER_STORE,
}
_OTHER_IMAGES = "Set SKINCANCER_DATA, where `ray start` is called, to the same data"


def store_facts(store: RunStore) -> dict[str, str]:
    """Return version and store of this machine.

    A store is identified by the time at which MLflow created its first experiment.
    """
    try:
        created = datetime.fromtimestamp((store.client.get_experiment("0").creation_time or 0) / 1000, UTC)
    except MlflowException:
        return {"version": package_version(), "MLflow store": "not reached"}
    return {"version": package_version(), "MLflow store": f"created at {created.isoformat(' ', 'milliseconds')}"}


def data_facts(experiment: Experiment, store: RunStore, run_id: str) -> dict[str, str]:
    """Prepare the data of a sweep, and return their hashes and its run.

    Args:
        experiment: experiment of the sweep.
        store: MLflow store.
        run_id: MLflow run of the sweep.
    """
    with progress_bars(make_console()) as bars:
        masks = mask_source(experiment.data, store) if experiment.data.crop else None
        data = prepare_data(experiment.data, masks, bars, task=experiment.task)
    try:
        store.client.get_run(run_id)
    except MlflowException:
        run_id = f"not in {store}"
    return {"run": run_id, "index_hash": data.index_hash, "split_hash": data.split_hash, "images": used_images(data)}


def used_images(data: PreparedData) -> str:
    """Describe the training and validation images: their numbers and a hash.

    Two machines may differ, because an image with a role may be unreadable on one of them.
    """
    parts = {role: sorted(data.rows(role)["image_id"]) for role in ("train", "val")}
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    return f"{len(parts['train'])} to train on, {len(parts['val'])} to validate on ({digest})"


def refusal(expected: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """Return why a machine gets no orders, "" if it gets some."""
    for name, value in expected.items():
        if facts.get(name) != value:
            return f"its {name} is {facts.get(name)}; expected {value}. {_REMEDIES.get(name, _OTHER_IMAGES)}."
    return ""
