"""RayEngine on two nodes of one machine, with orders that a stub runs."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray_stub import use_stub

from skincancer.engines import ray_cluster
from skincancer.engines.orders import Ended, Epoch, Event, Lost, Order, Refused, Result, RunCreated, Started
from skincancer.engines.ray_cluster import RayEngine
from skincancer.engines.ray_task import STOP, Mailbox
from skincancer.engines.resources import Resources
from skincancer.errors import RunError
from skincancer.runs.store import RunStore

ray = pytest.importorskip("ray", reason="needs ray: pip install 'skincancer[cluster]'")

COMPLETE = "say(run=str(os.getpid())); say(objective=0.5)"
WAITS = "say(run=str(os.getpid())); say(epoch=1, value=0.5, last=False); hear(); say(objective=0.5)"
VARIABLES = "' '.join(os.environ[name] for name in ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS'))"
WHERE = f"say(run={VARIABLES}); say(epoch=1, value=0.5, last=False); hear(); say(objective=1)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One node with four cores and two pretended GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Workers load the module of the hook.
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("MLFLOW_TRACKING_URI", "of the machine")
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init(
            address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            runtime_env={"worker_process_setup_hook": use_stub}, object_store_memory=80 * 2**20,
        )  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture
def make(cluster, tmp_path, store, monkeypatch) -> Iterator[object]:
    """Function that makes an engine, which is stopped at the end."""
    monkeypatch.setattr(ray_cluster, "PAUSE_SECONDS", 0.0)
    engines = []

    def new(
        *, use_gpus: bool = False, check: str = "", refusal: str = "", uri: str | None = None, **resources: object
    ) -> RayEngine:
        order = Order(-1, "check", "check", params={"code": check}) if check else None
        engine = RayEngine(
            Resources(**resources), tmp_path / "logs", RunStore(uri), use_gpus=use_gpus, check=order,
            refusal=lambda facts: refusal,
        )  # fmt: skip
        engines.append(engine)
        return engine

    yield new
    for engine in engines:
        engine.stop()


def order(number: int, code: str) -> Order:
    return Order(number, "trial", f"trial_{number:04d}", params={"code": code})


def collect(engine: RayEngine, count: int, kind: type[Event] = Ended, seconds: float = 60) -> list[Event]:
    """Return all events until there are so many of one kind."""
    events: list[Event] = []
    until = time.monotonic() + seconds
    while sum(isinstance(event, kind) for event in events) < count:
        assert time.monotonic() < until, events
        events += engine.events(0.2)
    return events


def room(engine: RayEngine, seconds: float = 60) -> int:
    """Return the room after the first node is known."""
    until = time.monotonic() + seconds
    while not engine.room() and time.monotonic() < until:
        engine.events(0.2)
    return engine.room()


def test_an_order_and_the_next_one_in_the_same_process(make):
    engine = make(workers=1)
    assert room(engine) == 1
    runs = []
    for number in (0, 1):
        engine.submit(order(number, COMPLETE))
        assert engine.room() == 0
        started, created, ended = collect(engine, 1)
        assert isinstance(started, Started)
        assert started.place == os.uname().nodename
        runs.append(created.run_id)
        assert (ended.number, ended.result.state, ended.result.value) == (number, "complete", 0.5)
    assert runs[0] == runs[1]


def test_each_order_sees_its_gpu(make):
    engine = make(use_gpus=True, gpus=0.5, cpus=1)
    assert room(engine) == 4
    for number in range(4):
        engine.submit(order(number, WHERE))
    events = collect(engine, 4, Epoch)
    seen = sorted(event.run_id for event in events if isinstance(event, RunCreated))
    assert seen == ["0 1", "0 1", "1 1", "1 1"]
    places = sorted(event.place.split(", ")[1] for event in events if isinstance(event, Started))
    assert places == ["GPU 0", "GPU 0", "GPU 1", "GPU 1"]
    assert engine.room() == 0
    for number in range(4):
        engine.answer(number, prune=False)
    assert {event.result.state for event in collect(engine, 4) if isinstance(event, Ended)} == {"complete"}


def test_an_order_without_gpu_sees_none(make):
    engine = make(cpus=2)
    assert room(engine) == 2
    engine.submit(order(0, WHERE))
    (created,) = [event for event in collect(engine, 1, Epoch) if isinstance(event, RunCreated)]
    assert created.run_id == " 2"


def test_shares_of_two_gpus_do_not_add_up(make):
    assert room(make(use_gpus=True, gpus=0.4)) == 4


def test_a_failed_order_keeps_its_log_on_the_driver(make, tmp_path):
    engine = make()
    room(engine)
    fail = "open(order['log'], 'w').write('error: the loss is nan'); say(exit=3)"
    engine.submit(order(0, fail))
    ended = collect(engine, 1)[-1]
    path = tmp_path / "logs" / "trial_0000.log"
    assert ended.result.state == "failed"
    assert ended.result.reason == f"exit code 3: the loss is nan (complete log: {path})"
    assert ended.log == path
    assert path.read_text() == "error: the loss is nan"


def test_a_task_that_raises_fails_its_order(make):
    engine = make()
    room(engine)
    engine.submit(Order(0, "trial", "no/folder", "task: classification", params={"code": COMPLETE}))
    ended = collect(engine, 1)[-1]
    assert ended.result.state == "failed"
    assert ended.result.reason.startswith("FileNotFoundError: ")


def test_stopped_orders_are_interrupted(make, tmp_path):
    engine = make(cpus=1)
    room(engine)
    for number in (0, 1):
        engine.submit(order(number, WAITS))
    collect(engine, 2, Epoch)
    engine.submit(order(2, "say(run='x'); hear()"))
    collect(engine, 1, RunCreated)
    ended = [event for event in engine.stop() if isinstance(event, Ended)]
    assert sorted((event.number, event.result.state) for event in ended) == [(n, "interrupted") for n in range(3)]


def test_an_order_that_ends_while_it_is_stopped_keeps_its_result(make):
    engine = make()
    room(engine)
    code = "say(run='x'); sys.stdin.readline(); say(objective=0.75)"
    engine.submit(order(0, code))
    collect(engine, 1, RunCreated)
    (ended,) = [event for event in engine.stop() if isinstance(event, Ended)]
    assert (ended.result.state, ended.result.value) == ("complete", 0.75)


def test_an_order_whose_ray_worker_dies_starts_again(make, tmp_path):
    engine = make(workers=1)
    room(engine)
    first, received = tmp_path / "first", tmp_path / "received"
    kill = (
        f"if not os.path.exists({str(first)!r}):\n open({str(first)!r}, 'w')\n"
        f" while not os.path.exists({str(received)!r}): time.sleep(0.05)\n os.kill(os.getppid(), 9)\n time.sleep(60)\n"
    )
    engine.submit(order(0, f"say(epoch=1, value=0.5, last=False)\n{kill}say(objective=hear() == 'go')"))
    events = collect(engine, 1, Epoch)
    received.touch()
    events += collect(engine, 1, Epoch)
    assert [type(event) for event in events if not isinstance(event, Epoch)] == [Started, Lost, Started]
    # The epoch of the lost start needs no answer, so the first answer belongs to the second start.
    engine.answer(0, prune=False)
    engine.answer(0, prune=True)
    assert collect(engine, 1)[-1].result.value == 1.0


def test_the_answer_to_an_epoch_of_a_lost_order_is_dropped(make, tmp_path):
    engine = make(workers=1)
    room(engine)
    first = tmp_path / "first"
    kill = f"first = {str(first)!r}\nif not os.path.exists(first): open(first, 'w'); os.kill(os.getppid(), 9); time.sleep(60)\n"
    engine.submit(order(0, f"say(epoch=1, value=0.5, last=False)\n{kill}say(run=hear())\nsay(objective=1)"))
    collect(engine, 1, Lost)
    engine.answer(0, prune=True)
    collect(engine, 1, Epoch)
    engine.answer(0, prune=False)
    created = [event for event in collect(engine, 1) if isinstance(event, RunCreated)]
    assert [event.run_id for event in created] == ["go"]


def test_an_order_that_kills_each_machine_fails(make, monkeypatch):
    monkeypatch.setattr(ray_cluster, "MOST_STARTS", 2)
    engine = make(workers=1)
    room(engine)
    engine.submit(order(0, "os.kill(os.getppid(), 9); time.sleep(60)"))
    events = collect(engine, 1)
    assert sum(isinstance(event, Lost) for event in events) == 1
    assert events[-1].result.state == "failed"
    assert "died or was unreachable 2 times" in events[-1].result.reason


def test_a_machine_is_accepted_after_its_check(make):
    engine = make(check="say(facts={'version': 'x'})", cpus=4)
    assert engine.room() == 0
    assert room(engine) == 1


def test_a_refused_machine_gets_no_orders(make):
    engine = make(check="say(facts={'version': 'x'})", refusal="its version is x; expected y.")
    (refused,) = collect(engine, 1, Refused)
    assert refused.place == os.uname().nodename
    assert refused.reason == "its version is x; expected y."
    assert engine.room() == 0
    with pytest.raises(RunError, match="no machine of the cluster can run orders"):
        collect(engine, 1)


def test_a_check_that_fails_refuses_with_its_log(make, tmp_path):
    engine = make(check="open(order['log'], 'w').write('error: no images'); say(exit=1)")
    (refused,) = collect(engine, 1, Refused)
    (log,) = (tmp_path / "logs").iterdir()
    assert refused.reason == f"exit code 1: no images (complete log: {log})"


def test_a_check_that_kills_its_worker_refuses(make):
    (refused,) = collect(make(check="os.kill(os.getppid(), 9); time.sleep(60)"), 1, Refused)
    assert refused.reason.startswith("its check failed: ")


def test_waiting_without_a_machine_is_reported_once(make, monkeypatch):
    monkeypatch.setattr(ray_cluster, "IDLE_SECONDS", 0.5)
    engine = make(cpus=64)
    (refused,) = collect(engine, 1, Refused)
    assert refused.place == "the cluster"
    assert refused.reason == "no machine with 64 CPU for each order. Waiting for machines that join."
    assert not engine.events(1)


def test_waiting_for_other_work_is_reported(make, monkeypatch):
    monkeypatch.setattr(ray_cluster, "IDLE_SECONDS", 1.0)
    other = make(cpus=4)
    room(other)
    other.submit(order(0, WAITS))
    collect(other, 1, Epoch)
    engine = make(cpus=4)
    assert room(engine) == 1
    engine.submit(order(0, COMPLETE))
    (refused,) = collect(engine, 1, Refused)
    assert refused.reason == "other work uses its cores or GPUs. Waiting for them."
    other.answer(0, prune=False)
    assert collect(engine, 1)[-1].result.state == "complete"


def test_nothing_is_left_of_orders(make):
    engine = make()
    room(engine)
    engine.submit(order(0, COMPLETE))
    created = collect(engine, 1)[1]
    worker = psutil.Process(int(created.run_id)).parent().pid
    until = time.monotonic() + 30
    folder = Path("/tmp") / f"skincancer_{os.getuid()}_{os.uname().nodename}_{worker}"
    while folder.exists():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("uri", "seen"),
    [
        ("postgresql://me@host/runs", "postgresql://me@host/runs"),
        # The environment variable of the machine.
        ("postgresql://me:hunter2@host/runs", "of the machine"),
    ],
)
def test_the_address_of_the_store_is_sent_through_ray_unless_it_has_a_password(make, uri, seen):
    engine = make(uri=uri, workers=1)
    room(engine)
    engine.submit(order(0, "say(run=os.environ['MLFLOW_TRACKING_URI']); say(objective=1)"))
    (created,) = [event for event in collect(engine, 1) if isinstance(event, RunCreated)]
    assert created.run_id == seen


def test_the_mailbox_forgets_tasks_that_ended():
    async def talk() -> str:
        mailbox = Mailbox()
        waiting = asyncio.create_task(mailbox.wait_for_answer(1))
        await asyncio.sleep(0)
        await mailbox.put(1, Ended(0, Result("complete"), Path("log")), "")
        return await asyncio.wait_for(waiting, 10)

    assert asyncio.run(talk()) == STOP


def test_events_are_kept_until_the_driver_has_handled_them():
    async def talk() -> None:
        mailbox = Mailbox()
        events = [(1, Epoch(0, epoch, 0.5, False), "") for epoch in (1, 2, 3)]
        for event in events[:2]:
            await mailbox.put(*event)
        # The driver was interrupted after the first call.
        assert await mailbox.take(0) == events[:2]
        assert await mailbox.take(0) == events[:2]
        await mailbox.put(*events[2])
        assert await mailbox.take(2) == events[2:]
        assert await mailbox.take(3) == []

    asyncio.run(talk())
