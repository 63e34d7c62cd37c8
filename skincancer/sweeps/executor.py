"""The workers of a sweep: each claims a trial, runs it in a process of its own, and writes down how it ended."""

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
from skincancer.sweeps.study import HEARTBEAT_SECONDS, RUN_ID, THREADS, Ended, Sweep
from skincancer.sweeps.trial import GO, PRUNE, TRIAL_PROCESS
from skincancer.sweeps.worker_process import Slot, new_log, why_ended
from skincancer.system.interrupts import uninterrupted
from skincancer.system.launcher import without_launcher
from skincancer.system.paths import work_root
from skincancer.system.yaml_files import dump_yaml

_TICK = 0.5
_SAME_SIGNAL_SECONDS = 2.0
_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "interrupted": "INTERRUPTED"}

Runner = Callable[[Trial, int, threading.Event], Ended]


def work(
    sweep: Sweep,
    run_trial: Runner,
    workers: int,
    *,
    deadline: float | None = None,
    tick: Callable[[], None] = lambda: None,
    bury: Callable[[FrozenTrial], None] = lambda trial: None,
) -> None:
    """Run trials with `workers` at once until the sweep has its total, the deadline is past, or every trial fails.

    Args:
        sweep: joined by any number of processes.
        run_trial: runs a claimed trial in the worker's slot (from 0), ends early where the event is set, and says how it ended.
        workers: threads of this process.
        deadline: of `time.monotonic`; trials that run then are finished, and none is started.
        tick: called by this thread between looks, such as to draw a table.
        bury: called with each trial whose worker was found dead.

    Raises:
        RunError: the storage is lost, or the first trials, or many on end, failed.
        Interrupted: after the running trials have been ended and queued again.
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
        _stop_if_hopeless(sweep)  # also where the last trial was one of those


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
            _stop_if_hopeless(sweep)
            late = deadline is not None and time.monotonic() >= deadline
            trial = None if late else sweep.claim(slot)
        if late:
            return
        if trial is None:
            stop.wait(2 * _TICK)  # for the trials of other workers: one that dies is repeated here
            continue
        ended = Ended("interrupted")
        try:
            ended = run_trial(trial, slot, stop)
        except UpdateFinishedTrialError:
            continue  # silent for so long that another worker has taken it for dead, and repeats it
        except SkinCancerError:
            raise  # the storage
        except Exception as error:
            ended = Ended("failed", reason=f"{type(error).__name__}: {error}")
        finally:
            with storage_errors(sweep.url):
                sweep.end(trial, ended)


def _stop_if_hopeless(sweep: Sweep) -> None:
    if reason := sweep.hopeless():
        raise RunError(f"the sweep stops: {reason}\nMend it, and start the same command again.")


def visible_devices() -> list[str]:
    """Return the GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them; [] on a machine without."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if given and count:
        return [name.strip() for name in given.split(",")][:count]
    return [str(number) for number in range(count)]


