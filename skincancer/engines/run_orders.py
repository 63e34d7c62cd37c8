"""Run a list of orders on an engine."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from skincancer.engines.choose import connect_cluster, make_engine
from skincancer.engines.machine_check import refusal, store_facts
from skincancer.engines.orders import CONFIG, Ended, Engine, Event, Lost, Order, Refused, RunCreated, Started
from skincancer.engines.resources import Resources
from skincancer.errors import RunError
from skincancer.runs.artifacts import config_to_keep
from skincancer.runs.lifecycle import close_lost
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.system.console import clock
from skincancer.system.interrupts import Interrupted
from skincancer.system.yaml_files import dump_yaml

_TICK_SECONDS = 0.5


@dataclass(frozen=True)
class Finished:
    """Order that ended.

    Attributes:
        order: the order.
        title: its title.
        run_id: its MLflow run, "" if it never had one.
        reason: reason of its failure, "" if it succeeded.
    """

    order: Order
    title: str
    run_id: str
    reason: str


def fit_order(number: int, experiment: Experiment) -> Order:
    """Return the order that fits an experiment."""
    config = dump_yaml(config_to_keep(experiment))
    return Order(number, "fit", f"fit_{number:03d}", config, ("--experiment", CONFIG))


def run_orders(
    orders: Sequence[Order],
    titles: Sequence[str],
    resources: Resources,
    store: RunStore,
    accelerator: str,
    say: Callable[[str], None],
) -> list[Finished]:
    """Run orders on an engine, and print where each starts and how it ends.

    Logs of failed orders are kept in a folder next to the runs.

    Args:
        orders: orders, numbered from 0.
        titles: title of each order.
        resources: machines, GPUs and cores.
        store: MLflow store of the orders.
        accelerator: `trainer.accelerator` of the orders.
        say: prints a line.

    Returns:
        The orders, in the order of their ends.

    Raises:
        RunError: The cluster cannot be used.
        Interrupted: After the running orders have been stopped. Their runs can be resumed.
    """
    if resources.cluster is not None:
        connect_cluster(resources.cluster)
    folder = store.work_folder / f"orders_{time.strftime('%Y%m%d_%H%M%S')}"
    check = Order(-1, "check", "check")
    expected = store_facts(store)
    engine = make_engine(
        resources, folder, store, accelerator=accelerator, check=check, refusal=lambda facts: refusal(expected, facts)
    )
    with contextlib.closing(engine):
        runner = _Runner(engine, list(orders), titles, store.client, say)
        finished = runner.run()
    if all(not done.reason for done in finished):
        shutil.rmtree(folder, ignore_errors=True)
    return finished


class _Runner:
    """Driver of a list of orders."""

    def __init__(
        self,
        engine: Engine,
        orders: list[Order],
        titles: Sequence[str],
        client: MlflowClient,
        say: Callable[[str], None],
    ) -> None:
        self.engine, self.client, self.say = engine, client, say
        self._waiting, self._total = orders, len(orders)
        self._titles = dict(zip((order.number for order in orders), titles, strict=True))
        self._orders = {order.number: order for order in orders}
        self._runs: dict[int, str] = {}
        self._began: dict[int, float] = {}
        self._finished: list[Finished] = []

    def run(self) -> list[Finished]:
        try:
            while len(self._finished) < self._total:
                while self._waiting and self.engine.room() > 0:
                    self.engine.submit(self._waiting.pop(0))
                for event in self.engine.events(_TICK_SECONDS):
                    self._handle(event)
        except Interrupted:
            for event in self.engine.stop():
                if isinstance(event, RunCreated):
                    self._runs[event.number] = event.run_id
                elif isinstance(event, Ended):
                    self._close(event.number, "KILLED", "interrupted")
            raise
        return self._finished

    def _handle(self, event: Event) -> None:
        if isinstance(event, Refused):
            self.say(f"{event.place} gets no orders: {event.reason}")
            return
        title = self._titles[event.number]
        if isinstance(event, Started):
            self._began[event.number] = time.monotonic()
            self.say(f"{title}: runs on {event.place}")
        elif isinstance(event, RunCreated):
            self._runs[event.number] = event.run_id
        elif isinstance(event, Lost):
            self._close(event.number, "KILLED", "its machine died; the order is repeated", remove=True)
            self.say(f"{title}: {event.place} died or is unreachable; it starts again")
        elif isinstance(event, Ended):
            self._end(event, title)

    def _end(self, event: Ended, title: str) -> None:
        run_id, took = (
            self._runs.get(event.number, ""),
            clock(time.monotonic() - self._began.get(event.number, time.monotonic())),
        )
        if event.result.state == "failed":
            self._close(event.number, "FAILED", event.result.reason)
            self.say(f"{title}: failed after {took}: {event.result.reason}")
        else:
            self.say(f"{title}: run {run_id} finished after {took} ({len(self._finished) + 1} of {self._total})")
        reason = event.result.reason if event.result.state == "failed" else ""
        self._finished.append(Finished(self._orders[event.number], title, run_id, reason))

    def _close(self, number: int, status: str, reason: str, remove: bool = False) -> None:
        """Close the run of an order, unless its process has done so."""
        run_id = self._runs.get(number)
        if run_id is None:
            return
        with contextlib.suppress(MlflowException, OSError):
            close_lost(self.client, run_id, reason, status, remove=remove)


def raise_failures(finished: Sequence[Finished], what: str) -> None:
    """Raise an error that lists the orders that failed.

    Args:
        finished: orders that ended.
        what: name of the orders, in the plural.

    Raises:
        RunError: At least one order failed.
    """
    failed = [f"{done.title}: {done.reason}" for done in finished if done.reason]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(finished)} {what} failed. The others are finished; fix the cause and rerun the same command:\n  "
            + "\n  ".join(failed)
        )
