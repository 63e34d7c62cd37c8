"""One trial of a sweep, in a process of its own: `python -m skincancer.trial` is what a sweep's worker starts, not people.

It imports what training needs and waits for its order, a line of JSON on standard input: the experiment's file and the trial's number.
The worker reads such lines from a pipe: the run's id, `val/<monitor>` of each epoch, and the objective at the end. To each epoch it
answers "go" or "prune" on standard input; where that ends, the worker is gone or has no more trials, and so the process ends.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skincancer import config
from skincancer.terminal import Interrupted, run_verb, signals_as_interrupts

GO, PRUNE = "go", "prune"
STATE_TAG = "trial_state"
AHEAD = (
    "ranks",
    "recording",
    "training",
    "data.datamodules",
    "models.building",
)  # what `fit` imports when it is called


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

    def tags(self) -> dict[str, str]:
        """Return the tags that make a run a trial of its sweep."""
        return {"kind": "trial", "mlflow.parentRunId": self.parent, STATE_TAG: "RUNNING"}

    def log_params(self) -> dict[str, Any]:
        """Return the trial's number and its point."""
        return {"trial": self.number, **self.params}

    def started(self, run_id: str) -> None:
        """Tell the worker which run is written."""
        self._tell(run=run_id)

    def report(self, epoch: int, value: float, last: bool) -> bool:
        """Tell the monitored value of an epoch (from 1); return whether the worker wants no more. The last epoch is never pruned."""
        self._tell(epoch=epoch, value=value, last=last)
        self.pruned = not last and self._answers.get() == PRUNE
        return self.pruned

    def ended(self, objective: float | None) -> None:
        """Tell the objective, or that the trial was pruned (None)."""
        self._tell(**({"pruned": True} if objective is None else {"objective": objective}))

    def _tell(self, **message: Any) -> None:
        try:
            os.write(self.pipe, (json.dumps(message) + "\n").encode())
        except BrokenPipeError:
            raise Interrupted(signal.SIGTERM) from None  # the worker is gone


def _verb(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m skincancer.trial", description=__doc__)
    parser.add_argument("--pipe", type=int, required=True)
    pipe = parser.parse_args(argv).pipe
    with signals_as_interrupts():
        for name in AHEAD:
            importlib.import_module(f"skincancer.{name}")
        order = sys.stdin.readline()
        if not order:
            return
        given = json.loads(order)
        experiment, _ = config.resolve(given.pop("config"), {})
        link = TrialLink(**given, pipe=pipe)
        link.listen()
        from skincancer.fit import fit

        fit(experiment, trial=link)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one trial; return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
