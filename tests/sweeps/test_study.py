"""A sweep's study: which trials count, who claims, repeats and closes them; journal, SQLite and PostgreSQL."""

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import optuna
import postgres
import pytest
from conftest import make_store
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from skincancer.errors import ConfigError, RunError
from skincancer.sweeps import executor, storage, study
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.trial_state import TrialResult, counts_towards_total
from skincancer.system import credentials
from skincancer.system.interrupts import Interrupted, signals_as_interrupts

SEARCH = {
    "model.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.dropout": {"low": 0.0, "high": 0.5},
}
PLAN = Plan(
    "densenet169_undersample",
    {"task": "classification"},
    {"seed": 3},
    SEARCH,
    "tpe",
    "median",
    "split",
    "index",
    "7 to train on",
)


def objective(trial: optuna.Trial, slot: int = 0, stop: object = None) -> TrialResult:
    return TrialResult(
        "complete", -((math.log10(trial.params["model.optimizer.lr"]) + 3) ** 2) - trial.params["model.dropout"]
    )


def create(url: str, count: int, plan: Plan = PLAN, name: str = "one") -> study.Sweep:
    sweep = study.create(url, name, plan, count, maximize=True)
    sweep.begin(count)
    sweep.study.set_user_attr("parent_run", "parent")
    return sweep


def points(sweep: study.Sweep) -> list[dict[str, float]]:
    """The points of the trials that count, in their order."""
    return [trial.params for trial in sweep.trials() if counts_towards_total(trial)]


@pytest.fixture
def journal(tmp_path: Path) -> str:
    return f"journal://{tmp_path}/one.journal"


