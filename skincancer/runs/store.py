"""Open the MLflow store."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import mlflow
from filelock import FileLock
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from skincancer.errors import RunError
from skincancer.system.credentials import hide, remember, shown
from skincancer.system.paths import sqlite_path, tracking_uri


def connect(uri: str | None) -> MlflowClient:
    """Open the tracking store, creating it where it is a local SQLite file, and return a client.

    Args:
        uri: as `--tracking.uri`; None takes $MLFLOW_TRACKING_URI, then the project's `mlruns/mlflow.db`.

    Raises:
        RunError: the store cannot be opened.
    """
    uri = tracking_uri(uri)
    remember(uri)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    mlflow.set_tracking_uri(uri)
    database = sqlite_path(uri)
    try:
        if database is None:
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
            return client
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):  # two first creations at once corrupt each other's migrations
            client = MlflowClient(tracking_uri=uri)
            client.search_experiments(max_results=1)
        return client
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        reason = hide(getattr(error, "orig", None) or error)
        raise RunError(f"the tracking store {shown(uri)} cannot be opened: {reason}. Check --tracking.uri.") from None


def experiment_id(client: MlflowClient, name: str) -> str:
    """Return the id of the MLflow experiment `name`, creating it with artifacts beside a SQLite database."""
    database = sqlite_path(client.tracking_uri)
    lock: Any = FileLock(f"{database}.lock") if database else contextlib.nullcontext()
    with lock:
        found = client.get_experiment_by_name(name)
        if found is None:
            location = (database.parent / "artifacts" / name).as_uri() if database else None
            return client.create_experiment(name, artifact_location=location)
        if found.lifecycle_stage == "deleted":
            raise RunError(
                f"the MLflow experiment {name!r} is deleted; restore it (mlflow experiments restore) or use another store"
            )
        return found.experiment_id
