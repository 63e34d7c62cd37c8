"""A sweep's study: draws, which trials count, which are repeated, and which study is refused."""

import math
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from stub_engine import epochs, run_trials

from skincancer.engines.orders import Epoch, Lost, Order, Refused, Result, RunCreated, Started
from skincancer.errors import ConfigError, RunError
from skincancer.sweeps import storage, study
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.trial_state import counts_towards_total
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


def objective(order: Order) -> Result:
    return Result(
        "complete", -((math.log10(order.params["model.optimizer.lr"]) + 3) ** 2) - order.params["model.dropout"]
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


# ---------------------------------------------------------------------------------------------------------- draws and repetition


def test_draws_are_a_function_of_the_seed(tmp_path):
    drawn = []
    for number, plan in enumerate((PLAN, PLAN, replace(PLAN, flags={"seed": 4}))):
        sweep = create(f"journal://{tmp_path}/{number}.journal", 14, plan)
        run_trials(sweep, objective)
        drawn.append(points(sweep))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert len({tuple(point.values()) for point in drawn[0]}) == 14, "none is drawn twice"


def test_a_stopped_sweep_that_goes_on_has_the_trials_of_one_that_was_not(tmp_path):
    whole = create(f"journal://{tmp_path}/whole.journal", 14)
    run_trials(whole, objective)
    stopped = f"journal://{tmp_path}/stopped.journal"

    def stopping(order: Order) -> Result:
        if order.number == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(order)

    sweep = create(stopped, 14)
    with signals_as_interrupts(), pytest.raises(Interrupted):
        run_trials(sweep, stopping)
    assert Counter(trial.state for trial in sweep.trials()) == {
        TrialState.COMPLETE: 11,
        TrialState.FAIL: 1,
        TrialState.WAITING: 1,
    }
    again = create(stopped, 14)
    run_trials(again, objective)
    assert points(again) == points(whole)
    assert len(again.trials()) == 15
    assert again.best().params == whole.best().params


def test_trials_at_the_same_time_have_different_points(journal):
    sweep = create(journal, 12)
    run_trials(sweep, lambda order: epochs(order, [0.5, 0.5], 0.5), workers=4)
    assert len({tuple(point.values()) for point in points(sweep)}) == 12


def test_points_stay_different_after_interrupted_trials(journal):
    sweep = create(journal, 12)
    first, second, third = sweep.ask(), sweep.ask(), sweep.ask()
    sweep.end(second, Result("complete", 0.1))
    sweep.end(first, Result("interrupted"))
    sweep.end(third, Result("interrupted"))
    run_trials(sweep, lambda order: epochs(order, [0.5], 0.5), workers=3)
    found = [tuple(point.values()) for point in points(sweep)]
    assert len(found) == len(set(found)) == 12
    assert {tuple(trial.params.values()) for trial in (first, third)} <= set(found), "repeated"


# ------------------------------------------------------------------------------------------------------------ which trials count


def test_failed_trials_count_and_say_why(journal):
    sweep = create(journal, 6)

    def some_fail(order: Order) -> Result:
        if order.number in (1, 2):
            return Result("failed", reason="out of memory")
        return Result("complete", math.nan) if order.number == 3 else objective(order)

    run_trials(sweep, some_fail)
    state = [trial.state.name for trial in sweep.trials()]
    assert state == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert sweep.trials()[1].user_attrs["reason"] == "out of memory"
    assert sweep.trials()[3].user_attrs["reason"] == "its objective is nan"


def test_a_sweep_in_which_everything_fails_stops_early_and_can_go_on(journal):
    sweep = create(journal, 40)
    with pytest.raises(RunError, match="the last 3 trials all failed, the last one with: no CUDA"):
        run_trials(sweep, lambda order: Result("failed", reason="no CUDA"))
    assert len(sweep.trials()) == study.FIRST_FAILURES
    run_trials(create(journal, 5), objective)
    assert len(points(sweep)) == 5


def test_a_sweep_of_two_trials_that_both_fail_is_no_success(journal):
    with pytest.raises(RunError, match="the last 2 trials all failed, the last one with: no CUDA"):
        run_trials(create(journal, 2), lambda order: Result("failed", reason="no CUDA"))


def test_a_sweep_in_which_nothing_succeeds_any_more_stops(journal):
    sweep = create(journal, 40)

    def disk_full_after_two(order: Order) -> Result:
        return objective(order) if order.number < 2 else Result("failed", reason="no space left")

    with pytest.raises(RunError, match="the last 10 trials all failed, the last one with: no space left"):
        run_trials(sweep, disk_full_after_two)
    assert len(sweep.trials()) == 12


def test_a_total_below_what_is_done_is_refused(journal):
    run_trials(create(journal, 3), objective)
    with pytest.raises(ConfigError, match=r"--trials is 2, but 3 trials"):
        create(journal, 2)
    sweep = create(journal, 3)
    run_trials(sweep, lambda order: pytest.fail("nothing is left to do"))
    run_trials(create(journal, 5), objective)
    assert len(points(sweep)) == 5


def test_pruning_is_by_the_median_of_the_same_epoch(journal):
    sweep = create(journal, 8)

    def with_epochs(order: Order):
        level = 0.2 if order.number == 6 else 0.5
        return epochs(order, [level + epoch / 100 for epoch in range(1, 21)], level)

    plan_epochs = sweep.base.trainer.max_epochs
    run_trials(sweep, with_epochs)
    (pruned,) = [trial for trial in sweep.trials() if trial.state == TrialState.PRUNED]
    assert pruned.number == 6
    assert max(pruned.intermediate_values) == plan_epochs // 4, "at the end of a quarter of the epochs"


def test_the_deadline_starts_no_more(journal):
    sweep = create(journal, 5)
    run_trials(sweep, objective, deadline=time.monotonic() - 1)
    assert sweep.trials() == []


def test_a_grid_has_each_point_once(journal):
    space = {
        "model.dropout": {"low": 0.0, "high": 0.5, "step": 0.25},
        "model.optimizer.lr": {"choices": [1e-4, 1e-3]},
    }
    plan = replace(PLAN, search=space, sampler="grid")
    sweep = create(journal, 100, plan)
    assert sweep.total == 6
    run_trials(sweep, objective, 2)
    assert Counter(tuple(point.values()) for point in points(sweep)).most_common(1)[0][1] == 1
    assert len(points(sweep)) == 6
    assert create(journal, 100, plan).total == 6
    assert len(sweep.trials()) == 6, "a second start adds none"


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
        sweep.end(sweep.ask(), Result("complete", 0.5))
    assert len(create(journal, 100, plan).trials()) == 12


@pytest.mark.parametrize(("sampler", "pruner"), [("random", "hyperband"), ("tpe", "none")])
def test_the_other_samplers_and_pruners(journal, sampler, pruner):
    sweep = create(journal, 12, replace(PLAN, sampler=sampler, pruner=pruner))

    def with_epochs(order: Order):
        return epochs(order, [-order.number + epoch / 100 for epoch in range(1, 16)], objective(order).value)

    run_trials(sweep, with_epochs, 2)
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


# -------------------------------------------------------------------------------------------------------- drivers and machines that die


def test_the_trials_of_a_dead_driver_are_closed_and_repeated(journal):
    lost = create(journal, 3).ask()
    sweep = study.create(journal, "one", PLAN, 3, maximize=True)
    assert [trial.number for trial in sweep.begin(3)] == [lost.number]
    run_trials(sweep, objective)
    found = sweep.trials()
    assert found[lost.number].state == TrialState.FAIL
    assert found[lost.number].user_attrs["ended"] == "dead"
    assert [trial.params for trial in found if trial.state == TrialState.COMPLETE].count(lost.params) == 1
    assert len(points(sweep)) == 3


def test_a_point_of_a_grid_survives_its_driver_at_every_moment(journal, monkeypatch):
    plan = replace(PLAN, search={"model.dropout": {"choices": [0.1, 0.2, 0.3]}}, sampler="grid")
    sweep = create(journal, 3, plan)
    # killed after the point was taken from the queue, and before it was drawn
    assert sweep.study._pop_waiting_trial_id() is not None
    assert sweep.trials()[0].params == {}
    # and the next driver between closing a trial and queueing it again
    monkeypatch.setattr(study.Sweep, "_queue_again", lambda *_: None)
    sweep.end(sweep.ask(), Result("interrupted"))
    monkeypatch.undo()
    again = create(journal, 3, plan)
    run_trials(again, lambda order: Result("complete", order.params["model.dropout"]))
    assert sorted(point["model.dropout"] for point in points(again)) == [0.1, 0.2, 0.3]


def test_a_lost_trial_reports_each_epoch_once_and_is_the_same_trial(journal, capsys):
    sweep = create(journal, 1)

    def dies_once(order: Order):
        yield Started(order.number, "node1, GPU 0")
        yield RunCreated(order.number, "first")
        yield Epoch(order.number, 1, 0.1, last=False)
        yield Epoch(order.number, 2, 0.2, last=False)
        yield Lost(order.number, "node1")
        yield Started(order.number, "node2, GPU 1")
        yield RunCreated(order.number, "second")
        for epoch, value in ((1, 0.7), (2, 0.8), (3, 0.9)):
            assert not (yield Epoch(order.number, epoch, value, last=epoch == 3))
        return Result("complete", 0.9)

    run_trials(sweep, dies_once)
    (trial,) = sweep.trials()
    assert trial.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.9}
    assert (trial.value, trial.user_attrs["run_id"], trial.user_attrs["place"]) == (0.9, "second", "node2, GPU 1")
    assert "trial 0: node1 died or is unreachable; the trial starts again" in capsys.readouterr().out


def test_a_refused_machine_is_named(journal, capsys):
    def with_refusal(order: Order):
        yield Refused("node2", "its index_hash is 1; expected 2. Use the same data.")
        return objective(order)

    run_trials(create(journal, 1), with_refusal)
    assert "node2 gets no trials: its index_hash is 1; expected 2. Use the same data." in capsys.readouterr().out


def test_a_signal_between_events_loses_no_result(journal, monkeypatch):
    """The results of two trials arrive together, and the signal comes while the first one is recorded."""
    sweep = create(journal, 4)
    end = study.Sweep.end

    def signalled(self: study.Sweep, trial: optuna.Trial, result: Result) -> None:
        if trial.number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        end(self, trial, result)

    monkeypatch.setattr(study.Sweep, "end", signalled)
    with signals_as_interrupts(), pytest.raises(Interrupted):
        run_trials(sweep, objective, workers=2)
    assert [trial.state.name for trial in sweep.trials()] == ["COMPLETE", "COMPLETE"]
