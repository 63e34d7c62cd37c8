"""Orders, events and the interface of engines.

An order is data: the resolved experiment as YAML, or the arguments of a verb. An engine runs each order in a process of its own, on this
machine (`engines.local`) or on a Ray cluster (`engines.ray_cluster`). One driver submits orders and handles their events, so no process
shares a study or a list of orders with another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

# Answers to an epoch.
GO, PRUNE = "go", "prune"
# Time for an order to record its end.
GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Order:
    """Work for one process.

    Attributes:
        number: number of the order, and of the trial.
        kind: trial (a fit without test set, which sends the monitored value of each epoch), fit, evaluate (both by their arguments), or
            check (sends version and images of a machine).
        name: stem of its files in the folder of the engine.
        config: experiment as YAML, written to a file on the machine that runs the order. "" without one.
        argv: arguments of the verb, in which CONFIG is the path of that file.
        parent: MLflow run id of the sweep, "" without one.
        params: point of the search space, by dotted key.
    """

    number: int
    kind: Literal["trial", "fit", "evaluate", "check"]
    name: str
    config: str = ""
    argv: tuple[str, ...] = ()
    parent: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)


# Placeholder in `Order.argv`.
CONFIG = "{config}"


@dataclass(frozen=True)
class Result:
    """Result of an order: objective of a complete trial, reason of a failure."""

    state: Literal["complete", "pruned", "failed", "interrupted"]
    value: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class Started:
    """An order started, at a place such as "GPU 1" or "node2, GPU 0"."""

    number: int
    place: str


@dataclass(frozen=True)
class RunCreated:
    """An order created its MLflow run."""

    number: int
    run_id: str


@dataclass(frozen=True)
class Epoch:
    """A trial finished an epoch (from 1).

    It waits for `Engine.answer`, unless the epoch is the last one.
    """

    number: int
    epoch: int
    value: float
    last: bool


@dataclass(frozen=True)
class Checked:
    """Facts of the machine, from an order of kind check."""

    number: int
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Ended:
    """An order ended. `log` is the path of its output on this machine."""

    number: int
    result: Result
    log: Path


@dataclass(frozen=True)
class Lost:
    """The machine of an order died. The engine runs the order again."""

    number: int
    place: str


@dataclass(frozen=True)
class Refused:
    """A machine gets no orders, for a reason."""

    place: str
    reason: str


Event = Started | RunCreated | Epoch | Checked | Ended | Lost | Refused


class Engine(Protocol):
    """Runs orders.

    Attributes:
        threads: OMP_NUM_THREADS of an order, None where the library chooses.
    """

    threads: int | None

    def room(self) -> int:
        """Return the number of orders that could start now."""

    def submit(self, order: Order) -> None:
        """Start an order."""

    def events(self, seconds: float) -> Sequence[Event]:
        """Return the next events, after at most this time.

        Raises:
            RunError: The engine can run no more orders.
        """

    def answer(self, number: int, prune: bool) -> None:
        """Answer the epoch of a trial."""

    def stop(self) -> Sequence[Event]:
        """Stop the running orders, and return their last events."""

    def close(self) -> None:
        """Free all processes, after `stop`."""
