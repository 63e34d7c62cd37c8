"""Test the life of a run: ends, owners, reaping, stores."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy import event
from synthetic_runs import class_predictions, finished_fit

from skincancer import compare, evaluate, fit, sweep
from skincancer.errors import RunError
from skincancer.evaluation import external
from skincancer.runs import lifecycle
from skincancer.runs.finished import FinishedRun
from skincancer.runs.lifecycle import reap, start_run
from skincancer.runs.store import RunStore, connect
from skincancer.system import interrupts
from skincancer.system.hardware import device_name, owner_alive, owner_tags
from skincancer.system.interrupts import Interrupted, signals_as_interrupts, uninterrupted
from skincancer.system.paths import sqlite_path, tracking_uri, work_root


def begin(client, **tags):
    return start_run(RunStore(None), "demo-classification", "a run", {"kind": "fit", **tags}, system_metrics=False)


def status(client, run_id):
    run = client.get_run(run_id)
    return run.info.status, run.data.tags["status_reason"]


def test_end_is_written_once_after_the_last_artifact(store):
    client = connect(None)
    with begin(client) as run:
        run.write_text("a.txt", "text")
        run.log_metrics({"val/accuracy": 0.5, "val/loss": 1.0}, step=3)
        assert client.get_run(run.run_id).info.status == "RUNNING"
    assert status(client, run.run_id) == ("FINISHED", "")
    assert [item.path for item in client.list_artifacts(run.run_id)] == ["a.txt"]
    assert client.get_metric_history(run.run_id, "val/accuracy")[0].step == 3


@pytest.mark.parametrize(
    ("error", "end", "reason"),
    [
        (RunError("the loss was NaN"), "FAILED", "the loss was NaN"),
        (MemoryError("no memory"), "FAILED", "MemoryError: no memory"),
        (SystemExit(3), "FAILED", "SystemExit: 3"),
        (Interrupted(signal.SIGINT), "KILLED", "interrupted by SIGINT"),
        (Interrupted(signal.SIGTERM), "KILLED", "interrupted by SIGTERM"),
    ],
)
def test_end_is_recorded(store, error, end, reason):
    client = connect(None)
    with pytest.raises(type(error)), begin(client) as run:
        raise error
    assert status(client, run.run_id) == (end, reason)
    assert run.folder.is_dir(), "what an unfinished run wrote is kept"


def test_files_of_a_run_without_resume_are_deleted(store):
    client = connect(None)
    with (
        pytest.raises(OSError, match="full"),
        start_run(RunStore(None), "demo", "a trial", {"kind": "trial"}, system_metrics=False, keep=False) as run,
    ):
        raise OSError("full")
    assert not run.folder.exists()
    assert status(client, run.run_id) == ("FAILED", "OSError: full")


def interrupted_twice():
    with signals_as_interrupts():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)


def test_second_signal_does_not_interrupt_the_end():
    with pytest.raises(Interrupted) as caught:
        interrupted_twice()
    assert caught.value.exit_code == 143


class Collected:
    """Object for the garbage collector."""


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_not_lost_where_python_drops_exceptions(number, exit_code):
    # as where garbage is collected during a long call into C: the first Python code to run is a weak reference's callback
    callbacks = []

    def long_call():
        with signals_as_interrupts():
            collected = Collected()
            kept = weakref.ref(
                collected, lambda _: (callbacks.append(1), os.kill(os.getpid(), number), callbacks.append(2))
            )
            del collected
            assert kept() is None
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                time.sleep(0.01)

    alarm = signal.getsignal(signal.SIGALRM)
    with pytest.raises(Interrupted) as caught:
        long_call()
    assert signal.getsignal(signal.SIGALRM) == alarm
    assert callbacks == [1], "the signal arrived inside the callback"
    assert caught.value.exit_code == exit_code


def test_other_exceptions_that_python_drops_are_reported_as_before(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: reported.append(str(what.exc_value)))
    with signals_as_interrupts():
        collected = Collected()
        kept = weakref.ref(collected, lambda _: {}["what it says"])
        del collected
        assert kept() is None
    assert reported == ["'what it says'"]


def test_handlers_are_restored():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [*map(signal.getsignal, numbers), sys.unraisablehook]
    with signals_as_interrupts():
        for number, handler in zip(numbers, before, strict=False):
            assert signal.getsignal(number) != handler
        assert sys.unraisablehook != before[-1]
    assert [*map(signal.getsignal, numbers), sys.unraisablehook] == before


def test_alarms_of_others_are_kept():
    alarms = []
    before = signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))
    try:
        with signals_as_interrupts():
            os.kill(os.getpid(), signal.SIGALRM)
            signal.setitimer(signal.ITIMER_REAL, 60)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert alarms == [1]


def test_a_signal_inside_a_database_statement_leaves_the_store_usable(store):
    client = connect(None)
    engine = client._tracking_client.store.engine
    stopped = []

    def stop_here(connection, cursor, statement, parameters, context, executemany):
        if "FROM latest_metrics" in statement and not stopped:
            stopped.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    def train():
        with signals_as_interrupts(), begin(client) as run:
            runs.append(run)
            run.log_metrics({"val/loss": 1.0}, step=1)
            event.listen(engine, "after_cursor_execute", stop_here)
            run.log_metrics({"val/loss": 0.5}, step=2)

    runs = []
    with pytest.raises(Interrupted):
        train()
    (run,) = runs
    event.remove(engine, "after_cursor_execute", stop_here)
    assert [metric.step for metric in client.get_metric_history(run.run_id, "val/loss")] == [1, 2]
    assert status(client, run.run_id) == ("KILLED", "interrupted by SIGTERM")


@pytest.mark.parametrize(("seconds", "reached_at_last", "exit_code"), [(0.0, [1], 130), (60.0, [1, 2], 143)])
def test_second_signal_interrupts_only_a_delayed_first(monkeypatch, seconds, reached_at_last, exit_code):
    reached = []

    def write():
        with signals_as_interrupts(), uninterrupted():
            monkeypatch.setattr(interrupts, "HOLD_SECONDS", 60.0)
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(1)
            monkeypatch.setattr(interrupts, "HOLD_SECONDS", seconds)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(2)

    with pytest.raises(Interrupted) as caught:
        write()
    assert reached == reached_at_last
    assert caught.value.exit_code == exit_code


def test_an_end_that_cannot_be_written_is_not_finished(store, monkeypatch):
    client = connect(None)
    runs = []

    def train():
        with begin(client) as run:
            runs.append(run.run_id)
            monkeypatch.setattr(run.store.client, "log_batch", Mock(side_effect=MlflowException("database is locked")))
            raise RunError("the loss was NaN")

    with pytest.raises(MlflowException, match="locked"):
        train()
    assert client.get_run(runs[0]).info.status == "FAILED"


def test_a_signal_while_a_run_starts_ends_it(store, monkeypatch):
    client = connect(None)
    create = MlflowClient.create_run

    def interrupted(*arguments, **options):
        created = create(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return created

    monkeypatch.setattr(MlflowClient, "create_run", interrupted)
    with pytest.raises(Interrupted), signals_as_interrupts(), begin(client):
        pytest.fail("the block was entered")
    (run,) = client.search_runs([RunStore(None).experiment_id("demo-classification")])
    assert status(client, run.info.run_id) == ("KILLED", "interrupted by SIGTERM")
    assert run.data.tags["pid"] == str(os.getpid())


def make_running(client, **tags):
    experiment = RunStore(None).experiment_id("demo-classification")
    return client.create_run(experiment, tags={"kind": "fit", **owner_tags(), **tags}).info.run_id


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


def test_only_dead_runs_are_reaped(store):
    client = connect(None)
    alive = make_running(client)
    dead = make_running(client, pid=dead_pid())
    recycled = make_running(client, process_start="1.00")  # this pid, but an older process
    elsewhere = make_running(client, host="another", pid=dead_pid())
    rebooted = make_running(client, boot_id="before", pid=dead_pid())
    contained = make_running(client, pid_namespace="pid:[1]", pid=dead_pid())
    older = make_running(client, pid=dead_pid())
    client.delete_tag(older, "pid_namespace")  # a run of version 0.1.0
    assert set(reap(client)) == {dead, recycled, older}
    for run_id in (alive, elsewhere, rebooted, contained):
        assert client.get_run(run_id).info.status == "RUNNING"
    assert status(client, dead) == ("KILLED", "reaped: its process exited")


def test_a_process_of_another_container_may_be_alive():
    """Containers with `--network host` share host name and boot id, but do not see each other's processes."""
    isolated = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*isolated, "true"], capture_output=True).returncode:
        pytest.skip("unshare may not create a PID namespace here (root only)")
    code = "import json, sys; from skincancer.system.hardware import owner_alive; print(owner_alive(json.loads(sys.argv[1])))"
    seen = [*isolated, sys.executable, "-c", code, json.dumps(owner_tags())]
    assert subprocess.run(seen, capture_output=True, text=True, check=True).stdout == "None\n"
    assert owner_alive(owner_tags()) is True


