"""Life of a run: start, write, end, resume, and close stale runs.

Only this module ends a run: FINISHED after the last artifact, FAILED with the reason, or KILLED on SIGINT and SIGTERM.
"""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.default_context import DefaultRunContext
from mlflow.tracking.context.git_context import GitRunContext
from mlflow.tracking.context.jupyter_notebook_context import JupyterNotebookRunContext
from mlflow.utils.validation import MAX_METRICS_PER_BATCH

from skincancer.errors import ConfigError, RunError
from skincancer.metrics.names import metric_keys
from skincancer.runs.artifacts import (
    CLASSES_FILE,
    CONFIG_FILE,
    FIGURES,
    LAST_CHECKPOINT,
    classes_json,
    config_to_keep,
    figure_file,
)
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.system.console import make_console
from skincancer.system.credentials import format_error, mask_password
from skincancer.system.files import write_whole
from skincancer.system.hardware import owner_alive, owner_tags
from skincancer.system.interrupts import Interrupted, uninterrupted
from skincancer.system.paths import work_root
from skincancer.system.provenance import git_tags
from skincancer.system.yaml_files import dump_yaml

HEARTBEAT_SECONDS = 30.0
STATE_TAG = "trial_state"
# Called with the id of each run that this process starts, after the run has the tags of its process.
observers: list[Callable[[str], None]] = []


def reap(client: MlflowClient, older_than_hours: float | None = None) -> list[str]:
    """Close stale runs as KILLED, and return their ids.

    A run is stale if its process has exited. With `older_than_hours`, runs of other hosts or boots with an older heartbeat are stale
    as well.
    """
    closed = []
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    token = None
    running: list[MlflowRun] = []
    while True:
        page = client.search_runs(experiments, "attributes.status = 'RUNNING'", max_results=500, page_token=token)
        running += [run for run in page if "process_start" in run.data.tags]
        token = page.token
        if not token:
            break
    for run in running:
        alive = owner_alive(run.data.tags)
        reason = "its process exited"
        if alive is None and older_than_hours is not None:
            silent = silent_seconds(run) / 3600
            alive = silent < older_than_hours
            reason = f"no heartbeat for {silent:.1f} hours"
        if alive is False:
            client.set_tag(run.info.run_id, "status_reason", f"reaped: {reason}")
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(run.info.run_id)
    return closed


def close_lost(
    client: MlflowClient, run_id: str, reason: str, status: str = "FAILED", *, state: str = "", remove: bool = False
) -> None:
    """Close a run after its process exited, if still open.

    `state` is the tag of a trial. With `remove`, the working files are deleted.
    """
    if state:
        client.set_tag(run_id, STATE_TAG, state)
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_tag(run_id, "status_reason", reason[:4000])
        client.set_terminated(run_id, status)
    if remove:
        shutil.rmtree(work_root(client.tracking_uri) / run_id, ignore_errors=True)


def silent_seconds(run: MlflowRun) -> float:
    """Return the seconds since the last heartbeat of a run."""
    heartbeat = run.data.tags.get("heartbeat")
    last = datetime.fromisoformat(heartbeat).timestamp() if heartbeat else run.info.start_time / 1000
    return time.time() - last


