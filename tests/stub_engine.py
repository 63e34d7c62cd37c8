"""An engine that runs a function for each order, in the process of the test."""

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from skincancer.engines.orders import Ended, Epoch, Event, Order, Result
from skincancer.sweeps.study import Sweep
from skincancer.sweeps.trials import TrialRunner

Work = Callable[[Order], Result | Generator[Event, bool | None, Result]]


class StubEngine:
    """Engine without processes.

    Args:
        work: returns the result of an order, or yields events, is sent the answers to epochs, and returns the result.
        workers: number of orders at the same time.
    """

    threads = None

    def __init__(self, work: Work, workers: int = 1) -> None:
        self.work, self.workers = work, workers
        self.orders: list[Order] = []
        self.running: dict[int, Any] = {}
        self.answers: dict[int, bool] = {}

    def room(self) -> int:
        return self.workers - len(self.running)

    def submit(self, order: Order) -> None:
        self.orders.append(order)
        self.running[order.number] = self.work(order)

    def events(self, seconds: float) -> list[Event]:
        events: list[Event] = []
        for number, work in list(self.running.items()):
            event = self._next(number, work)
            if isinstance(event, Ended):
                del self.running[number]
            events.append(event)
        return events

    def _next(self, number: int, work: Any) -> Event:
        if isinstance(work, Result):
            return Ended(number, work, Path("none.log"))
        try:
            return work.send(self.answers.pop(number, None))
        except StopIteration as end:
            return Ended(number, end.value, Path("none.log"))

    def answer(self, number: int, prune: bool) -> None:
        self.answers[number] = prune

    def stop(self) -> list[Event]:
        events = [Ended(number, Result("interrupted"), Path("none.log")) for number in self.running]
        self.running = {}
        return events

    def close(self) -> None:
        self.stop()


class NoStore:
    """MLflow client of a store that cannot be reached."""

    tracking_uri = "sqlite:////nowhere/mlflow.db"

    def __getattr__(self, name: str) -> Any:
        raise MlflowException("the store cannot be reached")


def epochs(order: Order, values: list[float], objective: float) -> Generator[Event, bool | None, Result]:
    """Report the values of a trial, until it is pruned."""
    for number, value in enumerate(values, 1):
        if (yield Epoch(order.number, number, value, last=number == len(values))):
            return Result("pruned")
    return Result("complete", objective)


def run_trials(
    sweep: Sweep, work: Work, workers: int = 1, deadline: float | None = None, client: Any = None
) -> StubEngine:
    """Run the trials of a sweep."""
    engine = StubEngine(work, workers)
    TrialRunner(sweep, engine, {}, client or NoStore(), print).run(deadline, lambda: None)
    return engine