@pytest.fixture(params=["journal", "sqlite", "postgresql"])
def url(request, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return postgres.new_database(request.getfixturevalue("server"))
    return f"{request.param}:///{tmp_path}/one.{request.param}"


# ---------------------------------------------------------------------------------------------------------- draws and repetition


def test_draws_are_a_function_of_the_seed(tmp_path):
    drawn = []
    for number, plan in enumerate((PLAN, PLAN, replace(PLAN, flags={"seed": 4}))):
        sweep = create(f"journal://{tmp_path}/{number}.journal", 14, plan)
        executor.work(sweep, objective, 1)
        drawn.append(points(sweep))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len({tuple(point.values()) for point in drawn[0]}) == 14, "none is drawn twice"


def test_a_stopped_sweep_that_goes_on_has_the_trials_of_one_that_was_not(tmp_path):
    whole = create(f"journal://{tmp_path}/whole.journal", 14)
    executor.work(whole, objective, 1)
    stopped = f"journal://{tmp_path}/stopped.journal"

    def stopping(trial: optuna.Trial, slot: int, stop: threading.Event) -> TrialResult:
        if trial.number == 11:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.wait(30)
            return TrialResult("interrupted")
        return objective(trial)

    sweep = create(stopped, 14)
    with signals_as_interrupts(), pytest.raises(Interrupted):
        executor.work(sweep, stopping, 1)
    assert Counter(trial.state for trial in sweep.trials()) == {
        TrialState.COMPLETE: 11,
        TrialState.FAIL: 1,
        TrialState.WAITING: 1,
    }
    again = create(stopped, 14)
    executor.work(again, objective, 1)
    assert points(again) == points(whole)
    assert len(again.trials()) == 15
    assert again.best().params == whole.best().params


def test_two_workers_do_not_draw_the_same(journal):
    sweep = create(journal, 12)
    both = threading.Barrier(2)

    def together(trial: optuna.Trial, slot: int, stop: threading.Event) -> TrialResult:
        both.wait(60)
        return objective(trial)

    executor.work(sweep, together, 2)
    assert len({tuple(point.values()) for point in points(sweep)}) == 12


def test_a_draw_is_not_made_again_while_a_dead_workers_point_is_on_its_way_to_the_queue(journal):
    sweep, other = create(journal, 9), study.join(journal, "one")
    lost = other.claim(0)
    mine = sweep.claim(0)
    sweep.end(mine, objective(mine))
    assert other._close(lost, "dead")  # so that as many trials count as when mine was drawn
    assert sweep.claim(0).params != mine.params


# ------------------------------------------------------------------------------------------------------------ which trials count


def test_failed_trials_count_and_say_why(journal):
    sweep = create(journal, 6)

    def some_fail(trial: optuna.Trial, slot: int, stop: object) -> TrialResult:
        if trial.number in (1, 2):
            return TrialResult("failed", reason="out of memory")
        return TrialResult("complete", math.nan) if trial.number == 3 else objective(trial)

    executor.work(sweep, some_fail, 1)
    state = [trial.state.name for trial in sweep.trials()]
    assert state == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert sweep.trials()[1].user_attrs["reason"] == "out of memory"
    assert sweep.trials()[3].user_attrs["reason"] == "its objective is nan"


def test_a_sweep_in_which_everything_fails_stops_early_and_can_go_on(journal):
    sweep = create(journal, 40)
    with pytest.raises(RunError, match="the last 3 trials all failed, the last one with: no CUDA"):
        executor.work(sweep, lambda *_: TrialResult("failed", reason="no CUDA"), 1)
    assert len(sweep.trials()) == study.FIRST_FAILURES
    executor.work(create(journal, 5), objective, 1)
    assert len(points(sweep)) == 5


def test_a_sweep_of_two_trials_that_both_fail_is_no_success(journal):
    with pytest.raises(RunError, match="the last 2 trials all failed, the last one with: no CUDA"):
        executor.work(create(journal, 2), lambda *_: TrialResult("failed", reason="no CUDA"), 1)


def test_a_sweep_in_which_nothing_succeeds_any_more_stops(journal):
    sweep = create(journal, 40)

    def disk_full_after_two(trial: optuna.Trial, slot: int, stop: object) -> TrialResult:
        return objective(trial) if trial.number < 2 else TrialResult("failed", reason="no space left")

    with pytest.raises(RunError, match="the last 10 trials all failed, the last one with: no space left"):
        executor.work(sweep, disk_full_after_two, 1)
    assert len(sweep.trials()) == 12


def test_an_error_of_ours_in_a_trial_costs_one_trial(journal):
    sweep = create(journal, 3)

    def broken(trial: optuna.Trial, slot: int, stop: object) -> TrialResult:
        if trial.number == 1:
            raise OSError("Cannot allocate memory")
        return objective(trial)

    executor.work(sweep, broken, 1)
    assert [trial.state.name for trial in sweep.trials()] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert sweep.trials()[1].user_attrs["reason"] == "OSError: Cannot allocate memory"


def test_a_trial_that_was_taken_for_dead_while_it_ran_ends_nothing_else(journal):
    sweep, other = create(journal, 3), study.join(journal, "one")

    def paused(trial: optuna.Trial, slot: int, stop: object) -> TrialResult:
        if trial.number == 0:
            other.release(trial, "dead")
            sweep.beat(trial)
        return objective(trial)

    executor.work(sweep, paused, 1)
    found = sweep.trials()
    assert [trial.state.name for trial in found] == ["FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert found[0].params == found[1].params, "repeated"


def test_a_total_below_what_is_done_is_refused(journal):
    executor.work(create(journal, 3), objective, 1)
    with pytest.raises(ConfigError, match=r"--trials is 2, but 3 trials"):
        create(journal, 2)
    sweep = create(journal, 3)
    executor.work(sweep, lambda *_: pytest.fail("nothing is left to do"), 1)
    executor.work(create(journal, 5), objective, 1)
    assert len(points(sweep)) == 5


def test_pruning_is_by_the_median_of_the_same_epoch(journal):
    sweep = create(journal, 8)
    last_epochs = {}

    def with_epochs(trial: optuna.Trial, slot: int, stop: object) -> TrialResult:
        level = 0.2 if trial.number == 6 else 0.5
        for epoch in range(1, 21):
            trial.report(level + epoch / 100, epoch)
            if trial.should_prune():
                last_epochs[trial.number] = epoch
                return TrialResult("pruned")
        return TrialResult("complete", level)

    plan_epochs = sweep.base.trainer.max_epochs
    executor.work(sweep, with_epochs, 1)
    assert last_epochs == {6: plan_epochs // 4}, "at the end of a quarter of the epochs"
    assert sweep.trials()[6].state == TrialState.PRUNED


def test_the_deadline_starts_no_more(journal):
    sweep = create(journal, 5)
    executor.work(sweep, objective, 1, deadline=time.monotonic() - 1)
    assert sweep.trials() == []


def test_a_grid_has_each_point_once(journal):
    space = {
        "model.dropout": {"low": 0.0, "high": 0.5, "step": 0.25},
        "model.optimizer.lr": {"choices": [1e-4, 1e-3]},
    }
    plan = replace(PLAN, search=space, sampler="grid")
    sweep = create(journal, 100, plan)
    assert sweep.total == 6
    executor.work(sweep, objective, 2)
    assert Counter(tuple(point.values()) for point in points(sweep)).most_common(1)[0][1] == 1
    assert len(points(sweep)) == 6
    assert create(journal, 100, plan).total == 6
    assert len(sweep.trials()) == 6, "a second start adds none"


def test_a_point_of_a_grid_survives_its_worker_at_every_moment(journal, monkeypatch):
    plan = replace(PLAN, search={"model.dropout": {"choices": [0.1, 0.2, 0.3]}}, sampler="grid")
    sweep = create(journal, 3, plan)
    # killed after the point was taken from the queue, and before it was drawn
    number = sweep.study._pop_waiting_trial_id()
    assert number is not None
    assert sweep.trials()[0].params == {}
    monkeypatch.setattr(study, "UNOWNED_SECONDS", 0.0)
    (dead,) = sweep.reap()
    # and the next one before the point was queued again
    monkeypatch.setattr(study.Sweep, "_queue_again", lambda *_: None)
    other = sweep.claim(0)
    sweep.release(other, "dead")
    monkeypatch.undo()
    again = create(journal, 3, plan)
    executor.work(again, objective_of_dropout, 1)
    assert sorted(point["model.dropout"] for point in points(again)) == [0.1, 0.2, 0.3]
    assert dead.number == 0


def test_a_grid_is_queued_with_one_look_at_the_trials_and_nearly_equal_points_are_two(journal, monkeypatch):
    space = {
        "model.dropout": {"choices": [0.1, 0.1 + 1e-9]},
        "augment.policy": {"choices": ["none", "light"]},
        "model.freeze": {"choices": ["none", 1, 2]},
    }
    plan = replace(PLAN, search=space, sampler="grid")
    sweep = study.create(journal, "one", plan, 100, maximize=True)
    looks = []
    get_trials = optuna.Study.get_trials
    monkeypatch.setattr(
        optuna.Study, "get_trials", lambda *given, **named: looks.append(1) or get_trials(*given, **named)
    )
    sweep.begin(100)
    assert len(looks) == 1
    assert sweep.total == len(sweep.trials()) == 12
    for _ in range(3):
        trial = sweep.claim(0)
        sweep.end(trial, TrialResult("complete", 0.5))
    assert len(create(journal, 100, plan).trials()) == 12


def test_a_queued_point_that_was_one_too_many_is_not_lost_with_its_worker(journal, monkeypatch):
    plan = replace(PLAN, search={"model.dropout": {"choices": [0.1, 0.2, 0.3]}}, sampler="grid")
    sweep = create(journal, 3, plan)
    monkeypatch.setattr(study.Sweep, "_fits", lambda *_: False)
    monkeypatch.setattr(study.Sweep, "_queue_again", lambda *_: None)  # killed before it
    assert sweep.claim(0) is None
    monkeypatch.undo()
    again = create(journal, 3, plan)
    executor.work(again, objective_of_dropout, 1)
    assert sorted(point["model.dropout"] for point in points(again)) == [0.1, 0.2, 0.3]


def test_a_trial_that_ended_while_it_was_taken_for_dead_counts_and_is_not_repeated(journal):
    sweep, other = create(journal, 3), study.join(journal, "one")
    for number, state in enumerate(("complete", "pruned")):
        trial = sweep.claim(0)
        other.study._storage.set_trial_user_attr(trial._trial_id, "ended", "dead")  # and before it is closed:
        sweep.end(trial, TrialResult(state, 0.5))
        assert not other.release(trial, "dead")
        assert len(points(sweep)) == number + 1
    assert [trial.state for trial in create(journal, 3).trials()] == [TrialState.COMPLETE, TrialState.PRUNED]


def objective_of_dropout(trial: optuna.Trial, slot: int, stop: object) -> TrialResult:
    return TrialResult("complete", trial.params["model.dropout"])


@pytest.mark.parametrize(("sampler", "pruner"), [("random", "hyperband"), ("tpe", "none")])
def test_the_other_samplers_and_pruners(journal, sampler, pruner):
    sweep = create(journal, 12, replace(PLAN, sampler=sampler, pruner=pruner))

    def with_epochs(trial: optuna.Trial, slot: int, stop: object) -> TrialResult:
        for epoch in range(1, 16):
            trial.report(-trial.number + epoch / 100, epoch)
            if sweep.should_prune(trial):
                return TrialResult("pruned")
        return objective(trial)

    executor.work(sweep, with_epochs, 2)
    pruned = sum(trial.state == TrialState.PRUNED for trial in sweep.trials())
    assert (pruned > 0) == (pruner == "hyperband")
    assert len(points(sweep)) == 12


# ----------------------------------------------------------------------------------------------------------------- which study


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"search": {**SEARCH, "model.dropout": {"low": 0.0, "high": 0.9}}}, ["'high': 0.5", "'high': 0.9"]),
        ({"search": {"model.dropout": SEARCH["model.dropout"]}}, ["search model.optimizer.lr", "requested is None"]),
        ({"split_hash": "other"}, ["split_hash: the study has 'split', requested is 'other'"]),
        ({"index_hash": "other"}, ["index_hash"]),
        ({"images": "6 to train on"}, ["images: the study has '7 to train on', requested is '6 to train on'"]),
        ({"experiment": "resnet50"}, ["name: the study has 'densenet169_undersample', requested is 'resnet50'"]),
        ({"flags": {"seed": 4}}, ["seed: the study has 3, requested is 4"]),
        ({"flags": {"seed": 3, "data.split": "70:30"}}, ["data.split: the study has '80:20', requested is '70:30'"]),
        ({"sampler": "random"}, ["sampler: the study has 'tpe', requested is 'random'"]),
    ],
)
def test_another_sweep_under_the_same_name_is_refused(journal, change, said):
    create(journal, 3)
    with pytest.raises(ConfigError) as caught:
        create(journal, 3, replace(PLAN, **change))
    for text in said:
        assert text in str(caught.value)


