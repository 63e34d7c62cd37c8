"""Engine that runs orders on the GPUs or cores of this machine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from skincancer.engines.orders import GO, GRACE_SECONDS, PRUNE, Ended, Event, Order, Result, Started
from skincancer.engines.slot import RunningOrder, Slot, wait_for

_SAME_SIGNAL_SECONDS = 2.0
_SIGNALS = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class LocalEngine:
    """Runs orders in processes of this machine.

    Each slot has one GPU or a share of the cores.

    Args:
        folder: folder for configs and logs of orders.
        workers: number of slots.
        devices: GPUs that the slots share, as `visible_devices` returns them.
        threads: OMP_NUM_THREADS of an order. None for, on a CPU, OMP_NUM_THREADS of this process or a share of the cores.
        environment: more environment variables of the orders.
    """

    def __init__(
        self, folder: Path, workers: int, devices: Sequence[str], threads: int | None, environment: Mapping[str, str]
    ) -> None:
        self.folder, self.workers, self.devices, self.environment = folder, workers, devices, environment
        self.threads = threads or (None if devices else default_threads(workers))
        self._idle: dict[int, Slot] = {}
        self._running: dict[int, RunningOrder] = {}
        self._events: list[Event] = []

    def room(self) -> int:
        """Return the number of free slots."""
        return self.workers - len(self._running)

    def submit(self, order: Order) -> None:
        """Start an order in the first free slot."""
        number = next(number for number in range(self.workers) if number not in self._running)
        slot = self._idle.pop(number, None)
        if slot is not None and slot.process.poll() is not None:
            slot.end()
            slot = None
        slot = slot or Slot(self.folder, number, self._variables(number))
        self._running[number] = RunningOrder(order, slot, self.folder)
        place = f"GPU {self._device(number)}" if self.devices else "CPU"
        self._events.append(Started(order.number, place))

    def events(self, seconds: float) -> list[Event]:
        """Return the next events, after at most this time."""
        for number in wait_for(self._running, 0 if self._events else seconds):
            self._read(number)
        return self._take()

    def _read(self, number: int) -> None:
        running = self._running[number]
        for event in running.read():
            # A scheduler signals all processes, in any order. If this process gets the signal too, `stop` reports the order.
            if isinstance(event, Ended) and running.code in _SIGNALS:
                time.sleep(_SAME_SIGNAL_SECONDS)
            # An event must not be lost if a signal interrupts the next lines.
            self._events.append(event)
            if isinstance(event, Ended):
                self._free(number)

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def answer(self, number: int, prune: bool) -> None:
        """Answer the epoch of a trial."""
        for running in self._running.values():
            if running.order.number == number:
                running.slot.send(PRUNE if prune else GO)

    def stop(self) -> list[Event]:
        """Stop the running orders at the same time, and return their last events."""
        for running in self._running.values():
            running.slot.leave()
        until = time.monotonic() + GRACE_SECONDS
        while self._running and time.monotonic() < until:
            for number in wait_for(self._running, 0.5):
                running = self._running[number]
                for event in running.read():
                    # Orders that ended by themselves just before keep their result.
                    if isinstance(event, Ended) and not running.succeeded:
                        event = Ended(event.number, Result("interrupted"), running.log)
                    self._events.append(event)
                    if isinstance(event, Ended):
                        self._free(number)
        for number, running in list(self._running.items()):
            self._events.append(Ended(running.order.number, Result("interrupted"), running.log))
            self._free(number)
        return self._take()

    def close(self) -> None:
        """End all processes."""
        for number in list(self._running):
            self._free(number)
        for slot in self._idle.values():
            slot.leave()
        while self._idle:
            self._idle.popitem()[1].end()

    def _free(self, number: int) -> None:
        """End the process of a slot if its order failed.

        Loader processes of a crashed order are in its process group.
        """
        running = self._running.pop(number)
        if running.succeeded and running.slot.process.poll() is None:
            self._idle[number] = running.slot
        else:
            running.slot.end()

    def _device(self, number: int) -> str:
        return self.devices[number % len(self.devices)]

    def _variables(self, number: int) -> dict[str, str]:
        variables = dict(self.environment)
        if self.devices:
            variables["CUDA_VISIBLE_DEVICES"] = self._device(number)
        if self.threads:
            variables["OMP_NUM_THREADS"] = str(self.threads)
        return variables


def default_threads(workers: int) -> int:
    """Return the threads of an order on a CPU.

    This is OMP_NUM_THREADS, else a share of the cores.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(threads) if threads.isdigit() and int(threads) else max(1, usable_cores() // workers)


def usable_cores() -> int:
    """Return the number of cores that SLURM or a container allows."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> list[str]:
    """Return the visible GPUs, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if visible and count:
        return [name.strip() for name in visible.split(",")][:count]
    return [str(number) for number in range(count)]
