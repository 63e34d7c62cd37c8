"""Choose the engine of a command."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

from skincancer.engines.local import LocalEngine, visible_devices
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
    *,
    accelerator: str = "auto",
    check: Order | None = None,
    refusal: Callable[[dict[str, object]], str] = lambda facts: "",
) -> Engine:
    """Return the engine for the resources.

    Args:
        resources: machines, GPUs and cores.
        folder: folder for configs and logs of orders.
        store: MLflow store of the orders.
        accelerator: `trainer.accelerator` of the orders.
        check: order that a machine of a cluster answers with its facts, before it gets other orders.
        refusal: returns from these facts why the machine gets no orders, "" if it does.

    With a cluster, `connect_cluster` has connected this process.
    """
    gpus = accelerator in ("auto", "gpu", "cuda") and resources.gpus != 0
    if resources.cluster is not None:
        from skincancer.engines.ray_cluster import RayEngine

        return RayEngine(resources, folder, store, use_gpus=gpus, check=check, refusal=refusal)
    devices = visible_devices() if gpus else []
    share = resources.gpus or 1.0
    workers = resources.workers or max(1, math.floor(len(devices) / share))
    # The URI is not in the config of an order, because it may contain a password.
    return LocalEngine(folder, workers, devices, resources.cpus, {"MLFLOW_TRACKING_URI": store.uri})
