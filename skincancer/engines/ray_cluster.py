"""Engine that runs orders on the machines of a Ray cluster.

Each order is a Ray task (`engines.ray_task`). The engine chooses the machine of each order, so a machine gets orders only after it has
answered the check, and the engine knows which orders a dead machine had.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skincancer.engines.orders import (
    GO,
    GRACE_SECONDS,
    PRUNE,
    Checked,
    Ended,
    Epoch,
    Event,
    Lost,
    Order,
    Refused,
    Result,
    Started,
)
from skincancer.engines.ray_connection import cluster_errors
from skincancer.engines.ray_task import STOP, Mailbox, run_order
from skincancer.engines.resources import Resources
from skincancer.errors import RunError
from skincancer.runs.store import RunStore
from skincancer.system.credentials import remove_password
from skincancer.system.interrupts import uninterrupted

# Starts of an order, and of a check, before a machine that dies every time counts as its failure.
MOST_STARTS, MOST_CHECKS = 5, 3
# Time without a running order after which the reason is reported.
IDLE_SECONDS = 60.0
# Time after which an order that waits for cores moves to another machine, and time for which its machine counts as busy.
STUCK_SECONDS, BUSY_SECONDS = 20.0, 60.0
# Time after a loss for which a machine gets no orders. Ray reports a lost task up to 20 s before the death of its machine.
PAUSE_SECONDS = 30.0
_LOOK_SECONDS = 1.0
_POLL_SECONDS = 0.1


@dataclass
class _Node:
    """Machine of the cluster.

    Attributes:
        name: host name.
        slots: number of orders for which it has cores and GPUs.
        accepted: None while it is checked, else whether it may run orders.
        busy_until: time of `time.monotonic` until which it gets no orders.
    """

    name: str
    slots: int
    accepted: bool | None
    busy_until: float = 0.0


@dataclass
class _Attempt:
    """One start of an order.

    Attributes:
        node: node id of its machine.
        place: name of its machine, with its GPU after the order started.
        starts: number of starts of the order, with this one.
        since: time of `time.monotonic` of the start.
        started: the task has left the queue of its machine.
        asks: an epoch waits for its answer.
    """

    order: Order
    node: str
    place: str
    task: Any
    starts: int
    since: float
    started: bool = False
    asks: bool = False

    @property
    def is_check(self) -> bool:
        """Whether this is the check of a machine."""
        return self.order.kind == "check"


class RayEngine:
    """Runs orders on the machines of a Ray cluster.

    Args:
        resources: GPUs and cores of an order.
        folder: folder for the logs of failed orders.
        store: MLflow store of the orders. If its address contains a password, each machine needs MLFLOW_TRACKING_URI.
        use_gpus: orders use a GPU where the cluster has some.
        check: order that a machine answers with its facts, before it gets other orders.
        refusal: returns from these facts why the machine gets no orders, "" if it does.
    """

    def __init__(
        self, resources: Resources, folder: Path, store: RunStore, *, use_gpus: bool, check: Order | None,
        refusal: Callable[[dict[str, object]], str],
    ) -> None:  # fmt: skip
        self.folder, self._check, self._refusal, self._resources = folder, check, refusal, resources
        self._most = resources.workers
        with_gpus = use_gpus and (resources.gpus is not None or ray.cluster_resources().get("GPU", 0) > 0)
        self._gpus = (1.0 if resources.gpus is None else resources.gpus) if with_gpus else 0.0
        # Ray would set OMP_NUM_THREADS to the same number.
        self._cpus = resources.cpus or 1
        self.threads: int | None = self._cpus
        self._variables = {"OMP_NUM_THREADS": str(self._cpus)}
        if remove_password(store.uri) == store.uri:
            self._variables["MLFLOW_TRACKING_URI"] = store.uri
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox: Any = ray.remote(Mailbox)
        # Each attempt waits for an answer in a call of its own.
        self._mailbox = mailbox.options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here).remote()
        self._task: Any = ray.remote(run_order)
        self._nodes: dict[str, _Node] = {}
        self._attempts: dict[int, _Attempt] = {}
        self._waiting: list[tuple[Order, int]] = []
        self._events: list[Event] = []
        self._last = self._known = 0
        self._looked = -_LOOK_SECONDS
        self._idle_since = time.monotonic()
        self._idle_reported = self._was_accepted = self._stopping = False

    def room(self) -> int:
        """Return the number of orders that the accepted machines could start now."""
        free = sum(self._free(node) for node in self._nodes)
        if self._most is not None:
            free = min(free, self._most - sum(not attempt.is_check for attempt in self._attempts.values()))
        return max(0, free - len(self._waiting))

    def submit(self, order: Order) -> None:
        """Start an order on the machine with the most room."""
        self._waiting.append((order, 1))
        self._start_waiting()

    def events(self, seconds: float) -> list[Event]:
        """Return the next events, after at most this time."""
        until = time.monotonic() + seconds
        while True:
            # A signal must lose no event and no order.
            with uninterrupted(), cluster_errors():
                self._look()
                self._collect()
                self._move_stuck()
                self._start_waiting()
                self._report_idle()
            if self._events or time.monotonic() >= until:
                return self._take()
            time.sleep(_POLL_SECONDS)

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def answer(self, number: int, prune: bool) -> None:
        """Answer the epoch of a trial."""
        for attempt, running in self._attempts.items():
            # An epoch of an attempt that was lost since needs no answer.
            if running.order.number == number and running.asks:
                running.asks = False
                self._mailbox.answer.remote(attempt, PRUNE if prune else GO)

    def stop(self) -> list[Event]:
        """Stop the running orders, and return their last events."""
        self._stopping = True
        # Without a cluster, the orders end by themselves.
        with contextlib.suppress(RunError), cluster_errors():
            self._collect()
            for attempt, running in list(self._attempts.items()):
                if running.started and not running.is_check:
                    self._mailbox.answer.remote(attempt, STOP)
                else:
                    self._cancel(attempt)
            until = time.monotonic() + GRACE_SECONDS + 5
            while self._attempts and time.monotonic() < until:
                self._collect()
                time.sleep(_POLL_SECONDS)
            for attempt in list(self._attempts):
                self._cancel(attempt)
        orders = [running.order for running in self._attempts.values()] + [order for order, _ in self._waiting]
        self._events += [self._ended(order, Result("interrupted")) for order in orders if order.kind != "check"]
        self._attempts, self._waiting = {}, []
        return self._take()

    def close(self) -> None:
        """End the tasks that are left, and leave the cluster."""
        self.stop()
        ray.shutdown()

    def _cancel(self, attempt: int) -> None:
        running = self._attempts.pop(attempt)
        ray.cancel(running.task, force=True)
        if self._stopping and not running.is_check:
            self._events.append(self._ended(running.order, Result("interrupted")))

    def _ended(self, order: Order, result: Result) -> Ended:
        return Ended(order.number, result, self.folder / f"{order.name}.log")

    def _slots(self, resources: Mapping[str, float]) -> int:
        """Return the number of orders for which a machine has cores and GPUs."""
        slots = int(resources.get("CPU", 0)) // self._cpus
        if self._gpus:
            slots = min(slots, self._resources.slots(int(resources.get("GPU", 0))))
        return slots

    def _free(self, node: str) -> int:
        """Return the number of orders that a machine could start now."""
        machine = self._nodes[node]
        if not machine.accepted or time.monotonic() < machine.busy_until:
            return 0
        running = sum(attempt.node == node and not attempt.is_check for attempt in self._attempts.values())
        return max(0, machine.slots - running)

    def _start_waiting(self) -> None:
        while self._waiting:
            free = {node: self._free(node) for node in self._nodes}
            node = max(free, key=lambda name: free[name], default=None)
            if node is None or not free[node]:
                return
            order, starts = self._waiting[0]
            self._start(order, node, starts)
            del self._waiting[0]

    def _start(self, order: Order, node: str, starts: int) -> None:
        self._last += 1
        cpus, gpus = (0, 0.0) if order.kind == "check" else (self._cpus, self._gpus)
        # The engine itself starts lost orders again, because Ray would not change the machine.
        task = self._task.options(
            num_cpus=cpus, num_gpus=gpus, max_retries=0, name=order.name,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(order, self._last, self._mailbox, self._variables)  # fmt: skip
        self._attempts[self._last] = _Attempt(order, node, self._nodes[node].name, task, starts, time.monotonic())

    def _start_check(self, node: str, starts: int) -> None:
        if self._check is not None and self._nodes[node].slots:
            self._start(replace(self._check, name=f"check_{self._nodes[node].name}"), node, starts)

    def _look(self) -> None:
        """Check machines that joined, and forget machines that died."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node in set(self._nodes) - set(alive):
            del self._nodes[node]
            self._leave(node)
        for node in set(alive) - set(self._nodes):
            accepted = True if self._check is None else None
            self._nodes[node] = _Node(
                alive[node]["NodeManagerHostname"], self._slots(alive[node]["Resources"]), accepted
            )
            self._start_check(node, 1)
        able = [machine.accepted for machine in self._nodes.values() if machine.slots]
        self._was_accepted |= True in able
        # After the first accepted machine, others may join.
        if able and not any(accepted is not False for accepted in able) and not self._was_accepted:
            if self._events:
                return
            raise RunError(
                "no machine of the cluster can run orders; the reasons are above. Fix them and rerun the same command."
            )

    def _leave(self, node: str) -> None:
        """Handle the orders of a machine that Ray has given up.

        If the network is cut, their tasks would otherwise end only minutes later.
        """
        self._receive()
        for attempt, running in list(self._attempts.items()):
            if running.node == node:
                ray.cancel(running.task, force=True)
                self._failed(self._attempts.pop(attempt), "its machine died or is unreachable")

    def _collect(self) -> None:
        """Receive events, and handle failed tasks."""
        tasks = {running.task: attempt for attempt, running in self._attempts.items()}
        done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=0) if tasks else ([], [])
        # A task sends its last event before its end. A task that is still known below therefore failed.
        self._receive()
        for task in done:
            if tasks[task] not in self._attempts:
                continue
            try:
                ray.get(task)
            except RayTaskError as error:
                # The code of the task raised, for example because a disk is full. The machine lives.
                self._failed(
                    self._attempts.pop(tasks[task]), f"{type(error.cause).__name__}: {error.cause}", final=True
                )
            except RayError as error:
                self._failed(self._attempts.pop(tasks[task]), str(error), final=isinstance(error, OutOfMemoryError))

    def _receive(self) -> None:
        """Handle the events that tasks have sent. Events of lost attempts are dropped."""
        for attempt, event, log in ray.get(self._mailbox.take.remote(self._known)):
            self._known += 1
            running = self._attempts.get(attempt)
            if running is None:
                continue
            if isinstance(event, Started):
                running.started, running.place = True, event.place
            elif isinstance(event, Epoch):
                running.asks = not event.last
            elif isinstance(event, Ended):
                del self._attempts[attempt]
                event = self._keep_log(event, running.order, log)
            if not running.is_check:
                self._events.append(event)
            elif isinstance(event, Checked):
                self._judge(running, self._refusal(dict(event.facts)))
            elif isinstance(event, Ended) and event.result.state == "failed":
                self._judge(running, event.result.reason)

    def _keep_log(self, event: Ended, order: Order, log: str) -> Ended:
        """Write the log of a failed order to the folder of the driver."""
        path = self.folder / f"{order.name}.log"
        if event.result.state == "failed":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(log, encoding="utf-8")
        reason = event.result.reason.replace(str(event.log), str(path))
        return Ended(event.number, replace(event.result, reason=reason), path)

    def _judge(self, check: _Attempt, refusal: str) -> None:
        """Accept or refuse a machine that is still checked."""
        machine = self._nodes.get(check.node)
        if machine is not None and machine.accepted is None:
            machine.accepted = not refusal
            if refusal:
                self._events.append(Refused(machine.name, refusal))

    def _failed(self, running: _Attempt, reason: str, *, final: bool = False) -> None:
        """Start the order of a failed task again, or end it."""
        reason = " ".join(reason.split())[:2000]
        if running.is_check:
            if final or running.starts >= MOST_CHECKS:
                self._judge(running, f"its check failed: {reason}")
            elif running.node in self._nodes:
                self._start_check(running.node, running.starts + 1)
        elif self._stopping:
            self._events.append(self._ended(running.order, Result("interrupted")))
        elif final:
            self._events.append(self._ended(running.order, Result("failed", reason=reason)))
        elif running.starts >= MOST_STARTS:
            reason = f"its machine died or was unreachable {running.starts} times, the last time with: {reason}"
            self._events.append(self._ended(running.order, Result("failed", reason=reason)))
        else:
            if running.node in self._nodes:
                self._nodes[running.node].busy_until = time.monotonic() + PAUSE_SECONDS
            self._waiting.append((running.order, running.starts + 1))
            self._events.append(Lost(running.order.number, running.place))

    def _move_stuck(self) -> None:
        """Move waiting orders from machines with other work to machines with room."""
        now = time.monotonic()
        for attempt, running in list(self._attempts.items()):
            if running.started or running.is_check or now - running.since < STUCK_SECONDS:
                continue
            if self._nodes and max(self._free(node) for node in self._nodes) > len(self._waiting):
                if running.node in self._nodes:
                    self._nodes[running.node].busy_until = now + BUSY_SECONDS
                self._cancel(attempt)
                self._waiting.append((running.order, running.starts))

    def _report_idle(self) -> None:
        """Report why no order runs, once for each long time without a running order."""
        attempts = [attempt for attempt in self._attempts.values() if not attempt.is_check]
        able = [machine for machine in self._nodes.values() if machine.slots]
        could_run = any(machine.accepted for machine in able) and not attempts and not self._waiting
        if could_run or any(attempt.started for attempt in attempts):
            self._idle_since, self._idle_reported = time.monotonic(), False
        if self._idle_reported or time.monotonic() - self._idle_since < IDLE_SECONDS:
            return
        self._idle_reported = True
        checked = sorted(machine.name for machine in able if machine.accepted is None)
        if attempts:
            reason = "other work uses its cores or GPUs. Waiting for them."
        elif checked:
            reason = f"{', '.join(checked)} still prepares the data. Waiting."
        else:
            gpus = f" and {self._gpus:g} GPU" if self._gpus else ""
            which = "accepted machine" if able else "machine"
            reason = f"no {which} with {self._cpus} CPU{gpus} for each order. Waiting for machines that join."
        self._events.append(Refused("the cluster", reason))
