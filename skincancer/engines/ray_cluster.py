"""Engine that runs orders on the machines of a Ray cluster.

Each order is a Ray task, which keeps a process of `engines.slot` and relays its messages. Training never runs in a process that holds
Ray's threads. The engine chooses the machine of each order, so a machine gets orders only after it has answered the check, and the engine
knows which orders a dead machine had.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skincancer.engines.local import usable_cores
from skincancer.engines.orders import GO, PRUNE, Checked, Ended, Epoch, Event, Lost, Order, Refused, Result, Started
from skincancer.engines.process import GRACE_SECONDS
from skincancer.engines.resources import Resources
from skincancer.engines.slot import RunningOrder, Slot, log_tail, wait_for
from skincancer.errors import RunError
from skincancer.runs.store import RunStore
from skincancer.system.credentials import remove_password

# Starts of an order before a machine that dies every time counts as its failure.
MOST_STARTS = 5
# Interval between looks at the machines of the cluster.
_LOOK_SECONDS = 1.0
_POLL_SECONDS = 0.1


def connect(address: str) -> None:
    """Connect this process to a cluster, or start one on this machine.

    Args:
        address: HOST:PORT, "auto" for $RAY_ADDRESS, or "local".

    Raises:
        RunError: The cluster cannot be reached, or refuses the token of this machine.
    """
    if ray.is_initialized():
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # With 0, Ray would otherwise leave the GPUs visible to orders without one, and warn about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        if address == "local":
            ray.init(address="local", num_cpus=usable_cores(), include_dashboard=False, **options)
        else:
            ray.init(address=os.environ["RAY_ADDRESS"] if address == "auto" else address, **options)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        text = " ".join(str(error).split())
        if "token" in text.lower() or "unauthenticated" in text.lower():
            remedy = "Copy the token of the head (~/.ray/auth_token) to this machine, and set RAY_AUTH_MODE=token"
        else:
            remedy = "Start it with `ray start --head` there, and `ray start --address HOST:PORT` on this machine"
        raise RunError(f"--cluster {address}: the cluster cannot be used: {text[:500]}. {remedy}.") from error
    finally:
        # Ray replaces the handlers of `signals_as_interrupts`.
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Mailbox:
    """Messages between the tasks and the driver. Attempts are starts of orders."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[tuple[int, Event, str]] = asyncio.Queue()
        self.answers: dict[int, asyncio.Queue[str]] = defaultdict(asyncio.Queue)

    async def put(self, attempt: int, event: Event, log: str) -> None:
        """Send an event, and for an end the tail of the log, to the driver."""
        await self.events.put((attempt, event, log))

    async def take(self) -> list[tuple[int, Event, str]]:
        """Return the events since the last call."""
        return [self.events.get_nowait() for _ in range(self.events.qsize())]

    async def answer(self, attempt: int, text: str) -> None:
        """Answer an epoch."""
        await self.answers[attempt].put(text)

    async def wait_for_answer(self, attempt: int) -> str:
        """Wait for the answer to an epoch."""
        return await self.answers[attempt].get()


# Process of each set of environment variables, kept between the tasks of a Ray worker.
_slots: dict[tuple[tuple[str, str], ...], Slot] = {}


