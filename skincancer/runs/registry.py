"""MLflow model registry: register the models of finished runs, and find them.

MLflow is imported inside functions, so that a wrong name is reported at once.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from skincancer.errors import ConfigError, RunError
from skincancer.system.credentials import mask_password, mask_passwords

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


MODELS = "models:/"
ALIAS = "candidate"
REGISTER_TAG = "register"


class Target(NamedTuple):
    """Name in the registry, and alias of its newest version."""

    name: str
    alias: str

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}"


def parse_target(text: str) -> Target:
    """Parse `NAME` or `NAME@ALIAS`.

    Raises:
        ConfigError: MLflow refuses such a name or alias.
    """
    name, at, alias = text.partition("@")
    if not name.strip() or name != name.strip() or re.search(r"[/:\\]|^\.+$", name):
        raise ConfigError(
            f"--register is {text!r}; use a name without '/', '\\' and ':', such as lesions or lesions@{ALIAS}."
        )
    if not at:
        return Target(name, ALIAS)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias) or re.fullmatch(r"(?i)latest|v\d+", alias):
        raise ConfigError(
            f"--register is {text!r}; use an alias of letters, digits, '_' and '-', other than latest and v1, v2 …, which MLflow "
            f"reserves. The default is {ALIAS}."
        )
    return Target(name, alias)


def check_registry(client: MlflowClient) -> None:
    """Check before a run that the store can register its model.

    Raises:
        RunError: the store has no registry.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        raise RunError(
            f"--register: the store {mask_password(client.tracking_uri)} has no model registry: {mask_passwords(error)}. Remove "
            "--register, or use another store."
        ) from error


def stored_target(client: MlflowClient, run_id: str) -> str | None:
    """Return the value of `--register` that a run was started with."""
    return client.get_run(run_id).data.tags.get(REGISTER_TAG)


def register(client: MlflowClient, run_id: str, target: Target) -> str:
    """Register the model of a finished run, and return the new version.

    Raises:
        RunError: the registry refused the model. The run itself is complete.
    """
    from mlflow.exceptions import MlflowException

    try:
        outputs = client.get_run(run_id).outputs
        assert outputs is not None, "a finished run has logged its model"
        model_id = outputs.model_outputs[-1].model_id
        if not client.search_registered_models(f"name = '{target.name.replace(chr(39), chr(39) * 2)}'"):
            client.create_registered_model(target.name)
        version = str(
            client.create_model_version(target.name, f"{MODELS}{model_id}", run_id, model_id=model_id).version
        )
        client.set_registered_model_alias(target.name, target.alias, version)
        client.set_tag(run_id, "registered_version", version)
    except (MlflowException, OSError) as error:
        raise RunError(
            f"run {run_id} is finished and complete, but its model could not be registered as {target}: {mask_passwords(error)}. "
            "Register it in the MLflow UI (python -m skincancer.ui)."
        ) from error
    return version


def is_registered(run: str) -> bool:
    """Return whether a text names a registered model and not a run."""
    return run.startswith(MODELS) or "@" in run


def find_version(client: MlflowClient, model: str) -> ModelVersion:
    """Return a registered version by NAME@ALIAS, models:/NAME@ALIAS or models:/NAME/VERSION.

    Raises:
        RunError: the model, alias or version is unknown. The message lists the aliases.
    """
    from mlflow.exceptions import MlflowException

    text = model.removeprefix(MODELS)
    name, _, alias = text.partition("@")
    number = ""
    if not alias:
        name, _, number = text.partition("/")
    if not name or not (alias or number.isdigit()):
        raise RunError(f"model is {model}; expected NAME@ALIAS, models:/NAME@ALIAS or models:/NAME/VERSION.")
    try:
        registered = client.get_registered_model(name)
    except MlflowException as error:
        raise RunError(
            f"{model}: there is no registered model {name!r} in {mask_password(client.tracking_uri)}"
        ) from error
    try:
        return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        aliases = ", ".join(f"{key} (version {value})" for key, value in sorted(registered.aliases.items())) or "none"
        missing = f"alias {alias!r}" if alias else f"version {number}"
        raise RunError(f"{model}: the registered model {name!r} has no {missing}; its aliases: {aliases}.") from error
