"""Run a list of orders on an engine."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from skincancer.engines.choose import connect_cluster, make_engine
from skincancer.engines.machine_check import store_facts
from skincancer.engines.orders import CONFIG, Ended, Engine, Event, Lost, Order, Refused, RunCreated, Started
from skincancer.engines.resources import Resources
from skincancer.errors import RunError
from skincancer.runs.artifacts import config_to_keep
from skincancer.runs.lifecycle import close_lost
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.system.console import clock
from skincancer.system.credentials import mask_passwords
from skincancer.system.interrupts import Interrupted
from skincancer.system.yaml_files import dump_yaml

_TICK_SECONDS = 0.5


@dataclass(frozen=True)
class Finished:
    """Order that ended.

    Attributes:
        title: title of the order.
        run_id: its MLflow run, "" if it never had one.
        reason: reason of its failure, "" if it succeeded.
    """

    title: str
    run_id: str
    reason: str


def fit_order(number: int, experiment: Experiment) -> Order:
    """Return the order that fits an experiment, in the MLflow store of the engine."""
    # A config has no password, so it must not name the store again.
    config = config_to_keep(replace(experiment, tracking=replace(experiment.tracking, uri=None)))
    return Order(number, "fit", f"fit_{number:03d}", dump_yaml(config), ("--experiment", CONFIG))


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
        Interrupted: After the running orders have been stopped. Runs of fits can be resumed.
    """
    if resources.cluster is not None:
        connect_cluster(resources.cluster)
    folder = store.work_folder / f"orders_{time.strftime('%Y%m%d_%H%M%S')}"
    engine = make_engine(resources, folder, store, accelerator, Order(-1, "check", "check"), store_facts(store), say)
    with contextlib.closing(engine):
        finished = _Runner(engine, orders, titles, store.client, say).run()
    if all(not done.reason for done in finished):
        shutil.rmtree(folder, ignore_errors=True)
    return finished


class _Runner:
    """Driver of a list of orders."""

    def __init__(
        self, engine: Engine, orders: Sequence[Order], titles: Sequence[str], client: MlflowClient, say: Callable[[str], None]
    ) -> None:  # fmt: skip
        self.engine, self.client, self.say = engine, client, say
        self._waiting = list(orders)
        self._titles = dict(zip((order.number for order in orders), titles, strict=True))
        self._runs: dict[int, str] = {}
        self._began: dict[int, float] = {}
        self._finished: list[Finished] = []

    def run(self) -> list[Finished]:
        """Run the orders."""
        try:
            while len(self._finished) < len(self._titles):
                while self._waiting and self.engine.room() > 0:
                    self.engine.submit(self._waiting.pop(0))
                for event in self.engine.events(_TICK_SECONDS):
                    self._handle(event)
        except BaseException as error:
            for event in self.engine.stop():
                if isinstance(event, RunCreated):
                    self._runs[event.number] = event.run_id
            reason = "interrupted" if isinstance(error, Interrupted) else mask_passwords(error)
            for number in list(self._runs):
                self._close(number, "KILLED", reason)
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
        run_id, reason = self._runs.get(event.number, ""), ""
        took = clock(time.monotonic() - self._began[event.number]) if event.number in self._began else "–"
        if event.result.state == "failed":
            reason = event.result.reason
            self._close(event.number, "FAILED", reason)
            self.say(f"{title}: failed after {took}: {reason}")
        else:
            self._runs.pop(event.number, None)
            self.say(f"{title}: run {run_id} finished after {took} ({len(self._finished) + 1} of {len(self._titles)})")
        self._finished.append(Finished(title, run_id, reason))

    def _close(self, number: int, status: str, reason: str, remove: bool = False) -> None:
        """Close the run of an order, unless its process has done so."""
        run_id = self._runs.pop(number, None)
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