def test_a_zombie_process_owns_no_run():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tags = {**owner_tags(), "pid": str(process.pid)}
    tags["process_start"] = f"{psutil.Process(process.pid).create_time():.2f}"
    assert owner_alive(tags) is True
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert owner_alive(tags) is False
    process.wait()


def test_silent_runs_of_other_hosts_are_reaped_on_request(store):
    client = connect(None)
    long_ago = (datetime.now(UTC) - timedelta(hours=30)).isoformat()
    silent = make_running(client, host="another", heartbeat=long_ago)
    beating = make_running(client, host="another", heartbeat=datetime.now(UTC).isoformat())
    assert reap(client, older_than_hours=24) == [silent]
    assert client.get_run(beating).info.status == "RUNNING"


def test_resume_refuses_a_run_with_a_living_or_unknown_owner(store):
    client = connect(None)
    with pytest.raises(RunError, match=f"still being written by process {os.getpid()} on {socket.gethostname()}"):
        lifecycle.check_resumable(client, make_running(client))
    with pytest.raises(RunError, match="cannot be seen from here"):
        lifecycle.check_resumable(client, make_running(client, host="another"))


def stopped_run(client):
    try:
        with begin(client) as run:
            run.log_params({"weights": "imagenet"})
            raise RunError("stopped")
    except RunError:
        return run


