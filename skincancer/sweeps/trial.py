"""Trials of a sweep, each in its own process. Workers start this process by `python -m skincancer.sweep trial-process`.

It imports what training needs, once, and for each order, a line of JSON on standard input (the experiment's file, the trial's number
and its log), forks the process that trains: a trial pays no imports, frees its GPU, and can crash alone. That process tells lines of
JSON through a pipe: the run's id, `val/<monitor>` of each epoch, and the objective at the end; last comes its exit code. To each epoch
the worker answers "go" or "prune" on standard input; where that ends, the worker is gone or has no more trials, and so both end.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from skincancer.config.resolve import resolve
from skincancer.runs.lifecycle import STATE_TAG
from skincancer.schema import Experiment
from skincancer.system.console import run_verb
from skincancer.system.interrupts import Interrupted, signals_as_interrupts

TRIAL_PROCESS = "trial-process"  # first argument of the process of a worker
GO, PRUNE = "go", "prune"
_GONE = "gone"  # what a trial that waits for an answer hears where its worker died
GRACE_SECONDS = 30.0  # for a trial to write its end
FORKS = sys.platform != "darwin"  # Metal does not work in a forked process
AHEAD = (  # what `fit` imports when it is called, and the libraries that are slow to import
    "skincancer.training.distributed",
    "skincancer.training.recorder",
    "skincancer.training.trainer",
    "skincancer.data.datamodule",
    "skincancer.models.factory",
    "mlflow.store.tracking.sqlalchemy_store",
    "segmentation_models_pytorch",
    "timm",
)


@dataclass
class TrialLink:
    """A trial's line to its worker, and what its MLflow run is called by.

    Args:
        number: of the trial.
        parent: MLflow run id of the sweep.
        params: the point of the space, dotted key to value.
        pipe: file descriptor to write lines to.
    """

    number: int
    parent: str
    params: Mapping[str, Any]
    pipe: int
    pruned: bool = False
    _answers: queue.Queue[str] = field(default_factory=queue.Queue)

    def listen(self) -> None:
        """Take answers from standard input, and end this process where it ends."""
        threading.Thread(target=self._listen, name="worker", daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._answers.put(json.loads(line))
        os.kill(os.getpid(), signal.SIGTERM)
        self._answers.put(_GONE)  # a signal that arrives just before a thread waits for a lock does not wake it
        # a main thread that hangs in a library hears no signal; this says where it hangs, and ends it
        faulthandler.dump_traceback_later(GRACE_SECONDS, exit=True)

    def tags(self) -> dict[str, str]:
        """Return the tags that make a run a trial of its sweep."""
        return {"kind": "trial", "mlflow.parentRunId": self.parent, STATE_TAG: "RUNNING"}

    def log_params(self) -> dict[str, Any]:
        """Return the trial's number and its point."""
        return {"trial": self.number, **self.params}

    def run_started(self, run_id: str) -> None:
        """Tell the worker which run is written."""
        self._tell(run=run_id)

    def report(self, epoch: int, value: float, last: bool) -> bool:
        """Tell the monitored value of an epoch (from 1); return whether the worker wants no more. The last epoch is never pruned."""
        self._tell(epoch=epoch, value=value, last=last)
        answer = GO if last else self._answers.get()
        if answer == _GONE:
            raise Interrupted(signal.SIGTERM)
        self.pruned = answer == PRUNE
        return self.pruned

    def ended(self, objective: float | None) -> None:
        """Tell the objective, or that the trial was pruned (None)."""
        self._tell(**({"pruned": True} if objective is None else {"objective": objective}))

    def _tell(self, **message: Any) -> None:
        try:
            _write(self.pipe, **message)
        except BrokenPipeError:
            raise Interrupted(signal.SIGTERM) from None  # the worker is gone


FitTrial = Callable[[Experiment, TrialLink], None]


def _verb(argv: Sequence[str], fit: FitTrial) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m skincancer.sweep {TRIAL_PROCESS}")
    parser.add_argument("--pipe", type=int, required=True)
    pipe = parser.parse_args(argv).pipe
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # a trial obeys them; what forks them ends with standard input
    for name in AHEAD:
        importlib.import_module(name)
    given = _next_order(pipe)
    if given is None:
        return
    with signals_as_interrupts():
        experiment, _ = resolve(given.pop("config"), {})
        link = TrialLink(**given, pipe=pipe)
        link.listen()
        fit(experiment, link)


def _next_order(pipe: int) -> dict[str, Any] | None:
    """Wait for orders and fork a process for each: it returns there, with the order, and in this process (None) where they end.

    On macOS it returns in this process, which then ends with the trial, and the worker starts another.
    """
    gc.freeze()  # so that a trial's garbage collector leaves the shared pages alone
    while line := sys.stdin.readline():
        given = json.loads(line)
        if given in (GO, PRUNE):
            continue  # for a trial that has ended since
        log = given.pop("log")
        sys.stdout.flush()  # what waits in a buffer would be written by the trial too, and into its log
        sys.stderr.flush()
        child = os.fork() if FORKS else 0
        if not child:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.close(output)
            return dict(given)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(BrokenPipeError):
            _write(pipe, exit=os.waitstatus_to_exitcode(status))
    return None


def _write(pipe: int, **message: Any) -> None:
    os.write(pipe, (json.dumps(message) + "\n").encode())


def main(argv: Sequence[str], fit: FitTrial) -> int:
    """Run trials until standard input ends.

    Args:
        argv: `--pipe` and the number of a file descriptor to write to.
        fit: trains one trial.

    Returns:
        The exit code. In the process of a trial: the exit code of that trial.
    """
    return run_verb(partial(_verb, fit=fit), argv)
