"""The engine of this machine: what an order's process does is how it ended; slots, signals, GPUs and cores."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from skincancer.engines import local, slot
from skincancer.engines.local import LocalEngine, visible_devices
from skincancer.engines.orders import CONFIG, Checked, Ended, Epoch, Event, Order, Result, RunCreated, Started

SAY = """
import json, os, sys

pipe = int(sys.argv[-1])
order = json.loads(input())


def say(**words):
    os.write(pipe, (json.dumps(words) + chr(10)).encode())


def hear():
    return json.loads(input())


"""
ORDERS = {
    "complete": (SAY + "say(epoch=1, value=0.5, last=False)\nassert hear() == 'go'\nsay(objective=0.5)", "complete", ""),
    "pruned": (SAY + "say(epoch=2, value=0.0, last=False)\nassert hear() == 'prune'\nsay(pruned=True)", "pruned", ""),
    "segfault": ("import ctypes; ctypes.string_at(0)", "failed", "killed by SIGSEGV"),
    "out of memory": ("import os; os.kill(os.getpid(), 9)", "failed", "killed by SIGKILL (out of memory?)"),
    "error": ("import sys; sys.exit('error: the loss is nan in step 3')", "failed", "exit code 1: the loss is nan in step 3"),
    "no message": ("print('well')", "failed", "exit code 0: well"),
    "half a result": (SAY + "say(objective=0.5)\nraise SystemExit(3)", "failed", "exit code 3"),
}  # fmt: skip


@pytest.fixture
def start(tmp_path: Path, monkeypatch):
    """Make an engine with this code as its process, and close it after the test."""
    engines = []

    def make(code: str, workers: int = 2, devices: tuple[str, ...] = (), threads: int | None = None) -> LocalEngine:
        monkeypatch.setattr(slot, "COMMAND", (sys.executable, "-c", code))
        monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # the slot must set it
        engines.append(LocalEngine(tmp_path / "logs", workers, devices, threads, {}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def trial(number: int) -> Order:
    return Order(number, "trial", f"trial_{number:04d}", "task: classification\n", parent="parent", params={"a": 0.5})


def run(engine: LocalEngine, *orders: Order) -> list[Event]:
    """Run orders one after the other. Epoch 2 is pruned."""
    events: list[Event] = []
    for order in orders:
        engine.submit(order)
        while not isinstance(events[-1] if events else None, Ended) or events[-1].number != order.number:
            for event in engine.events(0.5):
                events.append(event)
                if isinstance(event, Epoch) and not event.last:
                    engine.answer(event.number, prune=event.epoch == 2)
    return events


def run_to_end(engine: LocalEngine) -> None:
    while engine._running:
        engine.events(0.5)


def results(events: list[Event]) -> list[Result]:
    return [event.result for event in events if isinstance(event, Ended)]


@pytest.mark.parametrize("name", ORDERS)
def test_how_a_process_ends_is_the_result_of_its_order(start, name):
    code, state, reason = ORDERS[name]
    (result,) = results(run(start(code), trial(0)))
    assert result.state == state
    assert result.reason.startswith(reason)
    if state == "failed":
        assert "trial_0000.log" in result.reason


def test_an_order_of_a_verb_needs_no_objective(start, tmp_path):
    code = SAY + "assert order['argv'][1] == order['config'], order\nassert open(order['config']).read() == 'seed: 1'"
    order = Order(0, "fit", "fit_0", "seed: 1", argv=("--experiment", CONFIG))
    assert results(run(start(code), order)) == [Result("complete")]
    assert results(run(start("raise SystemExit('error: no data')"), order))[0].state == "failed"


def test_facts_of_a_check_are_an_event(start):
    events = run(start(SAY + "say(facts={'version': '1'})"), Order(-1, "check", "check"))
    assert Checked(-1, {"version": "1"}) in events


FORKING = """
import os, signal, subprocess, sys
from skincancer.engines import process