def test_params_of_a_resumed_run_are_kept(store):
    client = connect(None)
    run = stopped_run(client)
    with start_run(
        RunStore(None), "demo-classification", "", {"kind": "fit"}, system_metrics=False, resume=run.run_id
    ) as again:
        again.log_params({"weights": "random", "new": 1})
    assert client.get_run(run.run_id).data.params == {"weights": "imagenet", "new": "1"}


def test_heartbeat_moves(store, monkeypatch):
    monkeypatch.setattr(lifecycle, "HEARTBEAT_SECONDS", 0.05)
    beats = iter(f"beat {number}" for number in range(10_000))
    seen = threading.Event()

    def now():
        beat = next(beats)
        if beat == "beat 3":
            seen.set()
        return beat

    monkeypatch.setattr(lifecycle, "_now", now)
    client = connect(None)
    with begin(client) as run:
        assert seen.wait(20)
    assert client.get_run(run.run_id).data.tags["heartbeat"] not in ("beat 0", "beat 1")


def test_sqlite_paths_are_absolute_with_artifacts_next_to_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///here/mlflow.db") == f"sqlite:///{tmp_path}/here/mlflow.db"
    assert tracking_uri("http://host:5000") == "http://host:5000"
    assert sqlite_path("http://host:5000") is None
    assert work_root(tracking_uri("sqlite:///here/mlflow.db")) == tmp_path / "here" / "work"


def test_artifacts_are_next_to_the_database(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    client = connect(None)
    with begin(client) as run:
        run.write_text("a.txt", "text")
    database = sqlite_path(client.tracking_uri)
    assert list((database.parent / "artifacts").rglob("a.txt"))
    assert not (tmp_path / "mlruns" / "0").exists()
    assert not (tmp_path / "mlartifacts").exists()


@pytest.mark.parametrize("uri", ["file:///tmp/x", "/tmp/some/folder", "sqlite:////proc/none/mlflow.db"])
def test_store_that_cannot_be_opened_is_named(uri):
    with pytest.raises(RunError, match="cannot be opened"):
        connect(uri)


@pytest.mark.slow
def test_first_creation_by_two_processes_at_once(tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    code = f"from skincancer.runs.store import RunStore; print(RunStore({uri!r}).experiment_id('a'))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(found) == 1


@pytest.mark.slow
def test_ui_serves_the_store_and_stops(store, tmp_path):
    client = connect(None)
    with begin(client):
        pass
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "ui.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "skincancer.ui", "--port", str(port)], stdout=output, stderr=output
        )
        try:
            deadline = datetime.now(UTC) + timedelta(seconds=90)
            page = b""
            while datetime.now(UTC) < deadline and not page:
                try:
                    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                except OSError:
                    assert process.poll() is None, log.read_text()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
    assert process.returncode == 130
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    assert b"<title>MLflow</title>" in page
    assert Path(sqlite_path(client.tracking_uri)).exists()


def test_the_device_is_named_by_what_the_trainer_takes(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA A100")
    assert [device_name(name) for name in ("auto", "gpu", "cuda")] == ["NVIDIA A100"] * 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    for name in ("cpu", "auto"):
        assert device_name(name).endswith(f"{psutil.cpu_count()} cores")


def test_a_deleted_experiment_is_reported_before_the_data_are_read(store, tmp_path, capsys, monkeypatch):
    kept = [finished_fit("resnet50", class_predictions(seed, 40, 1.0), seed=seed) for seed in (0, 1)]
    client = connect(None)
    number = RunStore(None).experiment_id("demo-classification")
    client.delete_experiment(number)
    # Reading the data would fail with another error.
    data = [f"--data.root={tmp_path / 'nowhere'}"]
    (tmp_path / "tiny.yaml").write_text("task: classification\nsearch: {seed: {choices: [1, 2]}}\n")
    for main, arguments in (
        (fit.main, ["--experiment=resnet50", *data]),
        (sweep.main, [f"--experiment={tmp_path / 'tiny.yaml'}", "--trials=1", *data]),
        (compare.main, ["--experiments", "resnet50"]),
    ):
        assert main(arguments) == 1
        error = " ".join(capsys.readouterr().err.split())
        assert f"'demo-classification' in {store} is deleted; restore it (mlflow experiments restore" in error
        assert f"--experiment-id {number})" in error
    client.restore_experiment(number)
    client.create_experiment("folder-classification")
    client.delete_experiment(RunStore(None).experiment_id("folder-classification"))
    # The run has no weights.
    monkeypatch.setattr(external, "load_fit", FinishedRun)
    assert evaluate.main([f"--run={kept[0]}", "--data.dataset=folder", *data]) == 1
    assert "'folder-classification' in" in capsys.readouterr().err
