"""Workers of a sweep: claim trials, run each in its own process, record results."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial

from skincancer.errors import ConfigError, RunError, SkinCancerError
from skincancer.runs.artifacts import config_to_keep
from skincancer.runs.lifecycle import STATE_TAG
from skincancer.sweeps.storage import storage_errors
from skincancer.sweeps.study import HEARTBEAT_SECONDS, Sweep
from skincancer.sweeps.trial import GO, PRUNE, TRIAL_PROCESS
from skincancer.sweeps.trial_state import RUN_ID, THREADS, TrialResult
from skincancer.sweeps.worker_process import Slot, exit_reason, new_log
from skincancer.system.interrupts import uninterrupted
from skincancer.system.launcher import without_launcher
from skincancer.system.paths import work_root
from skincancer.system.yaml_files import dump_yaml

_TICK = 0.5
_SAME_SIGNAL_SECONDS = 2.0
_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "interrupted": "INTERRUPTED"}

Runner = Callable[[Trial, int, threading.Event], TrialResult]


def work(
    sweep: Sweep,
    run_trial: Runner,
    workers: int,
    *,
    deadline: float | None = None,
    tick: Callable[[], None] = lambda: None,
    bury: Callable[[FrozenTrial], None] = lambda trial: None,
) -> None:
    """Run trials with concurrent workers until the sweep is complete.

    Args:
        sweep: Sweep, which other processes may have joined too.
        run_trial: Runs a claimed trial in a slot (from 0), stops early if the event is set, and returns the result.
        workers: Number of threads of this process.
        deadline: Time of `time.monotonic` after which no trial is started. Running trials are finished.
        tick: Called regularly by the calling thread, for example to draw a table.
        bury: Called with each closed trial of a dead worker.

    Raises:
        RunError: The storage is unavailable, or the first trials, or many consecutive trials, failed.
        Interrupted: After the running trials have been stopped and queued again.
    """
    stop = threading.Event()
    problems: list[BaseException] = []

    def loop(slot: int) -> None:
        try:
            _claim_and_run(sweep, run_trial, slot, stop, deadline, bury)
        except BaseException as error:
            problems.append(error)
            stop.set()

    threads = [threading.Thread(target=loop, args=(slot,), name=f"worker {slot}") for slot in range(workers)]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            with storage_errors(sweep.url), uninterrupted():
                tick()
            if stop.wait(_TICK):
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if problems:
        raise problems[0]
    with storage_errors(sweep.url):
        # The last trial may be one of the consecutive failures.
        _check_abort(sweep)


def _claim_and_run(
    sweep: Sweep,
    run_trial: Runner,
    slot: int,
    stop: threading.Event,
    deadline: float | None,
    bury: Callable[[FrozenTrial], None],
) -> None:
    while not stop.is_set():
        with storage_errors(sweep.url):
            if sweep.is_over():
                return
            for dead in sweep.reap():
                bury(dead)
            _check_abort(sweep)
            late = deadline is not None and time.monotonic() >= deadline
            trial = None if late else sweep.claim(slot)
        if late:
            return
        if trial is None:
            # Trials of other workers still run. If such a worker dies, its trial is repeated here.
            stop.wait(2 * _TICK)
            continue
        result = TrialResult("interrupted")
        try:
            result = run_trial(trial, slot, stop)
        except UpdateFinishedTrialError:
            # Another worker has closed and repeated this trial, because this worker was silent for too long.
            continue
        except SkinCancerError:
            # The storage is unavailable.
            raise
        except Exception as error:
            result = TrialResult("failed", reason=f"{type(error).__name__}: {error}")
        finally:
            with storage_errors(sweep.url):
                sweep.end(trial, result)


def _check_abort(sweep: Sweep) -> None:
    if reason := sweep.abort_reason():
        raise RunError(f"sweep aborted: {reason}\nFix the cause and rerun the same command; finished trials are kept.")


def visible_devices() -> list[str]:
    """Return the visible GPUs, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if visible and count:
        return [name.strip() for name in visible.split(",")][:count]
    return [str(number) for number in range(count)]