def test_a_study_that_does_not_know_its_images_goes_on(journal):
    create(journal, 3, replace(PLAN, images=""))
    create(journal, 3)


def test_where_data_lie_is_no_part_of_a_sweep(journal, tmp_path):
    create(journal, 3)
    create(journal, 3, replace(PLAN, flags={"seed": 3, "data.root": str(tmp_path)}))


def test_a_study_that_is_not_ours_is_refused(journal):
    optuna.create_study(study_name="one", storage=storage.open_storage(journal))
    with pytest.raises(ConfigError, match="not from skincancer"):
        create(journal, 3)


def test_a_worker_waits_for_its_study_and_says_which_there_are(journal):
    create(journal, 3, name="other")
    messages: list[str] = []
    with pytest.raises(RunError, match=r"the study one has not been started .*\(existing studies: other\)"):
        study.join(journal, "one", wait_seconds=0.2, say=messages.append)
    assert len(messages) == 1
    assert "waiting up to" in messages[0]
    timer = threading.Timer(1.0, create, (journal, 3))
    timer.start()
    assert study.join(journal, "one", wait_seconds=60).total == 3
    timer.join()


# --------------------------------------------------------------------------------------------------------------- many processes

FOLDERS = [str(folder) for folder in Path(__file__).parents[:2]]
WORKER = """
import sys, time
sys.path[:0] = {tests!r}
from test_study import objective
from skincancer.sweeps import executor, study
sweep = study.join({url!r}, "one")
def run(trial, slot, stop):
    time.sleep(0.02)
    return objective(trial)
print("joined", flush=True)
executor.work(sweep, run, 2)
"""


