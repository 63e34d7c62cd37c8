"""Ray task of an order, and mailbox between tasks and driver.

Training never runs in a process that holds Ray's threads. The task keeps a process of `engines.slot`, and relays its messages.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from skincancer.engines.orders import Ended, Epoch, Event, Order, Result, Started
from skincancer.engines.slot import RunningOrder, Slot, log_tail, wait_for
from skincancer.system.hardware import find_process

# Third answer of the driver, which ends the order.
STOP = "stop"
_POLL_SECONDS = 0.5


class Mailbox:
    """Actor with the messages between tasks and driver. Attempts are starts of orders."""

    def __init__(self) -> None:
        self._events: list[tuple[int, Event, str]] = []
        self._dropped = 0
        self._answers: dict[int, asyncio.Queue[str]] = defaultdict(asyncio.Queue)

    async def put(self, attempt: int, event: Event, log: str) -> None:
        """Send an event, and at an end the log, to the driver."""
        self._events.append((attempt, event, log))
        if isinstance(event, Ended):
            # Ends the last `wait_for_answer` of the task.
            await self._answers.pop(attempt, asyncio.Queue()).put(STOP)

    async def take(self, known: int) -> list[tuple[int, Event, str]]:
        """Return all events except the first `known`, which the driver has handled.

        Events are kept until then, so an interrupted call loses none.
        """
        del self._events[: known - self._dropped]
        self._dropped = known
        return self._events

    async def answer(self, attempt: int, text: str) -> None:
        """Send an answer to a task: GO, PRUNE or STOP."""
        await self._answers[attempt].put(text)

    async def wait_for_answer(self, attempt: int) -> str:
        """Wait for the next answer of the driver."""
        return await self._answers[attempt].get()


# Process of this Ray worker and its environment variables, kept for the next task.
_kept: list[tuple[dict[str, str], Slot]] = []


def run_order(order: Order, attempt: int, mailbox: Any, variables: Mapping[str, str]) -> None:
    """Run an order on this machine, and send its events."""
    gpus = ",".join(str(number) for number in ray.get_gpu_ids())
    place = socket.gethostname() + (f", GPU {gpus}" if gpus else "")
    # Before the imports, so that the driver knows which orders wait for cores.
    _send(mailbox, attempt, Started(order.number, place))
    # An order without a GPU must not see those of other orders.
    own = {**variables, "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", gpus) if gpus else ""}
    folder = _worker_folder()
    slot = _make_slot(own, folder)
    keep = False
    try:
        keep = _relay(RunningOrder(order, slot, folder), attempt, mailbox)
    finally:
        if keep:
            _kept.append((own, slot))
        else:
            slot.end()
        # Ray ends its workers without notice, so nothing is left between orders.
        shutil.rmtree(folder, ignore_errors=True)


def _relay(running: RunningOrder, attempt: int, mailbox: Any) -> bool:
    """Relay messages until the order ends. Return whether its process can run another order."""
    slot, stopped = running.slot, False
    answer = mailbox.wait_for_answer.remote(attempt).future()
    while True:
        waits = False
        for _ in wait_for({0: running}, _POLL_SECONDS):
            for event in running.read():
                if isinstance(event, Ended):
                    # An order that ended by itself just before keeps its result.
                    if stopped and not running.succeeded:
                        event = Ended(event.number, Result("interrupted"), running.log)
                    _send(mailbox, attempt, event, log_tail(running.log))
                    return running.succeeded and not stopped and slot.process.poll() is None
                _send(mailbox, attempt, event)
                waits = isinstance(event, Epoch) and not event.last
        if not stopped and (waits or answer.done()):
            text = answer.result()
            stopped = text == STOP
            if stopped:
                slot.leave()
            else:
                slot.send(text)
                answer = mailbox.wait_for_answer.remote(attempt).future()


def _send(mailbox: Any, attempt: int, event: Event, log: str = "") -> None:
    """Send an event to the driver, and wait until it has arrived.

    `ray.get` in a task would lend the cores of the task to other tasks.
    """
    mailbox.put.remote(attempt, event, log).future().result()


def _make_slot(variables: dict[str, str], folder: Path) -> Slot:
    """Return the kept process if it has these variables, or a new one.

    A worker keeps one process, because each holds the memory of its imports.
    """
    if _kept:
        kept, slot = _kept.pop()
        if kept == variables and slot.process.poll() is None:
            return slot
        slot.end()
    return Slot(folder, 0, variables)


def _worker_folder() -> Path:
    """Make the temporary folder of this Ray worker, and delete folders of killed workers."""
    prefix = f"skincancer_{os.getuid()}_{socket.gethostname()}_"
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob(f"{prefix}*"):
        pid = folder.name.removeprefix(prefix)
        if pid.isdecimal() and find_process(int(pid)) is None:
            shutil.rmtree(folder, ignore_errors=True)
    folder = parent / f"{prefix}{os.getpid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