@dataclass
class RunWriter:
    """Writer of one run in MLflow.

    Attributes:
        folder: working folder of the run, kept until the run has FINISHED.
    """

    store: RunStore
    run_id: str
    folder: Path
    _stop: threading.Event = field(default_factory=threading.Event)
    _monitor: SystemMetricsMonitor | None = None

    @property
    def record(self) -> MlflowRun:
        """Current state of the run in MLflow."""
        return self.store.client.get_run(self.run_id)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log new params. MLflow refuses to change an existing param."""
        with uninterrupted():
            known = self.record.data.params
            new = [Param(name, str(value)) for name, value in params.items() if name not in known]
            self.store.client.log_batch(self.run_id, params=new, synchronous=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, finite: bool = False) -> None:
        """Log metrics of one step (an epoch, from 1) in one call.

        With `finite`, undefined metrics are left out.
        """
        now = int(time.time() * 1000)
        keys = metric_keys(metrics)
        batch = [
            Metric(keys[name], float(value), now, step)
            for name, value in metrics.items()
            if math.isfinite(value) or not finite
        ]
        # The client itself would add MLFLOW_ACTIVE_MODEL_ID, or the active model of the caller, to metrics.
        store = self.store.client._tracking_client.store
        with uninterrupted():
            for start in range(0, len(batch), MAX_METRICS_PER_BATCH):
                metrics_batch = batch[start : start + MAX_METRICS_PER_BATCH]
                store.log_batch(self.run_id, metrics=metrics_batch, params=[], tags=[])

    def log_results(self, metrics: Mapping[str, float]) -> None:
        """Log final metrics that are defined."""
        self.log_metrics(metrics, finite=True)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags in one call."""
        with uninterrupted():
            batch = [RunTag(name, value) for name, value in tags.items()]
            self.store.client.log_batch(self.run_id, tags=batch, synchronous=True)

    def log_file(self, name: str) -> None:
        """Log a file, named by its path relative to the working folder."""
        parent = str(Path(name).parent)
        with uninterrupted():
            self.store.client.log_artifact(self.run_id, str(self.folder / name), None if parent == "." else parent)

    def log_folder(self, name: str) -> None:
        """Log all files of a folder in the working folder."""
        with uninterrupted():
            self.store.client.log_artifacts(self.run_id, str(self.folder / name), name)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file and log it."""
        write_whole(self.folder / name, text)
        self.log_file(name)

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as CSV and log it."""
        self.write_text(name, table.to_csv(index=False))

    def write_config(self, experiment: Experiment) -> None:
        """Write config.yaml and log it."""
        self.write_text(CONFIG_FILE, dump_yaml(config_to_keep(experiment)))

    def write_classes(self, classes: Sequence[str], malignant: Sequence[str]) -> None:
        """Write classes.json and log it."""
        self.write_text(CLASSES_FILE, classes_json(classes, malignant))

    def figure_path(self, name: str) -> Path:
        """Return the local path of a figure. `log_folder(FIGURES)` logs all figures."""
        (self.folder / FIGURES).mkdir(exist_ok=True)
        return self.folder / figure_file(name)

    def _beat(self) -> None:
        # Only other hosts read the heartbeat, so a failed write must not end the run.
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(MlflowException, OSError):
                self.store.client.set_tag(self.run_id, "heartbeat", _now())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def start_run(
    store: RunStore,
    group: str,
    name: str,
    tags: Mapping[str, str],
    *,
    system_metrics: bool = True,
    resume: str | None = None,
    keep: bool = True,
) -> Iterator[RunWriter]:
    """Start or resume a run, and record its end.

    The end is FINISHED; FAILED, with the error as tag `status_reason`, if the block raised; KILLED if it was interrupted.

    Args:
        store: MLflow store.
        group: name of the MLflow experiment.
        name: name of the run.
        tags: tags of the run, with `kind`. Tags of the git checkout and of the process are added.
        system_metrics: log CPU, memory and GPU use.
        resume: id of an interrupted run, checked by `check_resumable`.
        keep: keep the working folder after an end other than FINISHED, so that the run can be resumed.
    """
    client, number = store.client, store.experiment_id(group)
    all_tags = {**git_tags(), **tags, **owner_tags(), "heartbeat": _now(), "status_reason": ""}
    run: RunWriter | None = None
    try:
        with uninterrupted():
            # A run without the tags of its process could never be closed as stale.
            run_id = resume or client.create_run(number, tags={**_source_tags(), **all_tags}, run_name=name).info.run_id
            if resume:
                client.update_run(resume, status="RUNNING")
            folder = store.work_folder / run_id
            run = RunWriter(store, run_id, folder)
            folder.mkdir(parents=True, exist_ok=True)
            run.set_tags({**all_tags, "work_folder": str(folder)})
            if system_metrics:
                run._monitor = _start_monitor(store, run_id, resumed=resume is not None)
        threading.Thread(target=run._beat, name="heartbeat", daemon=True).start()
        for observer in observers:
            observer(run_id)
        yield run
    except Interrupted as interrupt:
        _end(run, "KILLED", f"interrupted by {interrupt}", keep)
        raise
    except BaseException as error:
        _end(run, "FAILED", format_error(error)[:4000], keep)
        raise
    else:
        _end(run, "FINISHED", "", keep=False)


def _start_monitor(store: RunStore, run_id: str, resumed: bool) -> SystemMetricsMonitor:
    try:
        monitor = SystemMetricsMonitor(run_id, resume_logging=resumed, tracking_uri=store.uri)
    except ValueError as error:
        # The error names the environment variable.
        raise RunError(
            f"system metrics cannot be recorded: {error}. Unset it, or use --tracking.system_metrics false."
        ) from error
    monitor.start()
    return monitor


def _source_tags() -> dict[str, str]:
    """Return MLflow's tags of user and source code.

    MLflow's other contexts read tags from the variables of Databricks and of MLflow Projects, which could name another run.
    """
    contexts = (DefaultRunContext(), GitRunContext(), JupyterNotebookRunContext())
    tags = {name: value for context in contexts if context.in_context() for name, value in context.tags().items()}
    return {name: value for name, value in tags.items() if value is not None}