def start_worker(url: str) -> subprocess.Popen[bytes]:
    code = WORKER.format(tests=FOLDERS, url=url)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


@pytest.mark.slow
def test_many_workers_have_the_total_and_no_trial_twice(url):
    sweep = create(url, 30)
    workers = [start_worker(url) for _ in range(3)]
    for worker in workers:
        assert worker.stdout.readline() == b"joined\n"
    while sum(trial.state.is_finished() for trial in sweep.trials()) < 5:
        time.sleep(0.02)
    workers[0].kill()
    assert [worker.wait(300) for worker in workers] == [-signal.SIGKILL, 0, 0]
    found = sweep.trials()
    assert sum(trial.state == TrialState.COMPLETE for trial in found) == 30
    assert not any(trial.state == TrialState.RUNNING for trial in found)
    kept = Counter(tuple(point.values()) for point in points(sweep))
    assert max(kept.values()) == 1, "none twice"
    # one that was killed while its point was drawn has a part of it
    for dead in (trial for trial in found if trial.user_attrs.get("ended") == "dead" and len(trial.params) == 2):
        assert kept[tuple(dead.params.values())] == 1, "repeated by another"


CLAIM = """
import os, signal, sys
from skincancer.sweeps import study
sweep = study.join({url!r}, "one")
trial = sweep.claim(0)
print(trial.number, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_trial_of_a_dead_worker_is_marked_and_repeated(url):
    sweep = create(url, 3)
    done = subprocess.run([sys.executable, "-c", CLAIM.format(url=url)], stdout=subprocess.PIPE, timeout=120)
    assert done.returncode == -signal.SIGKILL
    number = int(done.stdout)
    point = sweep.trials()[number].params
    executor.work(sweep, objective, 1)
    found = sweep.trials()
    assert found[number].state == TrialState.FAIL
    assert found[number].user_attrs["ended"] == "dead"
    assert [trial.params for trial in found if trial.state == TrialState.COMPLETE].count(point) == 1
    assert len(points(sweep)) == 3


@pytest.fixture
def sqlite_of_two(tmp_path: Path, monkeypatch) -> tuple[study.Sweep, study.Sweep]:
    """Two workers of one SQLite file, slow between the look at a trial's state and its change."""
    url = f"sqlite:///{tmp_path}/one.db"
    sweeps = create(url, 4), study.join(url, "one")
    check = RDBStorage.check_trial_is_updatable

    def slow(self: RDBStorage, trial_id: int, state: TrialState) -> None:
        check(self, trial_id, state)
        time.sleep(0.5)

    monkeypatch.setattr(RDBStorage, "check_trial_is_updatable", slow)
    return sweeps


