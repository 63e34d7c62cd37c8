"""What a sweep shows while it runs: the live table, and how much time is left."""

from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from skincancer.engines.orders import Result
from skincancer.runs.store import RunStore
from skincancer.sweeps import report, study
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.report import SweepRecord, own_folder
from skincancer.sweeps.trial_state import THREADS

DROPOUT = optuna.distributions.FloatDistribution(0.0, 0.5)


@pytest.fixture
def record(tmp_path: Path) -> SweepRecord:
    content = {"task": "classification", "trainer": {"max_epochs": 9}}
    plan = Plan("x", content, {}, {"model.dropout": {"low": 0.0, "high": 0.5}}, "tpe", "none", "", "")
    sweep = study.create(f"journal://{tmp_path}/one.journal", "one", plan, 8, maximize=True)
    sweep.begin(8)
    data = SimpleNamespace(entry=SimpleNamespace(synthetic=True))
    return SweepRecord(sweep, "one", data, Console(), {}, RunStore(f"sqlite:///{tmp_path}/mlflow.db"))


def drawn(record: SweepRecord, seconds: float = 3671.0) -> list[list[str]]:
    """The words of each row of the live table."""
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(record.table(record.sweep.trials(), seconds))
    lines = [line for line in capture.get().splitlines() if "│" in line or "┃" in line]
    return [[cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")] for line in lines]


def test_the_live_table_of_a_sweep_that_has_just_begun(record):
    head, row = drawn(record)
    assert head == ["trials", "running", "pruned", "failed", "best/balanced_accuracy", "elapsed", "time left"]
    assert row == ["0 of 8", "0", "0", "0", "–", "1:01:11", "–"]


def test_the_live_table_counts_what_counts_and_shows_what_runs(record):
    sweep = record.sweep
    for ended in (
        Result("complete", 0.51),
        Result("complete", 0.625),
        Result("pruned"),
        Result("failed", reason="no memory"),
    ):
        sweep.end(sweep.ask(), ended)
    interrupted = sweep.ask()
    sweep.end(interrupted, Result("interrupted"))
    running, waiting = sweep.ask(), sweep.ask()
    running.set_user_attr("place", "node2, GPU 1")
    running.report(0.4, 1)
    running.report(0.5, 2)
    _, row, first, second = drawn(record)
    assert row[:5] == ["4 of 8", "2", "1", "1", "0.6250 (trial 1)"]
    assert row[-1] == "0:00:00"
    assert first[:2] == [f"trial {running.number}", "epoch 2/9, 0.5000"]
    assert first[2] == "node2, GPU 1"
    assert first[4] == f"model.dropout {running.params['model.dropout']:.4g}"
    assert running.params == interrupted.params, "repeated"
    assert second[:2] == [f"trial {waiting.number}", "epoch 0/9"]


def trial(number: int, state: TrialState, took: float | None, began: float = 0.0, ended: str = "") -> FrozenTrial:
    """A trial that began so many seconds before now, or that took so long."""
    start = datetime.now() - timedelta(seconds=began)
    end = None if took is None else start + timedelta(seconds=took)
    value = 0.5 if state == TrialState.COMPLETE else None
    return FrozenTrial(
        number,
        state,
        value,
        start,
        end,
        {"model.dropout": 0.1},
        {"model.dropout": DROPOUT},
        {"ended": ended},
        {},
        {},
        number,
    )


@pytest.mark.parametrize(
    ("trials", "left", "workers", "seconds"),
    [
        ([], 5, 1, None),
        ([(0, TrialState.RUNNING, None, 7)], 5, 1, None),
        ([(0, TrialState.COMPLETE, 60), (1, TrialState.FAIL, 20)], 5, 1, 200),
        ([(0, TrialState.COMPLETE, 60), (1, TrialState.PRUNED, 20)], 5, 2, 100),
        # one that does not count says nothing of how long those that do take
        ([(0, TrialState.COMPLETE, 60), (1, TrialState.FAIL, 1, 0, "dead")], 2, 1, 120),
        # a quarter of a trial is done; and one that takes longer than others is nearly so
        ([(0, TrialState.COMPLETE, 60), (1, TrialState.RUNNING, None, 15)], 2, 1, 105),
        ([(0, TrialState.COMPLETE, 60), (1, TrialState.RUNNING, None, 500)], 2, 1, 60),
        ([(0, TrialState.COMPLETE, 60)], 0, 1, 0),
    ],
)  # fmt: skip
def test_the_time_left_follows_from_how_long_trials_took(trials, left, workers, seconds):
    found = report._seconds_left([trial(*given) for given in trials], left, workers)
    assert found is None if seconds is None else found == pytest.approx(seconds, abs=5)


def test_the_file_of_the_best_trial_says_how_to_repeat_it(record):
    sweep = record.sweep
    for threads in (3, None):
        claimed = sweep.ask()
        if threads:
            claimed.set_user_attr(THREADS, threads)
        sweep.end(claimed, Result("complete", 0.5))
    first, second = (record.best_yaml(found).splitlines()[0] for found in sweep.trials())
    assert first == "# repeat this trial with: OMP_NUM_THREADS=3 python -m skincancer.fit --experiment best.yaml"
    assert second == "# repeat this trial with: python -m skincancer.fit --experiment best.yaml"


def test_two_sweeps_of_the_same_name_in_two_storages_have_a_folder_each(tmp_path):
    folder = tmp_path / "sweeps/one"
    first, second = "1234567890abcdef", "abcdef1234567890"
    assert own_folder(folder, None) == folder
    for _ in range(2):
        assert own_folder(folder, first) == folder
        assert own_folder(folder, second) == tmp_path / "sweeps/one-abcdef12"
