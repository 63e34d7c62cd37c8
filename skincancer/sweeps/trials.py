"""Run the trials of a sweep on an engine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from optuna.trial import Trial

from skincancer.config.cli import build_parser
from skincancer.engines.orders import Ended, Engine, Epoch, Event, Lost, Order, Refused, Result, RunCreated, Started
from skincancer.errors import ConfigError, RunError
from skincancer.runs.artifacts import config_to_keep
from skincancer.runs.lifecycle import close_lost
from skincancer.sweeps.storage import storage_errors
from skincancer.sweeps.study import Sweep
from skincancer.sweeps.trial_state import PLACE, RUN_ID, THREADS
from skincancer.system.interrupts import uninterrupted
from skincancer.system.yaml_files import dump_yaml

_TICK_SECONDS = 0.5
_STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "interrupted": "INTERRUPTED"}


@dataclass
class TrialRunner:
    """Driver of the trials of a sweep.

    Attributes:
        sweep: the sweep.
        engine: runs the trials.
        places: `PLACE_KEYS` of the command line, except the MLflow store.
        client: client of the MLflow store.
        say: prints a line.
        announce: print where each trial runs.
    """

    sweep: Sweep
    engine: Engine
    places: Mapping[str, Any]
    client: MlflowClient
    say: Callable[[str], None]
    announce: bool = False
    # To build a parser takes half of the time that the driver spends on a trial.
    _parser: ArgumentParser = field(default_factory=lambda: build_parser("skincancer.sweep", ""))
    _running: dict[int, Trial] = field(default_factory=dict)
    _runs: dict[int, str] = field(default_factory=dict)
    _reported: dict[int, int] = field(default_factory=dict)

    def run(self, deadline: float | None, tick: Callable[[], None]) -> None:
        """Run trials until the sweep is complete.

        Args:
            deadline: time of `time.monotonic` after which no trial is started. Running trials are finished.
            tick: called regularly, for example to draw a table.

        Raises:
            RunError: The storage is unavailable, no machine can run trials, or the first trials, or many consecutive trials, failed.
            Interrupted: After the running trials have been stopped and queued again.
        """
        events: list[Event] = []
        try:
            while True:
                late = deadline is not None and time.monotonic() >= deadline
                if not late:
                    self._start_trials()
                if not self._running and (late or self.sweep.is_over()):
                    return
                events = [*self.engine.events(_TICK_SECONDS)]
                # A signal must not lose events that the engine has returned.
                while events:
                    self._handle(events[0])
                    del events[0]
                self._check_abort()
                with storage_errors(self.sweep.url), uninterrupted():
                    tick()
        finally:
            for event in [*events, *self.engine.stop()]:
                self._handle(event)
            for trial in list(self._running.values()):
                self._end(trial, Result("interrupted"), None)

    def _start_trials(self) -> None:
        while self.engine.room() > 0:
            with uninterrupted():
                trial = self.sweep.ask()
                if trial is None:
                    return
                self._running[trial.number] = trial
            try:
                experiment, unused = self.sweep.plan.at(trial.params, self.places, self._parser)
            except ConfigError as error:
                self._end(trial, Result("failed", reason=str(error)), None)
                self._check_abort()
                continue
            if self.engine.threads:
                with storage_errors(self.sweep.url):
                    trial.set_user_attr(THREADS, self.engine.threads)
            params = {key: value for key, value in trial.params.items() if key not in unused}
            config = dump_yaml(config_to_keep(experiment, search={}))
            self.engine.submit(
                Order(
                    trial.number, "trial", f"trial_{trial.number:04d}", config, parent=self.sweep.parent, params=params
                )
            )

    def _handle(self, event: Event) -> None:
        if isinstance(event, Refused):
            self.say(f"{event.place} gets no trials: {event.reason}")
            return
        trial = self._running.get(event.number)
        if trial is None:
            return
        with storage_errors(self.sweep.url), uninterrupted():
            if isinstance(event, Started):
                trial.set_user_attr(PLACE, event.place)
                if self.announce:
                    self.say(f"trial {trial.number} runs on {event.place}")
            elif isinstance(event, RunCreated):
                self._runs[trial.number] = event.run_id
                trial.set_user_attr(RUN_ID, event.run_id)
            elif isinstance(event, Epoch):
                self._report(trial, event)
            elif isinstance(event, Lost):
                self.say(f"trial {trial.number}: {event.place} died or is unreachable; the trial starts again")
                self._bury(trial.number)
            elif isinstance(event, Ended):
                self._end(trial, event.result, event.log)

    def _report(self, trial: Trial, event: Epoch) -> None:
        # A trial that starts again has reported its first epochs before.
        again = event.epoch <= self._reported.get(trial.number, 0)
        if not again:
            trial.report(event.value, event.epoch)
            self._reported[trial.number] = event.epoch
        if not event.last:
            self.engine.answer(trial.number, prune=not again and trial.should_prune())

    def _end(self, trial: Trial, result: Result, log: Path | None) -> None:
        with uninterrupted():
            self.sweep.end(trial, result)
            del self._running[trial.number]
            self._close_run(trial.number, result, log)

    def _check_abort(self) -> None:
        if reason := self.sweep.abort_reason():
            raise RunError(
                f"sweep aborted: {reason}\nFix the cause and rerun the same command; finished trials are kept."
            )

    def _close_run(self, number: int, result: Result, log: Path | None) -> None:
        """Record the end of a trial in MLflow, and delete its working files."""
        # The study has the result too, so errors are ignored.
        with contextlib.suppress(MlflowException, OSError):
            run_id = self._runs.pop(number, None)
            if run_id is None and result.state == "failed":
                run_id = self._make_run(number)
            if run_id is None:
                return
            if result.state == "failed" and log is not None and log.exists():
                self.client.log_artifact(run_id, str(log))
            close_lost(
                self.client, run_id, result.reason or result.state, "KILLED" if result.state == "interrupted" else "FAILED",
                state=_STATES[result.state], remove=True,
            )  # fmt: skip

    def _bury(self, number: int) -> None:
        if run_id := self._runs.pop(number, None):
            bury(self.client, [run_id], "its machine died")

    def _make_run(self, number: int) -> str:
        """Create the MLflow run of a trial that failed before it had one."""
        parent = self.client.get_run(self.sweep.parent)
        tags = {"kind": "trial", "mlflow.parentRunId": self.sweep.parent, "mlflow.runName": f"trial {number}"}
        run: Any = self.client.create_run(parent.info.experiment_id, tags=tags)
        self.client.log_param(run.info.run_id, "trial", number)
        return str(run.info.run_id)


def bury(client: MlflowClient, run_ids: Sequence[str], why: str) -> None:
    """Close the MLflow runs of trials that died."""
    for run_id in run_ids:
        with contextlib.suppress(MlflowException, OSError):
            close_lost(client, run_id, f"{why}; the trial is repeated", "KILLED", state="DEAD", remove=True)
