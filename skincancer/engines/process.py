"""Process that runs orders: `python -m skincancer.order_process --pipe FD`.

This process imports the modules of training once. For each order, a line of JSON on standard input, it forks a process. An order
therefore needs no imports, releases its GPU at the end, and a crash affects only that order. The forked process writes lines of JSON to a
pipe: its run id, `val/<monitor>` of each epoch of a trial, and the objective. Its exit code follows. The engine answers each epoch with
"go" or "prune" on standard input. Both processes end at the end of standard input, when the engine has exited or has no more orders.
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

from skincancer.engines.orders import GO, GRACE_SECONDS, PRUNE
from skincancer.runs import lifecycle
from skincancer.system.console import run_verb
from skincancer.system.interrupts import Interrupted, signals_as_interrupts

# Replaces the answer to an epoch if the engine died.
_GONE = "gone"
# Metal does not work in a forked process.
FORKS = sys.platform != "darwin"
# Modules that `fit` imports when called, and libraries that are slow to import.
AHEAD = (
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
class OrderLink:
    """Connection of an order to its engine.

    It also names the MLflow run of a trial.

    Attributes:
        number: number of the trial.
        parent: MLflow run id of the sweep.
        params: point of the search space, by dotted key.
        pipe: file descriptor for messages to the engine.
    """

    number: int
    parent: str
    params: Mapping[str, Any]
    pipe: int
    pruned: bool = False
    _answers: queue.Queue[str] = field(default_factory=queue.Queue)

    def listen(self) -> None:
        """Read answers from standard input, and end this process at its end."""
        threading.Thread(target=self._listen, name="engine", daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._answers.put(json.loads(line))
        os.kill(os.getpid(), signal.SIGTERM)
        # A signal that arrives just before a thread waits for a lock does not wake the thread.
        self._answers.put(_GONE)
        # A main thread that hangs in a library ignores signals. The traceback shows where it hangs.
        faulthandler.dump_traceback_later(GRACE_SECONDS, exit=True)

    def tags(self) -> dict[str, str]:
        """Return the MLflow tags of a trial of this sweep."""
        return {"kind": "trial", "mlflow.parentRunId": self.parent, lifecycle.STATE_TAG: "RUNNING"}

    def log_params(self) -> dict[str, Any]:
        """Return the number and the point of the trial."""
        return {"trial": self.number, **self.params}

    def report(self, epoch: int, value: float, last: bool) -> bool:
        """Send the monitored value of an epoch, and return whether to prune.

        Args:
            epoch: number of the epoch, from 1.
            value: monitored value.
            last: this is the last epoch, which is never pruned.
        """
        self.send(epoch=epoch, value=value, last=last)
        answer = GO if last else self._answers.get()
        if answer == _GONE:
            raise Interrupted(signal.SIGTERM)
        self.pruned = answer == PRUNE
        return self.pruned

    def ended(self, objective: float | None) -> None:
        """Send the objective, or None for a pruned trial."""
        self.send(**({"pruned": True} if objective is None else {"objective": objective}))

    def send(self, **message: Any) -> None:
        """Send a message to the engine.

        Raises:
            Interrupted: The engine has exited.
        """
        try:
            _write(self.pipe, **message)
        except BrokenPipeError:
            raise Interrupted(signal.SIGTERM) from None


# Runs an order, by its config file and its arguments, and returns its exit code.
Handler = Callable[[str, Sequence[str], OrderLink], int]


def _verb(argv: Sequence[str], handlers: Mapping[str, Handler], exits: list[int]) -> None:
    parser = argparse.ArgumentParser(prog="python -m skincancer.order_process")
    parser.add_argument("--pipe", type=int, required=True)
    pipe = parser.parse_args(argv).pipe
    for signum in (signal.SIGINT, signal.SIGTERM):
        # Orders handle these signals. This process ends with standard input.
        signal.signal(signum, signal.SIG_IGN)
    for name in AHEAD:
        importlib.import_module(name)
    order = _next_order(pipe)
    if order is None:
        return
    with signals_as_interrupts():
        link = OrderLink(order["number"], order["parent"], order["params"], pipe)
        link.listen()
        lifecycle.observers.append(lambda run_id: link.send(run=run_id))
        exits.append(handlers[order["kind"]](order["config"], order["argv"], link))


def _next_order(pipe: int) -> dict[str, Any] | None:
    """Wait for orders, and fork a process for each.

    On macOS, where no process is forked, this process runs the order and ends, and the engine starts another process.

    Returns:
        The order, in the forked process. None in this process, at the end of the orders.
    """
    # The garbage collector of an order must not copy shared memory pages.
    gc.freeze()
    while line := sys.stdin.readline():
        order = json.loads(line)
        # An answer to a trial that has ended.
        if order in (GO, PRUNE):
            continue
        log = order.pop("log")
        # The order would otherwise write buffered output again, to its log.
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork() if FORKS else 0
        if not child:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for stream in (1, 2):
                os.dup2(output, stream)
            os.close(output)
            return dict(order)
        _, status = os.waitpid(child, 0)
        with contextlib.suppress(BrokenPipeError):
            _write(pipe, exit=os.waitstatus_to_exitcode(status))
    return None


def _write(pipe: int, **message: Any) -> None:
    os.write(pipe, (json.dumps(message) + "\n").encode())


def main(argv: Sequence[str], handlers: Mapping[str, Handler]) -> int:
    """Run orders until standard input ends.

    Args:
        argv: `--pipe` and the number of the file descriptor for messages.
        handlers: handler of each kind of order.

    Returns:
        Exit code of this process, or of the order in a forked process.
    """
    exits: list[int] = []
    return run_verb(partial(_verb, handlers=handlers, exits=exits), argv) or sum(exits)