def test_two_workers_on_sqlite_close_a_dead_ones_trial_once(sqlite_of_two):
    lost = sqlite_of_two[0].claim(0)
    with ThreadPoolExecutor() as both:
        closed = list(both.map(lambda sweep: sweep.release(lost, "dead"), sqlite_of_two))
    assert sorted(closed) == [False, True]
    assert sum(trial.state == TrialState.WAITING for trial in sqlite_of_two[0].trials()) == 1


def test_two_workers_on_sqlite_do_not_take_the_same_queued_point(sqlite_of_two):
    sweep = sqlite_of_two[0]
    assert sweep.release(sweep.claim(0), "dead")
    with ThreadPoolExecutor() as both:
        taken = list(both.map(lambda sweep: sweep.study._pop_waiting_trial_id(), sqlite_of_two))
    assert taken.count(None) == 1


def test_a_point_that_is_queued_again_twice_is_repeated_once(journal):
    sweep = create(journal, 4)
    lost = sweep.claim(0)
    assert sweep.release(lost, "dead")
    (dead,) = (trial for trial in sweep.trials() if trial.number == lost.number)
    sweep._queue_again(dead)  # as by a sweep that began again between the two steps of the first
    executor.work(sweep, objective, 1)
    kept = [tuple(point.values()) for point in points(sweep)]
    assert len(kept) == len(set(kept)) == 4
    assert kept.count(tuple(lost.params.values())) == 1
    assert not any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in sweep.trials())


def test_a_worker_of_another_machine_is_dead_when_it_has_been_silent(journal, monkeypatch):
    sweep = create(journal, 3)
    trial = sweep.claim(0)
    trial.set_user_attr("owner", {"host": "elsewhere", "boot_id": "another", "pid": "1", "process_start": "1"})
    assert sweep.reap() == [], "it has just begun"
    sweep.beat(trial)
    assert sweep.reap() == []
    monkeypatch.setattr(study, "SILENT_SECONDS", -1.0)
    assert [dead.number for dead in sweep.reap()] == [trial.number]
    sweep.end(trial, TrialResult("complete", 1.0))
    assert sweep.trials()[trial.number].state == TrialState.FAIL, "what it says afterwards is not taken"


# -------------------------------------------------------------------------------------------------------------------- storages


