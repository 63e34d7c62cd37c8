"""Sweeps on a Ray cluster of several machines, and what happens when machines, networks, drivers and trials fail."""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import machines
import mlflow
import optuna
import psutil
import pytest
from conftest import TINY_FIT, TINY_LESIONS, all_runs, copy_demo
from machines import Cluster, Command, Machine, wait_until

from skincancer import fit
from skincancer.data.readers import demo
from skincancer.runs.store import connect
from skincancer.sweeps.trial_state import PLACE, counts_towards_total
from skincancer.system import paths

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(machines.missing()), reason=machines.missing()),
    pytest.mark.xdist_group("ray_cluster"),
]
pytest.importorskip("ray", reason="needs ray: pip install 'skincancer[cluster]'")

SPACE = """
task: classification
data: {dataset: csv, balance: oversample}
search:
  model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
  augment.policy: {choices: [none, light]}
"""
FAILING = """
task: classification
data: {dataset: csv}
model: {optimizer: {name: sgd}}
search:
  model.optimizer.lr: {choices: [0.001, 99.0]}
"""
TOKEN = "correct horse battery staple 0000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with the experiments and two data folders, `data` and `other`."""
    folder = tmp_path_factory.mktemp("cluster")
    for name, nevi in (("data", 8), ("other", 9)):
        demo.draw(folder / f"demo_{name}", lesions={**TINY_LESIONS, "nv": nevi})
        copy_demo(folder / f"demo_{name}", folder / name / "csv").to_csv(folder / name / "csv/index.csv", index=False)
    (folder / "tiny.yaml").write_text(SPACE)
    (folder / "failing.yaml").write_text(FAILING)
    return folder


@pytest.fixture(scope="module")
def cluster(folder, session_cache) -> Iterator[Cluster]:
    """Two machines, alpha (the head) and beta."""
    environment = {
        "SKINCANCER_DATA": str(folder / "data"), "SKINCANCER_CACHE": str(session_cache), "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }  # fmt: skip
    with machines.cluster(environment) as started:
        for name in ("alpha", "beta"):
            started.add(name)
        for machine in started.machines.values():
            wait_until(machine.joined, f"{machine.name} joins")
        yield started


@pytest.fixture
def sweep(cluster, folder, store):
    """Function that starts a sweep on the head."""

    def start(*flags: str, experiment: str = "tiny", **variables: str) -> Command:
        return cluster.head.run(
            sys.executable, "-m", "skincancer.sweep", f"--experiment={folder}/{experiment}.yaml", *TINY_FIT, "--study=one",
            f"--cluster={cluster.address}", *flags, MLFLOW_TRACKING_URI=store, **variables,
        )  # fmt: skip

    return start


def trials() -> list[optuna.trial.FrozenTrial]:
    """Return all trials of the study."""
    journal = paths.sweeps_folder(connect(None).tracking_uri) / "one.journal"
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    return optuna.load_study(study_name="one", storage=optuna.storages.JournalStorage(backend)).trials


def counted() -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in trials() if counts_towards_total(trial) and trial.state.is_finished()]


def runs(number: int | None = None) -> list[mlflow.entities.Run]:
    """Return the MLflow runs of trials, or of one trial."""
    found = [run for run in all_runs() if run.data.tags["kind"] == "trial"]
    return [run for run in found if number is None or run.data.params.get("trial") == str(number)]


def training(count: int) -> list[mlflow.entities.Run]:
    """Return the running trials that have trained an epoch, if there are so many."""
    found = [run for run in runs() if run.info.status == "RUNNING" and "train/loss" in run.data.metrics]
    return found if len(found) >= count else []