def _end(run: RunWriter | None, status: str, reason: str, keep: bool) -> None:
    if run is None:
        return
    with uninterrupted():
        try:
            run._stop.set()
            run.set_tags({"status_reason": reason, "heartbeat": _now()})
        finally:
            run.store.client.set_terminated(run.run_id, status)
            if run._monitor:
                run._monitor.finish()
        if not keep:
            shutil.rmtree(run.folder, ignore_errors=True)


def find_resumed(client: MlflowClient, run_id: str) -> MlflowRun:
    """Return the run that `--resume` names, in any state.

    Raises:
        RunError: the run is unknown.
    """
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        raise RunError(
            f"--resume {run_id}: there is no such run in {mask_password(client.tracking_uri)}; use another id."
        ) from error


def check_resumable(client: MlflowClient, run_id: str) -> MlflowRun:
    """Return the run that `--resume` names.

    Raises:
        RunError: the run is unknown, of another kind, FINISHED, without a working folder, or its process may still be alive.
    """
    run = find_resumed(client, run_id)
    if run.info.status == "FINISHED":
        raise RunError(f"--resume {run_id}: this run is FINISHED; start a new run instead.")
    if run.data.tags.get("kind") not in ("fit", "trial"):
        raise RunError(f"--resume {run_id}: this run is of kind {run.data.tags.get('kind')!r}; use the run of a fit.")
    if run.info.status == "RUNNING":
        alive = owner_alive(run.data.tags)
        owner = f"process {run.data.tags.get('pid')} on {run.data.tags.get('host')}"
        if alive:
            raise RunError(f"--resume {run_id}: this run is still being written by {owner}; stop the process first.")
        if alive is None:
            raise RunError(
                f"--resume {run_id}: this run is RUNNING, owned by {owner}, which cannot be seen from here. If that "
                "process has exited, close the run with `python -m skincancer.fit --reap --older-than 0h`, then resume."
            )
    folder = run.data.tags.get("work_folder", "")
    if not Path(folder).is_dir():
        raise RunError(
            f"--resume {run_id}: its working folder {folder or '(none)'} is not on this machine; resume on the machine of the run."
        )
    return run


def check_stopped(store: RunStore, run_id: str, what: str, silent_after: float) -> None:
    """Check that the run of a sweep exists, and that no process writes it.

    Args:
        store: MLflow store.
        run_id: the run.
        what: name of the sweep.
        silent_after: seconds without heartbeat after which a process that cannot be seen counts as dead.

    Raises:
        RunError: the run is unknown or deleted, or its process may be alive.
    """
    try:
        run = store.client.get_run(run_id)
    except MlflowException as error:
        raise RunError(
            f"the {what} has the run {run_id}, which is not in {store}. Use the MLflow store of its first start, or another --study."
        ) from error
    if run.info.lifecycle_stage == "deleted":
        raise RunError(
            f"the run {run_id} of the {what} is deleted; restore it (mlflow runs restore --run-id {run_id}), or use another --study."
        )
    if run.info.status != "RUNNING" or (alive := owner_alive(run.data.tags)) is False:
        return
    owner, silent = f"process {run.data.tags.get('pid')} on {run.data.tags.get('host')}", silent_seconds(run)
    if alive:
        raise RunError(f"the {what} already runs as {owner}. Stop it first, or use another --study.")
    # The owner is on another machine, or this machine was restarted.
    if silent < silent_after:
        raise RunError(
            f"the {what} may still run as {owner}, which is not visible from this machine; its last heartbeat is {silent:.0f} s old. "
            f"Rerun this command after {silent_after / 60:.0f} minutes without heartbeat."
        )


def has_checkpoint(client: MlflowClient, run_id: str | None) -> bool:
    """Return whether a run to resume has finished at least one epoch."""
    if run_id is None:
        return False
    folder = client.get_run(run_id).data.tags.get("work_folder", "")
    return (Path(folder) / LAST_CHECKPOINT).is_file()


def reap_runs(store: RunStore, older_than: str | None) -> None:
    """Close stale runs and print their ids.

    `older_than` is a duration such as 24h, see `reap`.
    """
    hours = None
    if older_than is not None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([hd])", older_than)
        if not match:
            raise ConfigError(f"--older-than is {older_than!r}; expected hours or days, such as 24h or 2d.")
        hours = float(match[1]) * (24 if match[2] == "d" else 1)
    console = make_console()
    closed = reap(store.client, hours)
    console.print(f"closed {len(closed)} stale runs as KILLED" + (": " + ", ".join(closed) if closed else ""))
