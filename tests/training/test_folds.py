"""All folds of a split by one command."""

import pytest
import yaml
from stub_engine import StubEngine

from skincancer import fit
from skincancer.engines import run_orders
from skincancer.engines.orders import Order, Result, RunCreated

FLAGS = ["--experiment=densenet169_undersample", "--data.split=fold:*/3", "--data.size=48", "--model.weights=none"]


def test_every_fold_is_an_order_and_the_command_that_pools_them_is_printed(store, monkeypatch, capsys):
    orders: list[Order] = []

    def work(order: Order):
        orders.append(order)
        yield RunCreated(order.number, f"run{order.number}")
        return Result("complete")

    monkeypatch.setattr(run_orders, "make_engine", lambda *_: StubEngine(work, workers=2))
    assert fit.main([*FLAGS, f"--tracking.uri={store}", "--seed=4"]) == 0
    contents = [yaml.safe_load(order.config) for order in orders]
    assert [content["data"]["split"] for content in contents] == ["fold:0/3", "fold:1/3", "fold:2/3"]
    assert {(content["data"]["size"], content["seed"]) for content in contents} == {(48, 4)}
    # The store may have a password, which a file does not contain. The engine passes the store in the environment.
    assert {content["tracking"]["uri"] for content in contents} == {None}
    printed = " ".join(capsys.readouterr().out.split())
    assert "densenet169_undersample fold:2/3: run run2 finished after" in printed
    assert (
        "skincancer.compare --experiments densenet169_undersample --splits 'fold:*/3' --dataset demo --seeds 4"
        in printed
    )
    assert "--data.size=48" in printed


def test_a_fold_that_fails_is_reported_after_the_others(store, monkeypatch, capsys):
    def work(order: Order) -> Result:
        return Result("failed", reason="exit code 1: no space left") if order.number == 1 else Result("complete")

    monkeypatch.setattr(run_orders, "make_engine", lambda *_: StubEngine(work))
    assert fit.main(FLAGS) == 1
    said = capsys.readouterr().err
    assert "1 of 3 folds failed" in said
    assert "densenet169_undersample fold:1/3: exit code 1: no space left" in said


@pytest.mark.slow
def test_folds_train_at_the_same_time(store, tiny_demo, capsys):
    from conftest import TINY_FIT, all_runs

    flags = ["--experiment=densenet169_undersample", *TINY_FIT, f"--data.root={tiny_demo}", "--data.split=fold:*/2"]
    assert fit.main([*flags, "--workers=2"]) == 0
    assert sorted((run.data.params["split"], run.info.status) for run in all_runs()) == [
        ("fold:0/2", "FINISHED"),
        ("fold:1/2", "FINISHED"),
    ]