def test_the_default_and_relative_files_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.storage_url(None, Path("a.journal")) == f"journal://{tmp_path}/a.journal"
    assert storage.storage_url("journal://b.journal", Path("a")) == f"journal://{tmp_path}/b.journal"
    assert storage.storage_url("sqlite:///c.db", Path("a")) == f"sqlite:///{tmp_path}/c.db"


def test_no_url_is_reported_without_repeating_it():
    for url in ("nonsense", "postgresql://user:s3cr3t@host:port/x"):
        with pytest.raises(RunError) as caught:
            storage.storage_url(url, Path("a"))
        assert "is not a URL" in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


def test_a_servers_password_is_hidden(server):
    url = postgres.new_database(server)
    assert credentials.mask_password(url).count("***") == 1
    for secret in (postgres.PASSWORD, quote(postgres.PASSWORD, safe="")):
        assert secret not in credentials.mask_password(url)
    assert "hunter2" not in credentials.mask_password("postgresql+psycopg://host/x?password=hunter2")
    wrong = url.replace(quote(postgres.PASSWORD, safe=""), "hunter2")
    with pytest.raises(RunError, match="password authentication failed") as caught:
        storage.open_storage(wrong)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_rejected(server, encoding):
    import psycopg

    with psycopg.connect(postgres.url(server, "postgres"), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {encoding} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        )
    url = storage.storage_url(postgres.url(server, encoding.lower()), Path("a"))
    with pytest.raises(
        RunError, match=f"has the encoding {encoding}; expected UTF8. Create a database with `createdb "
    ) as caught:
        storage.open_storage(url)
    assert postgres.PASSWORD not in str(caught.value)
    with psycopg.connect(postgres.url(server, encoding.lower())) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()[0] == 0


def test_a_server_without_rights_to_write(server):
    import psycopg

    url = postgres.new_database(server)
    with psycopg.connect(postgres.url(server, "postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE reader LOGIN PASSWORD 'hunter2'")
    name = quote(postgres.PASSWORD, safe="")
    with pytest.raises(RunError, match=r"permission denied for schema public") as caught:
        storage.open_storage(url.replace(f"{postgres.USER}:{name}", "reader:hunter2"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        "postgresql+psycopg://me:s3cr3t@127.0.0.1:1/none",
        "sqlite:////proc/none/one.db",
        "journal:///proc/none/one.journal",
    ],
)
def test_a_storage_that_cannot_be_used(given):
    with pytest.raises(RunError, match=r"the storage .* cannot be used") as caught:
        storage.open_storage(given)
    assert "s3cr3t" not in str(caught.value)


def test_a_storage_that_is_lost_on_the_way_is_reported_without_the_password(journal, monkeypatch):
    sweep = create(journal, 3)
    sweep.url = "postgresql+psycopg://me:s3cr3t@db/sweeps"

    def lost(**_: object) -> None:
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection, password s3cr3t"))

    monkeypatch.setattr(sweep.study, "get_trials", lost)
    for use in (sweep.trials, sweep.is_over, lambda: sweep.begin(4), lambda: executor.work(sweep, objective, 1)):
        with pytest.raises(RunError, match="cannot be used: server closed the connection") as caught:
            use()
        assert "s3cr3t" not in str(caught.value)


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    path = tmp_path / "thesis.txt"
    for words in (b"precious words, and no newline", b"\xff\xfe\x00binary", b'{"a": 1}\n{"b":'):
        path.write_bytes(words)
        with pytest.raises(RunError, match="is not an Optuna journal"):
            storage.open_storage(f"journal://{path}")
        assert path.read_bytes() == words


def test_workers_that_start_together_on_an_empty_database(tmp_path, server):
    for place in (f"sqlite:///{tmp_path}/new.db", postgres.new_database(server)):
        code = (
            "import sys; from skincancer.sweeps.storage import open_storage; open_storage(sys.argv[1]); print('opened')"
        )
        workers = [subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE) for _ in range(4)]
        assert [worker.communicate(timeout=120)[0] for worker in workers] == [b"opened\n"] * 4


def test_a_half_written_line_is_cut_off(journal, tmp_path):
    sweep = create(journal, 4)
    executor.work(sweep, objective, 1, deadline=time.monotonic() + 0.01)
    path = tmp_path / "one.journal"
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"op_code":6,"wor')
    again = create(journal, 4)
    executor.work(again, objective, 1)
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(points(create(journal, 4))) == 4


