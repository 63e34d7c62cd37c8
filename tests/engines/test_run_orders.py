"""Lists of orders: what is printed, failures, lost machines, and interrupted runs."""

import os
import signal

import pytest
from stub_engine import StubEngine

from skincancer.engines import run_orders
from skincancer.engines.orders import Lost, Order, Refused, Result, RunCreated, Started
from skincancer.engines.resources import Resources
from skincancer.engines.run_orders import raise_failures
from skincancer.errors import RunError
from skincancer.runs.store import RunStore, connect
from skincancer.system.interrupts import Interrupted, signals_as_interrupts


@pytest.fixture
def execute(store, monkeypatch):
    """Run numbered orders by a function. Returns the orders that ended, and the printed lines."""

    def run(work, count: int, workers: int = 1):
        lines: list[str] = []
        monkeypatch.setattr(run_orders, "make_engine", lambda *_: StubEngine(work, workers))
        orders = [Order(number, "fit", f"fit_{number}") for number in range(count)]
        titles = [f"fold {number}" for number in range(count)]
        return run_orders.run_orders(orders, titles, Resources(), RunStore(None), "cpu", lines.append), lines

    return run


def new_run() -> str:
    return str(connect(None).create_run(RunStore(None).experiment_id("demo")).info.run_id)


def test_every_order_has_its_run_and_its_place(execute):
    def work(order: Order):
        yield Started(order.number, f"GPU {order.number}")
        yield RunCreated(order.number, f"run{order.number}")
        return Result("complete")

    finished, lines = execute(work, 3, workers=2)
    assert sorted((done.title, done.run_id, done.reason) for done in finished) == [
        (f"fold {number}", f"run{number}", "") for number in range(3)
    ]
    assert lines[:2] == ["fold 0: runs on GPU 0", "fold 1: runs on GPU 1"]
    assert lines[-1].startswith("fold 2: run run2 finished after 0:00:0")
    assert lines[-1].endswith("(3 of 3)")
    raise_failures(finished, "folds")


def test_a_failed_order_stops_no_other_and_its_run_is_closed(execute):
    runs = {}

    def work(order: Order):
        runs[order.number] = new_run()
        yield RunCreated(order.number, runs[order.number])
        return Result("failed", reason="killed by SIGKILL") if order.number == 0 else Result("complete")

    finished, lines = execute(work, 2)
    with pytest.raises(RunError, match=r"(?s)1 of 2 folds failed.*fold 0: killed by SIGKILL"):
        raise_failures(finished, "folds")
    run = connect(None).get_run(runs[0])
    assert (run.info.status, run.data.tags["status_reason"]) == ("FAILED", "killed by SIGKILL")
    assert any(line.startswith("fold 0: failed after") for line in lines)


def test_the_run_of_a_lost_machine_is_closed_and_the_order_starts_again(execute):
    runs = [new_run(), new_run()]

    def work(order: Order):
        yield Refused("node3", "its version is 0")
        yield RunCreated(order.number, runs[0])
        yield Lost(order.number, "node1")
        yield RunCreated(order.number, runs[1])
        return Result("complete")

    (done,), lines = execute(work, 1)
    assert done.run_id == runs[1]
    assert connect(None).get_run(runs[0]).info.status == "KILLED"
    assert "node3 gets no orders: its version is 0" in lines
    assert "fold 0: node1 died or is unreachable; it starts again" in lines


def test_a_signal_stops_the_orders_and_closes_their_runs(execute):
    run_id = new_run()

    def work(order: Order):
        yield RunCreated(order.number, run_id)
        os.kill(os.getpid(), signal.SIGTERM)
        yield Started(order.number, "CPU")

    with signals_as_interrupts(), pytest.raises(Interrupted):
        execute(work, 2)
    assert connect(None).get_run(run_id).info.status == "KILLED"


def test_an_error_of_the_engine_closes_the_runs_too(store, monkeypatch):
    run_id = new_run()

    def work(order: Order):
        yield RunCreated(order.number, run_id)
        raise RunError("the Ray cluster was lost")

    monkeypatch.setattr(run_orders, "make_engine", lambda *_: StubEngine(work))
    with pytest.raises(RunError, match="the Ray cluster was lost"):
        run_orders.run_orders([Order(0, "fit", "fit_0")], ["fold 0"], Resources(), RunStore(None), "cpu", print)
    run = connect(None).get_run(run_id)
    assert (run.info.status, run.data.tags["status_reason"]) == ("KILLED", "the Ray cluster was lost")