def command_line(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def order_processes(machine: Machine) -> list[int]:
    """Return the processes of orders on a machine."""
    return [pid for pid in machine.pids() if "skincancer.order_process" in command_line(pid)]


def machine_of(cluster: Cluster, run: mlflow.entities.Run) -> Machine:
    return cluster.machines[run.data.tags["host"]]


def assert_complete(total: int) -> None:
    """Assert that each counted trial has a point of its own and one MLflow run that counts, and that no run is left RUNNING."""
    ended = counted()
    assert len(ended) == total
    points = [json.dumps(trial.params, sort_keys=True) for trial in ended]
    assert len(set(points)) == total
    for trial in ended:
        states = [run.data.tags["trial_state"] for run in runs(trial.number)]
        assert states.count(trial.state.name) == 1, (trial.number, states)
        assert set(states) <= {trial.state.name, "DEAD"}
    assert "RUNNING" not in {run.info.status for run in all_runs()}
    assert "RUNNING" not in {trial.state.name for trial in trials()}


def counted_now(command: Command) -> list[optuna.trial.FrozenTrial]:
    """Return the counted trials, while the sweep may still create its study."""
    assert command.process.poll() is None, command.output
    return counted() if "study one in" in command.output else []


def test_ctrl_c_and_a_driver_that_is_killed(cluster, sweep):
    same = ("--trials=4", "--pruner=none", "--trainer.max_epochs=12")
    first = sweep(*same)
    wait_until(lambda: training(1), "a trial trains")
    first.send(signal.SIGINT)
    assert first.wait() == 130, first.output
    interrupted = trials()
    points = [trial.params for trial in interrupted if trial.state.name == "FAIL"]
    assert points
    assert not [run for run in runs() if run.info.status == "RUNNING"]
    assert {run.info.status for run in runs() if run.data.tags["trial_state"] == "INTERRUPTED"} == {"KILLED"}

    second = sweep(*same)
    killed = wait_until(lambda: training(1), "a trial trains")
    second.send(signal.SIGKILL)
    second.wait()
    wait_until(lambda: not any(map(order_processes, cluster.machines.values())), "all trials end")
    third = sweep(*same)
    assert third.wait() == 0, third.output
    ended = counted()
    assert len(ended) == 4
    assert all(any(trial.params == point for trial in ended) for point in points)
    assert {connect(None).get_run(run.info.run_id).info.status for run in killed} == {"KILLED"}
    assert "RUNNING" not in {run.info.status for run in all_runs()}
    assert not [path for machine in cluster.machines.values() for path in (machine.folder / "tmp").glob("skincancer_*")]


def test_a_trial_that_fails_counts_and_is_not_repeated(cluster, sweep):
    command = sweep("--trials=2", "--sampler=grid", experiment="failing")
    assert command.wait() == 0, command.output
    states = {trial.params["model.optimizer.lr"]: trial for trial in trials()}
    assert len(trials()) == 2
    assert states[0.001].state.name == "COMPLETE"
    failed = states[99.0]
    assert failed.state.name == "FAIL"
    (run,) = runs(failed.number)
    assert run.info.status == "FAILED"
    log = connect(None).download_artifacts(run.info.run_id, f"trial_{failed.number:04d}.log")
    assert "error: " in Path(log).read_text()
    assert log_path(failed) in failed.user_attrs["reason"]


def log_path(trial: optuna.trial.FrozenTrial) -> str:
    return str(paths.sweeps_folder(connect(None).tracking_uri) / "one" / f"trial_{trial.number:04d}.log")


def test_a_trial_whose_process_is_killed_counts_as_failed(cluster, sweep):
    command = sweep("--trials=3", "--pruner=none", "--trainer.max_epochs=12")
    run = wait_until(lambda: training(1), "a trial trains")[0]
    machine_of(cluster, run).run("kill", "-KILL", run.data.tags["pid"])
    assert command.wait() == 0, command.output
    ended = {trial.number: trial for trial in trials()}
    assert len(ended) == 3
    failed = ended[int(run.data.params["trial"])]
    assert "killed by SIGKILL" in failed.user_attrs["reason"]
    assert [trial.state.name for trial in ended.values()].count("FAIL") == 1
    assert connect(None).get_run(run.info.run_id).info.status == "FAILED"


def test_machines_that_differ_get_no_trials(cluster, sweep, folder, places):
    other = cluster.add("other", SKINCANCER_DATA=str(folder / "other"))
    apart = cluster.add("apart", hidden=places)
    foreign = cluster.add("foreign", PYTHONPATH=str(empty_package(folder)))
    for machine in (other, apart, foreign):
        wait_until(machine.joined, f"{machine.name} joins")
    command = sweep("--trials=6")
    wait_until(
        lambda: command.output.count("gets no trials") == 3 or command.process.poll() is not None, "three refusals"
    )
    assert command.wait() == 0, command.output
    lines = {line.split(" ", 1)[0]: line for line in command.output.splitlines() if "gets no trials" in line}
    assert "other gets no trials: its index_hash is " in lines["other"]
    assert "Set SKINCANCER_DATA, where `ray start` is called" in lines["other"]
    assert "apart gets no trials: its MLflow store is created at " in lines["apart"]
    assert "skincancer" in lines["foreign"]
    assert {trial.user_attrs[PLACE] for trial in trials()} <= {"alpha", "beta"}
    for machine in (other, apart, foreign):
        machine.kill()


def empty_package(folder: Path) -> Path:
    """Return a folder with an older version of the package, without engines."""
    (folder / "old" / "skincancer").mkdir(parents=True)
    (folder / "old" / "skincancer" / "__init__.py").touch()
    return folder / "old"


@pytest.mark.parametrize(
    "variables",
    [{"RAY_AUTH_TOKEN": "another token of the same length!"}, {"RAY_AUTH_MODE": "disabled"}],
    ids=["another token", "no token"],
)
def test_a_wrong_token_is_reported(sweep, variables):
    command = sweep("--trials=1", **variables)
    assert command.wait() == 1
    (line,) = command.output.splitlines()
    assert line.startswith(
        "error: --cluster 10.77.0.1:6379: the head refused this machine, which has no token or another one."
    )


def test_an_address_without_a_cluster_is_reported(sweep):
    command = sweep("--trials=1", "--cluster=10.77.0.1:6399")
    assert command.wait() == 1
    (line,) = command.output.splitlines()
    assert line.startswith("error: --cluster 10.77.0.1:6399: the cluster cannot be used: ")
    assert "Run `ray start --head`" in line


def test_twenty_trials_while_a_machine_dies_and_another_joins(cluster, sweep, folder, store, new_store, monkeypatch):
    command = sweep("--trials=20", "--pruner=none", "--trainer.max_epochs=4")
    beta = cluster.machines["beta"]
    wait_until(lambda: len(counted_now(command)) >= 3, "three trials end")
    (lost,) = wait_until(
        lambda: [run for run in training(1) if machine_of(cluster, run) is beta], "a trial trains on beta"
    )
    beta.kill()
    wait_until(lambda: "died or is unreachable" in command.output, "the loss is reported")
    gamma = cluster.add("gamma")
    assert command.wait() == 0, command.output
    assert_complete(20)
    assert command.output.count("died or is unreachable") == 1
    number = int(lost.data.params["trial"])
    assert f"trial {number}: beta died or is unreachable; the trial starts again" in command.output
    states = {run.info.run_id: (run.info.status, run.data.tags["trial_state"]) for run in runs(number)}
    assert states.pop(lost.info.run_id) == ("KILLED", "DEAD")
    assert list(states.values()) == [("FINISHED", "COMPLETE")]
    assert {run.data.tags["host"] for run in runs()} == {"alpha", "beta", gamma.name}
    assert "ray" not in command.output.lower().replace("array", "")

    # The best configuration repeats the number of the best trial.
    (parent,) = [run for run in all_runs() if run.data.tags["kind"] == "sweep"]
    best = paths.sweeps_folder(connect(None).tracking_uri) / "one" / "best.yaml"
    monkeypatch.setenv("SKINCANCER_DATA", str(folder / "data"))
    new_store("again")
    assert fit.main([f"--experiment={best}"]) == 0
    (again,) = all_runs()
    assert again.data.metrics["best/balanced_accuracy"] == parent.data.metrics["best/balanced_accuracy"]


def test_a_machine_whose_network_is_cut(cluster, sweep):
    gamma = cluster.machines.get("gamma") or cluster.add("gamma")
    wait_until(gamma.joined, "gamma joins")
    command = sweep("--trials=4", "--pruner=none", "--trainer.max_epochs=12")
    (lost,) = wait_until(
        lambda: [run for run in training(1) if machine_of(cluster, run) is gamma], "a trial trains on gamma"
    )
    cluster.connect(gamma, up=False)
    wait_until(lambda: "died or is unreachable" in command.output, "the loss is reported")
    cluster.connect(gamma, up=True)
    assert command.wait() == 0, command.output
    # Ray ends the processes of a machine that it has given up, when the network is back.
    wait_until(lambda: not order_processes(gamma), "the lost trial ends")
    assert_complete(4)
    assert connect(None).get_run(lost.info.run_id).info.status == "KILLED"