@dataclass
class TrialProcess:
    """Runs a trial as a process of its own (`sweeps.trial`), so that it frees its GPU, and a crash costs one trial.

    Each slot has a process that has imported what training needs and forks one for each of its trials. `close` ends them.

    Args:
        sweep: whose trials.
        places: PLACE_KEYS of this machine, but the MLflow store.
        client: of the MLflow store.
        folder: for the trials' files.
        workers: of this process.
        devices: GPUs to share between them.
    """

    sweep: Sweep
    places: Mapping[str, Any]
    client: MlflowClient
    folder: Path
    workers: int
    devices: Sequence[str]
    _started: dict[int, Slot] = field(default_factory=dict)

    def __call__(self, trial: Trial, slot: int, stop: threading.Event) -> Ended:
        """Run a trial to its end."""
        try:
            experiment, unused = self.sweep.plan.at(trial.params, self.places)
        except ConfigError as error:
            return Ended("failed", reason=str(error))
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / f"trial_{trial.number:04d}"
        stem.with_suffix(".yaml").write_text(dump_yaml(config_to_keep(experiment, search={})), encoding="utf-8")
        if not self.devices:
            with storage_errors(self.sweep.url):
                trial.set_user_attr(THREADS, self.threads)
        log = stem.with_suffix(".log")
        log.unlink(missing_ok=True)
        talk = _Talk(self.sweep, trial)
        started = self._started.pop(slot, None)
        if started is None or started.process.poll() is not None:
            if started is not None:
                started.end()
            started = self._start(slot)
        well = False
        try:
            started.say({
                "config": str(stem.with_suffix(".yaml")), "log": str(log), "number": trial.number, "parent": self.sweep.parent,
                "params": {key: value for key, value in trial.params.items() if key not in unused},
            })  # fmt: skip
            ended = talk.listen(started, stop)
            well = talk.exit_code == 0 and ended is not None
        finally:
            if well:
                self._started[slot] = started
            else:
                started.end()  # the loaders of a trial that crashed are in its process group
        code = started.process.returncode if talk.exit_code is None else talk.exit_code
        if not log.exists():  # it did not come to a trial
            started.log.rename(log)
        elif not well:
            started.log.unlink()
        if ended is None and code in (130, 143) and stop.wait(_SAME_SIGNAL_SECONDS):
            ended = Ended("interrupted")  # a signal to all processes reached the trial first
        if ended is None:
            ended = Ended("failed", reason=why_ended(code, log))
        self._close_run(trial.number, talk.run_id, ended, log)
        return ended

    def bury(self, trial: FrozenTrial) -> None:
        """Write down in MLflow that a trial's worker died; the trial is repeated."""
        if run_id := trial.user_attrs.get(RUN_ID):
            self._remove_work(run_id)
            with contextlib.suppress(MlflowException, OSError):
                self.client.set_tag(run_id, STATE_TAG, "DEAD")
                if self.client.get_run(run_id).info.status == "RUNNING":
                    self.client.set_tag(run_id, "status_reason", "the worker of this trial died; it is repeated")
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
        environment = without_launcher(os.environ)  # a trial is no rank, whatever started its worker
        environment["MLFLOW_TRACKING_URI"] = self.client.tracking_uri  # not in its file, for it may hold a password
        # the last line of a log is then what was written last: the reason of a failure
        environment["PYTHONUNBUFFERED"] = "1"
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        else:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment

    @property
    def threads(self) -> int:
        """How many threads a trial computes with on a CPU: those that OMP_NUM_THREADS says, else its share of the cores."""
        given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
        return int(given) if given.isdigit() and int(given) else max(1, usable_cores() // self.workers)

    def _close_run(self, number: int, run_id: str | None, ended: Ended, log: Path) -> None:
        """Write down in MLflow what a process that died could not, and remove what it left."""
        with contextlib.suppress(MlflowException, OSError):  # the study has it too
            if run_id is None and ended.state == "failed":
                run_id = self._make_run(number)
            if run_id is None:
                return
            self.client.set_tag(run_id, STATE_TAG, _STATES[ended.state])
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_tag(run_id, "status_reason", ended.reason[:4000] or ended.state)
                self.client.set_terminated(run_id, "KILLED" if ended.state == "interrupted" else "FAILED")
            if ended.state == "failed":
                self.client.log_artifact(run_id, str(log))
            self._remove_work(run_id)

    def _remove_work(self, run_id: str) -> None:
        """Remove what a trial that died has left on this machine: it is repeated from its start, never resumed."""
        shutil.rmtree(work_root(self.client.tracking_uri) / run_id, ignore_errors=True)

    def _make_run(self, number: int) -> str:
        """Make the run of a trial that failed before it had one."""
        parent = self.client.get_run(self.sweep.parent)
        tags = {"kind": "trial", "mlflow.parentRunId": self.sweep.parent, "mlflow.runName": f"trial {number}"}
        run: Any = self.client.create_run(parent.info.experiment_id, tags=tags)
        self.client.log_param(run.info.run_id, "trial", number)
        return str(run.info.run_id)


def usable_cores() -> int:
    """Return how many cores this process may use: those that SLURM or a container gave it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Talk:
    """What a trial's process says, and what it is answered."""

    def __init__(self, sweep: Sweep, trial: Trial) -> None:
        self.sweep, self.trial = sweep, trial
        self.run_id: str | None = None
        self.exit_code: int | None = None
        self.ended: Ended | None = None
        self._beaten = 0.0

    def listen(self, started: Slot, stop: threading.Event) -> Ended | None:
        """Follow a trial to its end; None where it died without a word."""
        process, pipe, rest = started.process, started.pipe, b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not stop.is_set():
                self._beat()
                ready = selector.select(_TICK)
                if not ready and process.poll() is None:
                    continue
                # it may have spoken and ended since
                chunk = pipe.read(65536) if ready or selector.select(0) else b""
                if not chunk:  # no process of this slot is left
                    process.wait()
                    return self.ended if process.returncode == 0 else None
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._take(json.loads(line), started)
                if self.exit_code is not None:
                    return self.ended if self.exit_code == 0 else None
        return Ended("interrupted")

    def _beat(self) -> None:
        if time.monotonic() - self._beaten > HEARTBEAT_SECONDS:
            with storage_errors(self.sweep.url):
                self.sweep.beat(self.trial)
            self._beaten = time.monotonic()

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
                started.say(PRUNE if prune else GO)
        elif "objective" in message:
            self.ended = Ended("complete", float(message["objective"]))
        elif message.get("pruned"):
            self.ended = Ended("pruned")
        elif "exit" in message:
            self.exit_code = message["exit"]
