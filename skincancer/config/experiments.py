"""Shipped experiment files: list them and find one by name or path."""

from __future__ import annotations

import os
from pathlib import Path

from skincancer.errors import ConfigError, nearest
from skincancer.system.paths import experiments_folder, user_path
from skincancer.system.yaml_files import load_yaml


def list_experiments() -> dict[str, str]:
    """Return the shipped experiments: name to description."""
    paths = sorted(experiments_folder().glob("*.yaml"))
    return {path.stem: str(load_yaml(path).get("description", "")) for path in paths}


def find_experiment(name: str) -> Path:
    """Return the file of an experiment, by name or path.

    Raises:
        ConfigError: no such file. The message lists the nearest name and all names.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name or os.sep in name:
        path = user_path(name, "--experiment")
        if path.is_file():
            return path
        what = "is not a file" if path.exists() else "does not exist"
        raise ConfigError(f"--experiment {name}: {path.absolute()} {what}. Use the path of a YAML file.")
    path = user_path(experiments_folder() / f"{name}.yaml", "--experiment")
    if path.is_file():
        return path
    names = [file.stem for file in sorted(experiments_folder().glob("*.yaml"))]
    raise ConfigError(
        f"--experiment {name}: unknown.{nearest(name, names)} Choose one of {', '.join(names)}, or use a path to a YAML file."
    )
