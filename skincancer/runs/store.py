"""MLflow tracking store."""

from __future__ import annotations

import contextlib
import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from alembic.util.exc import CommandError
from filelock import FileLock
from mlflow.entities import Run as MlflowRun
from mlflow.environment_variables import MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from skincancer.errors import RunError
from skincancer.runs.database import describe_database
from skincancer.system.credentials import mask_password, mask_passwords, remember_password
from skincancer.system.paths import sqlite_path, sweeps_folder, tracking_uri, work_root


class RunStore:
    """MLflow store with its local folders, opened at the first use of `client`.

    Args:
        uri: value of `--tracking.uri`. None for $MLFLOW_TRACKING_URI or else `mlruns/mlflow.db` of the project.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = tracking_uri(uri)

    def __str__(self) -> str:
        return mask_password(self.uri)

    @cached_property
    def client(self) -> MlflowClient:
        """Open the store and return its client.

        Raises:
            RunError: the store cannot be opened.
        """
        return connect(self.uri)

    def open(self) -> RunStore:
        """Open the store early, before costly work, and return the store."""
        assert self.client is not None
        return self

    @property
    def work_folder(self) -> Path:
        """Folder for runs that are being written."""
        return work_root(self.uri)

    @property
    def sweeps_folder(self) -> Path:
        """Folder for the journals of sweeps and the logs of their trials."""
        return sweeps_folder(self.uri)

    def finished(self, run_id: str) -> MlflowRun:
        """Return a finished run.

        Raises:
            RunError: the run is unknown, deleted, or not FINISHED.
        """
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            raise RunError(f"run {run_id}: there is no such run in {self}; check id and --tracking.uri.") from error
        if run.info.lifecycle_stage == "deleted":
            raise RunError(
                f"run {run_id} in {self} is deleted; restore it (mlflow runs restore --run-id {run_id}), or use another run."
            )
        if run.info.status != "FINISHED":
            raise RunError(
                f"run {run_id} is {run.info.status} and not FINISHED; finish it first (python -m skincancer.fit --resume {run_id})."
            )
        return run

    def check_experiment(self, name: str) -> None:
        """Check before costly work that an MLflow experiment can be written.

        Raises:
            RunError: the experiment is deleted.
        """
        group = self.client.get_experiment_by_name(name)
        if group is not None and group.lifecycle_stage == "deleted":
            raise RunError(
                f"the MLflow experiment {name!r} in {self} is deleted; restore it (mlflow experiments restore --experiment-id "
                f"{group.experiment_id}), or use another --tracking.uri."
            )

    def experiment_id(self, name: str) -> str:
        """Return the id of an MLflow experiment, with artifacts next to a SQLite file.

        Raises:
            RunError: the experiment is deleted.
        """
        # Opening the store takes the same lock, so open it first.
        client, database = self.client, sqlite_path(self.uri)
        lock: Any = FileLock(f"{database}.lock") if database else contextlib.nullcontext()
        with lock:
            group = client.get_experiment_by_name(name)
            if group is None:
                location = (database.parent / "artifacts" / name).as_uri() if database else None
                return client.create_experiment(name, artifact_location=location)
            self.check_experiment(name)
            return group.experiment_id


def connect(uri: str | None) -> MlflowClient:
    """Open the tracking store and return a client. A missing SQLite file is created.

    Raises:
        RunError: the store cannot be opened.
    """
    uri = tracking_uri(uri)
    remember_password(uri)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.set(False)
    database = sqlite_path(uri)
    lock: Any = contextlib.nullcontext()
    try:
        if database is not None:
            database.parent.mkdir(parents=True, exist_ok=True)
            # Two simultaneous first creations corrupt each other's migrations.
            lock = FileLock(f"{database}.lock")
        with lock:
            if database is not None and (problem := describe_database(database)):
                raise RunError(f"the tracking store {uri} cannot be opened: {problem}. Or use another --tracking.uri.")
            # The registry is in the same store, whatever MLFLOW_REGISTRY_URI is.
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
        if database is not None and "%" in uri:
            # MLflow has created the folder in the spelling of the URI too.
            with contextlib.suppress(OSError):
                os.removedirs(Path(uri.removeprefix("sqlite:///")).parent)
        return client
    except (MlflowException, SQLAlchemyError, CommandError, ImportError, OSError) as error:
        reason = mask_passwords(getattr(error, "orig", None) or error)
        raise RunError(
            f"the tracking store {mask_password(uri)} cannot be opened: {reason}. Check --tracking.uri."
        ) from None