def run(config, argv, link):
    print("trial", link.number)
    link.send(run="run")
    link.report(os.getppid(), 0.5, last=True)
    if link.number == 1:
        child = subprocess.Popen(["sleep", "300"])
        print("left", child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    link.ended(0.5)
    return 0

process.AHEAD = ()
print("once")
sys.exit(process.main(sys.argv[1:], {"trial": run}))
"""


def test_the_orders_of_a_slot_are_forked_from_one_process(start, tmp_path):
    engine = start(FORKING)
    events = run(engine, *map(trial, range(4)))
    assert [result.state for result in results(events)] == ["complete", "failed", "complete", "complete"]
    forking = [event.epoch for event in events if isinstance(event, Epoch)]
    assert forking[0] == forking[1]
    assert forking[2] == forking[3] != forking[0], "a crash ends its process, and what it left"
    assert [event for event in events if isinstance(event, RunCreated)] == [RunCreated(n, "run") for n in range(4)]
    logs = [(tmp_path / f"logs/trial_{number:04d}.log").read_text() for number in range(4)]
    assert [log.splitlines()[0] for log in logs] == [f"trial {number}" for number in range(4)]
    left = int(logs[1].split()[-1])
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
    process = engine._idle[0].process
    engine.close()
    assert process.returncode == 0
    assert sorted(path.name for path in (tmp_path / "logs").glob("*.log")) == [f"trial_{n:04d}.log" for n in range(4)]


def test_a_forking_process_that_was_killed_is_started_anew(start):
    engine = start(FORKING)
    run(engine, trial(0))
    engine._idle[0].process.kill()
    engine._idle[0].process.wait()
    assert results(run(engine, trial(2)))[0].state == "complete"


def test_where_nothing_can_be_forked_every_order_starts_its_own_process(start, tmp_path):
    engine = start(FORKING.replace("process.AHEAD = ()", "process.AHEAD = ()\nprocess.FORKS = False"))
    events = run(engine, *map(trial, range(3)))
    assert [result.state for result in results(events)] == ["complete", "failed", "complete"]
    assert {event.epoch for event in events if isinstance(event, Epoch)} == {os.getpid()}
    assert (tmp_path / "logs/trial_0002.log").read_text() == "trial 2\n"


def test_a_signal_ends_an_order_and_not_the_process_that_forks(start, monkeypatch):
    monkeypatch.setattr(local, "_SAME_SIGNAL_SECONDS", 0.1)
    code = FORKING.replace(
        "link.ended(0.5)", "os.kill(os.getppid(), signal.SIGTERM)\n    os.kill(os.getpid(), signal.SIGTERM)"
    )
    (result,) = results(run(start(code), trial(0)))
    assert result.state == "failed"
    assert result.reason.startswith("exit code 143: interrupted by SIGTERM")


def test_a_signal_to_all_processes_is_no_failure(start, monkeypatch):
    """A scheduler ends the order before its signal reaches this process."""

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    engine = start(FORKING.replace("link.ended(0.5)", "os.kill(os.getpid(), signal.SIGTERM)"))
    engine.submit(trial(0))
    monkeypatch.setattr(local.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(engine)
    monkeypatch.undo()
    assert results(engine.stop()) == [Result("interrupted")]


def test_an_answer_to_an_order_that_has_ended_is_no_order(start):
    engine = start(FORKING)
    run(engine, trial(0))
    engine._idle[0].send("go")
    assert results(run(engine, trial(2)))[0].state == "complete"


def test_the_logs_of_slots_whose_engine_was_killed_are_removed(start, tmp_path):
    (tmp_path / "logs").mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = socket.gethostname()
    names = [f"slot_{host}_{gone.pid}_0.log", f"slot_{host}_{os.getppid()}_0.log", f"slot_elsewhere_{gone.pid}_0.log"]
    for name in names:
        (tmp_path / "logs" / name).touch()
    engine = start(SAY + "say(objective=0.25)")
    run(engine, trial(0))
    engine.close()
    assert {path.name for path in (tmp_path / "logs").glob("slot_*")} == set(names[1:])


HANGING = """
import hashlib, sys
from skincancer.engines import process

def run(config, argv, link):
    link.send(run="run")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in a library, which ignores signals

process.AHEAD, process.GRACE_SECONDS = (), 0.5
sys.exit(process.main(sys.argv[1:], {"trial": run}))
"""


def test_an_order_that_hangs_in_a_library_ends_with_its_engine(tmp_path):
    reading, writing = os.pipe()
    log = tmp_path / "trial.log"
    with open(reading, "rb") as pipe:
        command = [sys.executable, "-c", HANGING, "--pipe", str(writing)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(writing,))
        os.close(writing)
        order = {"kind": "trial", "config": "", "argv": [], "log": str(log), "number": 0, "parent": "", "params": {}}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(pipe.readline()) == {"run": "run"}
        time.sleep(1)  # until it is in the library
        process.stdin.close()
        assert json.loads(pipe.readline()) == {"exit": 1}
        assert process.wait(30) == 0
    assert "in run" in log.read_text(), "where it hung"


@pytest.mark.slow
def test_a_process_without_orders_ends():
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        command = [*slot.COMMAND, "--pipe", str(writing)]
        assert subprocess.run(command, stdin=subprocess.DEVNULL, pass_fds=(writing,), check=False).returncode == 0
        os.close(writing)
        assert pipe.read() == b""


def test_what_is_imported_before_a_fork_starts_no_thread_and_asks_for_no_gpu():
    code = (
        "import importlib, threading, torch\n"
        "def ask(*_): raise AssertionError('a process that has asked for GPUs cannot be forked')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = torch.cuda.init = ask\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = ask\n"
        "from skincancer import order_process\n"
        "from skincancer.engines import process\n"
        "for name in process.AHEAD: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_order_that_does_not_end_is_ended(start, monkeypatch):
    monkeypatch.setattr(slot, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(local, "GRACE_SECONDS", 1.0)
    engine = start(SAY + (
        "import signal, subprocess, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '300'])\nsay(epoch=child.pid, value=0.5, last=True)\ntime.sleep(300)"
    ))  # fmt: skip
    engine.submit(trial(0))
    events: list[Event] = []
    while not any(isinstance(event, Epoch) for event in events):
        events += engine.events(0.5)
    assert results(engine.stop()) == [Result("interrupted")]
    child = events[-1].epoch
    _, alive = psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=30)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


def test_stopped_orders_keep_a_result_that_they_sent_before(start):
    engine = start(FORKING)
    engine.submit(trial(0))
    while engine._running[0].slot.process.poll() is None and not engine._running[0].log.exists():
        time.sleep(0.05)
    # The order ends by itself, and its result is in the pipe when the engine stops.
    time.sleep(1)
    assert results(engine.stop()) == [Result("complete", 0.5)]


def test_each_slot_has_its_own_gpu(start, tmp_path):
    engine = start(
        SAY + "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\nhear()\nsay(objective=0.5)", 3, ("4", "7")
    )
    for number in range(3):
        engine.submit(trial(number))
    assert engine.room() == 0
    assert [event.place for event in engine.events(0)] == ["GPU 4", "GPU 7", "GPU 4"]
    assert engine.threads is None
    for number in range(3):
        engine.answer(number, prune=False)
    ended: list[Event] = []
    while len(ended) < 3:
        ended += [event for event in engine.events(0.5) if isinstance(event, Ended)]
    logs = [(tmp_path / f"logs/trial_{number:04d}.log").read_text().strip() for number in range(3)]
    assert logs == ["4", "7", "4"]


@pytest.mark.parametrize(
    ("visible", "count", "expected"),
    [
        (None, 2, ["0", "1"]),
        (None, 0, []),
        ("4,7", 2, ["4", "7"]),
        ("GPU-8932f937, GPU-46ab", 2, ["GPU-8932f937", "GPU-46ab"]),
        ("0,9,1", 1, ["0"]),  # CUDA takes what comes before the first that is not there
        ("", 0, []),
        ("0", 0, []),  # without a driver
    ],
)
def test_gpus_keep_the_names_of_the_environment(visible, count, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices() == expected


def test_slots_share_the_cores(start, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    code = SAY + "print(os.environ['OMP_NUM_THREADS'])\nsay(objective=0.5)"
    engine = start(code)
    events = run(engine, trial(0))
    assert Started(0, "CPU") in events
    assert (tmp_path / "logs/trial_0000.log").read_text().strip() == "4"
    assert engine.threads == 4
    assert start(code, threads=5).threads == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert start(code).threads == 3


def test_an_order_is_no_rank_of_its_launcher(start, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("SLURM_PROCID", "3")
    code = SAY + "print([name in os.environ for name in ('LOCAL_RANK', 'SLURM_PROCID')])\nsay(objective=0.5)"
    run(start(code), trial(0))
    assert (tmp_path / "logs/trial_0000.log").read_text().strip() == "[False, False]"
