"""Choose the engine of a command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from skincancer.engines.local import LocalEngine, visible_devices
from skincancer.engines.machine_check import refusal
from skincancer.engines.orders import Engine, Order
from skincancer.engines.resources import Resources
from skincancer.errors import ConfigError
from skincancer.runs.store import RunStore

# Environment variables that Ray reads when it is imported. Otherwise it prints a paragraph for each machine that dies, and for each task
# that is cancelled.
_QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}


def connect_cluster(address: str) -> None:
    """Connect this process to a Ray cluster, before any long work.

    Args:
        address: HOST:PORT, "auto" or "local", as in `Resources`.

    Raises:
        ConfigError: Ray is not installed.
        RunError: The cluster cannot be reached.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        from skincancer.engines import ray_connection
    except ImportError as error:
        raise ConfigError(
            f"--cluster needs the package ray ({error}). Install it: pip install 'skincancer[cluster]'"
        ) from error
    ray_connection.connect(address)


def make_engine(
    resources: Resources,
    folder: Path,
    store: RunStore,
    accelerator: str,
    check: Order,
    expected: Mapping[str, str],
    say: Callable[[str], None],
) -> Engine:
    """Return the engine for the resources, after `connect_cluster` if there is a cluster.

    Args:
        resources: machines, GPUs and cores.
        folder: folder for configs and logs of orders.
        store: MLflow store of the orders.
        accelerator: `trainer.accelerator` of the orders.
        check: order that a machine of a cluster answers with its facts, before it gets other orders.
        expected: facts that a machine must have.
        say: prints a line.

    Raises:
        ConfigError: shares of a GPU are requested, but there is no GPU on this machine.
    """
    gpus = accelerator in ("auto", "gpu", "cuda") and resources.gpus != 0
    if resources.cluster is not None:
        from skincancer.engines.ray_cluster import RayEngine

        return RayEngine(
            resources, folder, store, use_gpus=gpus, check=check, refusal=lambda facts: refusal(expected, facts)
        )
    devices = visible_devices() if gpus else []
    if resources.gpus and not devices:
        raise ConfigError(
            f"--gpus-per-trial is {resources.gpus}, but this machine has no GPU for accelerator {accelerator}. Remove the flag."
        )
    workers = resources.workers or max(1, resources.slots(len(devices)))
    if 0 < resources.slots(len(devices)) < workers:
        say(f"{workers} processes share {len(devices)} GPUs")
    # The URI is not in the config of an order, because it may contain a password.
    variables = {"MLFLOW_TRACKING_URI": store.uri}
    if resources.gpus == 0:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return LocalEngine(folder, workers, devices, resources.cpus, variables)