@dataclass
class TrialProcess:
    """Runner of trials in separate processes (`sweeps.trial`).

    GPU memory is released at the end of a trial, and a crash affects only that trial. Each slot has a process with all imports done,
    which forks a process for each trial. `close` ends these processes.

    Args:
        sweep: Sweep of the trials.
        places: PLACE_KEYS of this machine, except the MLflow store.
        client: Client of the MLflow store.
        folder: Folder for the files of the trials.
        workers: Number of workers in this process.
        devices: GPUs that the workers share.
    """

    sweep: Sweep
    places: Mapping[str, Any]
    client: MlflowClient
    folder: Path
    workers: int
    devices: Sequence[str]
    _started: dict[int, Slot] = field(default_factory=dict)

    def __call__(self, trial: Trial, slot: int, stop: threading.Event) -> TrialResult:
        """Run a trial and return its result."""
        try:
            experiment, unused = self.sweep.plan.at(trial.params, self.places)
        except ConfigError as error:
            return TrialResult("failed", reason=str(error))
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / f"trial_{trial.number:04d}"
        stem.with_suffix(".yaml").write_text(dump_yaml(config_to_keep(experiment, search={})), encoding="utf-8")
        if not self.devices:
            with storage_errors(self.sweep.url):
                trial.set_user_attr(THREADS, self.threads)
        log = stem.with_suffix(".log")
        log.unlink(missing_ok=True)
        messages = _TrialMessages(self.sweep, trial)
        started = self._started.pop(slot, None)
        if started is None or started.process.poll() is not None:
            if started is not None:
                started.end()
            started = self._start(slot)
        succeeded = False
        try:
            started.send({
                "config": str(stem.with_suffix(".yaml")), "log": str(log), "number": trial.number, "parent": self.sweep.parent,
                "params": {key: value for key, value in trial.params.items() if key not in unused},
            })  # fmt: skip
            result = messages.listen(started, stop)
            succeeded = messages.exit_code == 0 and result is not None
        finally:
            if succeeded:
                self._started[slot] = started
            else:
                # Loader processes of a crashed trial are in its process group.
                started.end()
        code = started.process.returncode if messages.exit_code is None else messages.exit_code
        # Without a log, the process failed before the trial.
        if not log.exists():
            started.log.rename(log)
        elif not succeeded:
            started.log.unlink()
        # A signal to all processes may reach the trial before this process.
        if result is None and code in (130, 143) and stop.wait(_SAME_SIGNAL_SECONDS):
            result = TrialResult("interrupted")
        if result is None:
            result = TrialResult("failed", reason=exit_reason(code, log))
        self._close_run(trial.number, messages.run_id, result, log)
        return result

    def bury(self, trial: FrozenTrial) -> None:
        """Record in MLflow that the worker of a trial died."""
        if run_id := trial.user_attrs.get(RUN_ID):
            self._remove_work(run_id)
            with contextlib.suppress(MlflowException, OSError):
                self.client.set_tag(run_id, STATE_TAG, "DEAD")
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_tag(run_id, "status_reason", "the worker of this trial died; the trial is repeated")
                    self.client.set_terminated(run_id, "KILLED")

    def close(self) -> None:
        """End the processes that fork trials."""
        while self._started:
            _, started = self._started.popitem()
            started.end()
            started.log.unlink(missing_ok=True)

    def _start(self, slot: int) -> Slot:
        return Slot(self._command(), new_log(self.folder, slot), self._environment(slot))

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "skincancer.sweep", TRIAL_PROCESS]

    def _environment(self, slot: int) -> dict[str, str]:
        # A trial is not a rank, even if a launcher started its worker.
        environment = without_launcher(os.environ)
        # The URI is not in the experiment file of the trial, because it may contain a password.
        environment["MLFLOW_TRACKING_URI"] = self.client.tracking_uri
        # Without buffering, the last line of a log is the reason of a failure.
        environment["PYTHONUNBUFFERED"] = "1"
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        else:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment

    @property
    def threads(self) -> int:
        """Threads of a trial on a CPU: OMP_NUM_THREADS, else its share of the cores."""
        threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        return int(threads) if threads.isdigit() and int(threads) else max(1, usable_cores() // self.workers)

    def _close_run(self, number: int, run_id: str | None, result: TrialResult, log: Path) -> None:
        """Record the end of a trial in MLflow, and delete its working files."""
        # The study has the result too, so errors are ignored.
        with contextlib.suppress(MlflowException, OSError):
            if run_id is None and result.state == "failed":
                run_id = self._make_run(number)
            if run_id is None:
                return
            self.client.set_tag(run_id, STATE_TAG, _STATES[result.state])
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_tag(run_id, "status_reason", result.reason[:4000] or result.state)
                self.client.set_terminated(run_id, "KILLED" if result.state == "interrupted" else "FAILED")
            if result.state == "failed":
                self.client.log_artifact(run_id, str(log))
            self._remove_work(run_id)

    def _remove_work(self, run_id: str) -> None:
        """Delete the working files of a trial, which is repeated from its start."""
        shutil.rmtree(work_root(self.client.tracking_uri) / run_id, ignore_errors=True)

    def _make_run(self, number: int) -> str:
        """Create the MLflow run of a trial that failed before it had one."""
        parent = self.client.get_run(self.sweep.parent)
        tags = {"kind": "trial", "mlflow.parentRunId": self.sweep.parent, "mlflow.runName": f"trial {number}"}
        run: Any = self.client.create_run(parent.info.experiment_id, tags=tags)
        self.client.log_param(run.info.run_id, "trial", number)
        return str(run.info.run_id)


def usable_cores() -> int:
    """Return the number of cores that SLURM or a container allows."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _TrialMessages:
    """Messages between a worker and the process of a trial."""

    def __init__(self, sweep: Sweep, trial: Trial) -> None:
        self.sweep, self.trial = sweep, trial
        self.run_id: str | None = None
        self.exit_code: int | None = None
        self.result: TrialResult | None = None
        self._last_beat = 0.0

    def listen(self, started: Slot, stop: threading.Event) -> TrialResult | None:
        """Handle messages until the trial ends, and return its result if it has one."""
        process, pipe, rest = started.process, started.pipe, b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not stop.is_set():
                self._beat()
                ready = selector.select(_TICK)
                if not ready and process.poll() is None:
                    continue
                # The process may have sent a message and ended since.
                chunk = pipe.read(65536) if ready or selector.select(0) else b""
                # At the end of the pipe, no process of this slot is left.
                if not chunk:
                    process.wait()
                    return self.result if process.returncode == 0 else None
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(json.loads(line), started)
                if self.exit_code is not None:
                    return self.result if self.exit_code == 0 else None
        return TrialResult("interrupted")

    def _beat(self) -> None:
        if time.monotonic() - self._last_beat > HEARTBEAT_SECONDS:
            with storage_errors(self.sweep.url):
                self.sweep.beat(self.trial)
            self._last_beat = time.monotonic()

    def _take(self, message: Mapping[str, Any], started: Slot) -> None:
        if "run" in message:
            self.run_id = message["run"]
            with storage_errors(self.sweep.url):
                self.trial.set_user_attr(RUN_ID, self.run_id)
        elif "epoch" in message:
            with storage_errors(self.sweep.url):
                self.trial.report(message["value"], message["epoch"])
                prune = not message["last"] and self.sweep.should_prune(self.trial)
            if not message["last"]:
                started.send(PRUNE if prune else GO)
        elif "objective" in message:
            self.result = TrialResult("complete", float(message["objective"]))
        elif message.get("pruned"):
            self.result = TrialResult("pruned")
        elif "exit" in message:
            self.exit_code = message["exit"]