def _run_order(order: Order, attempt: int, mailbox: Any, variables: Mapping[str, str]) -> None:
    """Run an order on this machine, and send its events."""
    gpus = ",".join(str(number) for number in ray.get_gpu_ids())
    # An order without a GPU must not see those of other orders.
    own = {**variables, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", gpus) if gpus else ""}
    key = tuple(sorted(own.items()))
    folder = Path(tempfile.mkdtemp(prefix="skincancer_order_"))
    slot = _slots.pop(key, None)
    if slot is None or slot.process.poll() is not None:
        slot = Slot(folder.parent / f"skincancer_slots_{os.getuid()}", len(_slots), own)
    running = RunningOrder(order, slot, folder)
    try:
        place = os.uname().nodename + (f", GPU {gpus}" if gpus else "")
        ray.get(mailbox.put.remote(attempt, Started(order.number, place), ""))
        ended = False
        while not ended:
            # Short waits, so that a cancelled task ends soon.
            for _ in wait_for({0: running}, 0.5):
                for event in running.read():
                    ended = ended or isinstance(event, Ended)
                    ray.get(mailbox.put.remote(attempt, event, log_tail(running.log) if ended else ""))
                    if isinstance(event, Epoch) and not event.last:
                        slot.send(ray.get(mailbox.wait_for_answer.remote(attempt)))
    finally:
        if running.succeeded and slot.process.poll() is None:
            _slots[key] = slot
        else:
            slot.end()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@dataclass(frozen=True)
class _Attempt:
    """One start of an order."""

    order: Order
    node: str
    place: str
    task: Any
    starts: int


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
        self.folder, self._check, self._refusal = folder, check, refusal
        self._most = resources.workers
        with_gpus = use_gpus and ray.cluster_resources().get("GPU", 0) > 0
        share = 1.0 if resources.gpus is None else resources.gpus
        self._request = {"CPU": float(resources.cpus or 1), "GPU": share if with_gpus else 0.0}
        self.threads = None if self._request["GPU"] else resources.cpus or 1
        variables = {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}
        if remove_password(store.uri) == store.uri:
            variables["MLFLOW_TRACKING_URI"] = store.uri
        self._variables = variables
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox: Any = ray.remote(Mailbox)
        self._mailbox = mailbox.options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote()
        # By node id: None while a machine is checked, else whether it may run orders.
        self._nodes: dict[str, bool | None] = {}
        self._names: dict[str, str] = {}
        self._attempts: dict[int, _Attempt] = {}
        self._last = 0
        self._looked = 0.0
        self._waiting: list[tuple[Order, int]] = []

    def room(self) -> int:
        """Return the number of orders that the accepted machines could start now."""
        free = sum(self._free(node) for node in self._nodes) - len(self._waiting)
        running = sum(attempt.order.kind != "check" for attempt in self._attempts.values())
        return max(0, free if self._most is None else min(free, self._most - running))

    def submit(self, order: Order) -> None:
        """Start an order on the machine with the most room."""
        self._waiting.append((order, 1))
        self._start_waiting()

    def events(self, seconds: float) -> list[Event]:
        """Return the next events, after at most this time."""
        until = time.monotonic() + seconds
        while True:
            events = self._look() + self._receive() + self._lost()
            self._start_waiting()
            if events or time.monotonic() >= until:
                return events
            time.sleep(_POLL_SECONDS)

    def answer(self, number: int, prune: bool) -> None:
        """Answer the epoch of a trial."""
        for attempt, running in self._attempts.items():
            if running.order.number == number:
                self._mailbox.answer.remote(attempt, PRUNE if prune else GO)

    def stop(self) -> list[Event]:
        """Stop the running orders, and return their last events."""
        events = self._receive()
        for running in self._attempts.values():
            with contextlib.suppress(RayError):
                ray.cancel(running.task, force=False)
        tasks = [running.task for running in self._attempts.values()]
        if tasks:
            ray.wait(tasks, num_returns=len(tasks), timeout=GRACE_SECONDS + 5)
        events += self._receive()
        for running in self._attempts.values():
            with contextlib.suppress(RayError, ValueError):
                ray.cancel(running.task, force=True)
        events += [self._interrupted(running.order) for running in self._attempts.values() if running.order.number >= 0]
        events += [self._interrupted(order) for order, _ in self._waiting]
        self._attempts, self._waiting = {}, []
        return events

    def close(self) -> None:
        """End the tasks that are left, and leave the cluster."""
        self.stop()
        ray.shutdown()

    def _interrupted(self, order: Order) -> Ended:
        return Ended(order.number, Result("interrupted"), self.folder / f"{order.name}.log")

    def _free(self, node: str) -> int:
        """Return the number of orders that a machine could start now."""
        if not self._nodes[node]:
            return 0
        running = [
            attempt for attempt in self._attempts.values() if attempt.node == node and attempt.order.kind != "check"
        ]
        totals = ray.state.total_resources_per_node().get(node, {})
        slots = [int(totals.get(name, 0) / amount + 1e-9) for name, amount in self._request.items() if amount]
        return max(0, min(slots) - len(running))

    def _start_waiting(self) -> None:
        while self._waiting:
            free = {node: self._free(node) for node in self._nodes}
            node = max(free, key=lambda name: free[name], default=None)
            if node is None or not free[node]:
                return
            order, starts = self._waiting.pop(0)
            self._start(order, node, starts)

    def _start(self, order: Order, node: str, starts: int) -> None:
        self._last += 1
        needs = {"CPU": 0.0, "GPU": 0.0} if order.kind == "check" else self._request
        task = ray.remote(_run_order).options(
            num_cpus=needs["CPU"], num_gpus=needs["GPU"], max_retries=0, name=order.name,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(order, self._last, self._mailbox, self._variables)  # fmt: skip
        self._attempts[self._last] = _Attempt(order, node, self._names[node], task, starts)

    def _look(self) -> list[Event]:
        """Check machines that joined, and forget machines that died."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return []
        self._looked = time.monotonic()
        alive = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        self._names |= alive
        for node in set(self._nodes) - set(alive):
            del self._nodes[node]
        for node in set(alive) - set(self._nodes):
            self._nodes[node] = self._check is None or None
            if self._check is not None:
                self._start(self._check, node, 1)
        if self._nodes and all(accepted is False for accepted in self._nodes.values()):
            raise RunError(
                "no machine of the cluster can run orders; the reasons are above. Fix them and rerun the same command."
            )
        return []

    def _receive(self) -> list[Event]:
        """Return the events that tasks have sent. Events of earlier starts are dropped."""
        events: list[Event] = []
        for attempt, event, log in ray.get(self._mailbox.take.remote()):
            running = self._attempts.get(attempt)
            if running is None:
                continue
            if running.order.kind == "check":
                events += self._checked(attempt, running, event)
            elif isinstance(event, Ended):
                del self._attempts[attempt]
                events.append(self._keep_log(event, running.order, log))
            else:
                events.append(event)
        return events

    def _keep_log(self, event: Ended, order: Order, log: str) -> Ended:
        """Write the tail of the log of a failed order to the folder of the driver."""
        path = self.folder / f"{order.name}.log"
        if event.result.state == "failed":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(log, encoding="utf-8")
        reason = event.result.reason.replace(str(event.log), str(path))
        return Ended(event.number, replace(event.result, reason=reason), path)

    def _checked(self, attempt: int, running: _Attempt, event: Event) -> list[Event]:
        if isinstance(event, Checked):
            why = self._refusal(dict(event.facts))
        elif isinstance(event, Ended):
            del self._attempts[attempt]
            if self._nodes.get(running.node) is not None:
                return []
            why = event.result.reason
        else:
            return []
        if running.node in self._nodes:
            self._nodes[running.node] = not why
        return [Refused(running.place, why)] if why else []

    def _lost(self) -> list[Event]:
        """Return the orders of machines that died, which start again elsewhere."""
        tasks = {running.task: attempt for attempt, running in self._attempts.items()}
        done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=0) if tasks else ([], [])
        events: list[Event] = []
        for task in done:
            attempt = tasks[task]
            try:
                ray.get(task, timeout=0)
                # The last event of the task is in the mailbox.
                continue
            except (GetTimeoutError, TaskCancelledError):
                continue
            except RayError as error:
                running = self._attempts.pop(attempt)
                events += self._again(running, error)
        return events

    def _again(self, running: _Attempt, error: RayError) -> list[Event]:
        order, words = running.order, " ".join(str(error).split())[:2000]
        if order.kind == "check":
            self._nodes.pop(running.node, None)
            return []
        if isinstance(error, OutOfMemoryError) or running.starts >= MOST_STARTS:
            reason = (
                words
                if isinstance(error, OutOfMemoryError)
                else f"started {running.starts} times, the last end: {words}"
            )
            return [Ended(order.number, Result("failed", reason=reason), self.folder / f"{order.name}.log")]
        self._waiting.append((order, running.starts + 1))
        return [Lost(order.number, running.place)]