def test_a_writer_whose_lock_was_taken_while_it_stood_still_loses_nothing_of_others(journal, tmp_path, monkeypatch):
    path = tmp_path / "one.journal"
    slow, other = storage.WholeJournal(path), storage.WholeJournal(path)
    slow.append_logs([{"op_code": 0}])
    path.write_bytes(path.read_bytes() + b'{"half')
    find_end = storage._end_of_whole_lines

    def stand_still(file: object) -> int:
        end = find_end(file)
        monkeypatch.setattr(storage, "_end_of_whole_lines", find_end)
        other._own_lock.release()  # as after half a minute
        other.append_logs([{"op_code": 1}, {"op_code": 2}])
        other._own_lock.acquire()  # and is about to write more
        return end

    monkeypatch.setattr(storage, "_end_of_whole_lines", stand_still)
    slow.append_logs([{"op_code": 3}])
    assert [json.loads(line)["op_code"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]
    assert other._own_lock._held == other._own_lock._identity(), "its lock is not released by who has lost it"
    other._own_lock.release()
    assert sorted(os.listdir(tmp_path)) == ["one.journal"]


def test_the_database_of_another_program_is_left_alone(tmp_path):
    uri = make_store(tmp_path / "mlruns")
    before = (tmp_path / "mlruns/mlflow.db").read_bytes()
    with pytest.raises(RunError, match=r"is the database of another program .* nothing was changed"):
        storage.open_storage(uri)
    assert (tmp_path / "mlruns/mlflow.db").read_bytes() == before


def test_a_database_of_another_version_of_optuna_is_reported(tmp_path):
    url = f"sqlite:///{tmp_path}/one.db"
    create(url, 3)
    with sqlite3.connect(tmp_path / "one.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v99'")
    with pytest.raises(RunError, match="is of another version of Optuna"):
        storage.open_storage(url)


READ_ONLY = """
import os, sys
sys.path[:0] = {tests!r}
from test_study import PLAN, create
from skincancer.errors import RunError
create({url!r}, 3)
for name in os.listdir({folder!r}):
    os.chmod(os.path.join({folder!r}, name), 0o444)
os.chmod({folder!r}, 0o555)
if os.geteuid() == 0:
    os.seteuid(65534)  # root may write whatever it says
try:
    create({url!r}, 4)
except RunError as error:
    print(error)
if os.getuid() == 0:
    os.seteuid(0)
os.chmod({folder!r}, 0o755)
"""


@pytest.mark.parametrize("name", ["one.journal", "one.db"])
def test_a_file_that_can_be_read_and_not_written(name):
    folder = Path(tempfile.mkdtemp(prefix="skincancer-read-only-"))  # tmp_path is for one user alone
    folder.chmod(0o755)
    url = f"{'sqlite:///' if name == 'one.db' else 'journal://'}{folder}/{name}"
    code = READ_ONLY.format(tests=FOLDERS, url=url, folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    shutil.rmtree(folder)
    assert f"the storage {url} cannot be used: " in done.stdout, done.stderr
    assert "Permission denied" in done.stdout or "readonly database" in done.stdout


FULL = """
import resource, sys
sys.path[:0] = {tests!r}
from test_study import create, objective
from skincancer.sweeps import executor
from skincancer.errors import RunError
sweep = create({url!r}, 500)
size = {path!r}
import os
resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(size) + 5000, resource.RLIM_INFINITY))
try:
    executor.work(sweep, objective, 2)
except RunError as error:
    print(error)
"""


def test_a_full_disk_stops_the_sweep_and_loses_nothing(journal, tmp_path, monkeypatch):
    code = FULL.format(tests=FOLDERS, url=journal, path=str(tmp_path / "one.journal"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "cannot be used" in done.stdout, done.stderr
    assert "File too large" in done.stdout or "No space left" in done.stdout
    monkeypatch.setattr(study, "UNOWNED_SECONDS", 0.0)  # a trial may have been asked for and not been signed
    sweep = create(journal, 500)
    ended = sum(trial.state == TrialState.COMPLETE for trial in sweep.trials())
    assert ended > 1
    again = create(journal, ended + 2)
    executor.work(again, objective, 1)
    assert len(points(again)) == ended + 2
