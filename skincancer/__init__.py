"""Experiments on dermoscopic images that can be repeated and compared.

`import skincancer as sc` takes milliseconds: each name of `__all__` is loaded from `skincancer.api` at its first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skincancer.api import (
        compare_runs,
        evaluate_run,
        find_runs,
        fit_experiment,
        list_datasets,
        list_experiments,
        load_experiment,
        load_model,
        load_run,
        prepare_dataset,
        resume_run,
        sweep_experiment,
    )
    from skincancer.errors import ConfigError, DataError, RunError, SkinCancerError, SplitError, WeightsError
    from skincancer.runs.finished import FinishedRun
    from skincancer.schema.experiment import Experiment

    __version__: str

__all__ = [
    "ConfigError", "DataError", "Experiment", "FinishedRun", "RunError", "SkinCancerError", "SplitError", "WeightsError",
    "__version__", "compare_runs", "evaluate_run", "find_runs", "fit_experiment", "list_datasets", "list_experiments",
    "load_experiment", "load_model", "load_run", "prepare_dataset", "resume_run", "sweep_experiment",
]  # fmt: skip

# MLflow sends usage statistics unless this variable is set before its import. Users hold data under licences, so nothing is sent
# unless the user sets the variable to false.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

_HOMES = {"Experiment": "schema.experiment", "FinishedRun": "runs.finished"}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'skincancer' has no attribute {name!r}")
    if name == "__version__":
        return importlib.import_module("skincancer.system.provenance").package_version()
    if not name.endswith("Error"):
        # Lightning fails with a traceback as soon as it is imported.
        importlib.import_module("skincancer.system.launcher").check_numbers()
    home = "errors" if name.endswith("Error") else _HOMES.get(name, "api")
    return getattr(importlib.import_module(f"skincancer.{home}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
