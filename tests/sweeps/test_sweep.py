"""A whole sweep: its runs, figures and best configuration; trials that crash; every way of ending and going on."""

import faulthandler
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import mlflow
import optuna
import pandas as pd
import postgres
import psutil
import pytest
from conftest import TINY_FIT, all_runs, make_store, only_run
from sklearn.metrics import balanced_accuracy_score
from stub_engine import StubEngine, run_trials

from skincancer import fit, sweep
from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.resolve import resolve
from skincancer.engines import slot
from skincancer.engines.orders import Lost, Order, Result, RunCreated
from skincancer.engines.process import OrderLink
from skincancer.errors import RunError
from skincancer.runs import lifecycle
from skincancer.runs.store import RunStore, connect
from skincancer.sweeps import study
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.storage import open_storage
from skincancer.sweeps.trials import TrialRunner, bury
from skincancer.system import paths
from skincancer.system.interrupts import Interrupted
from skincancer.system.yaml_files import load_yaml
from skincancer.visualization.optuna_figures import sweep_figures

SPACE = """
task: classification
data: {balance: oversample}
search:
  model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}
  augment.policy: {choices: [none, light]}
"""


def arguments(folder: Path, root: Path, *more: str) -> list[str]:
    (folder / "tiny.yaml").write_text(SPACE)
    return [f"--experiment={folder / 'tiny.yaml'}", f"--data.root={root}", *TINY_FIT, *more]


def by_kind(kind: str) -> list[mlflow.entities.Run]:
    return [run for run in all_runs() if run.data.tags["kind"] == kind]


def artifact(run: mlflow.entities.Run, name: str) -> Path:
    return Path(connect(None).download_artifacts(run.info.run_id, name))


@pytest.fixture(scope="module")
def swept(tiny_demo, session_cache, tmp_path_factory):
    """A sweep of three trials by two workers, that several tests look at: its folder and store."""
    folder = tmp_path_factory.mktemp("swept")
    uri = make_store(folder / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINCANCER_CACHE", str(session_cache))
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        assert sweep.main([*arguments(folder, tiny_demo), "--trials=3", "--workers=2", "--study=three"]) == 0
    return folder, uri


@pytest.fixture
def there(swept, monkeypatch) -> Path:
    """The module's sweep, its store being the current one: its folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", swept[1])
    return swept[0]


def test_a_sweep_is_a_parent_with_a_child_a_trial(there):
    (parent,) = by_kind("sweep")
    children = by_kind("trial")
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "sweep three"
    assert parent.data.params["objective"] == "best/balanced_accuracy"
    assert sorted(child.data.params["trial"] for child in children) == ["0", "1", "2"]
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["trial_state"] == "COMPLETE"
        assert child.data.tags["split_hash"] == parent.data.tags["split_hash"]
        assert 1e-4 <= float(child.data.params["model.optimizer.lr"]) <= 1e-2
        assert child.data.params["lr"] == child.data.params["model.optimizer.lr"]
        assert child.data.params["augment.policy"] == child.data.params["augment"]
    assert len({child.data.params["model.optimizer.lr"] for child in children}) == 3


def test_trials_never_see_the_test_part(there):
    for child in by_kind("trial"):
        assert not [name for name in child.data.metrics if name.startswith("test/")]
        names = {item.path for item in connect(None).list_artifacts(child.info.run_id, "predictions")}
        assert names == {"predictions/val.csv"}


def test_the_objective_is_that_of_the_validation_part(there):
    (parent,) = by_kind("sweep")
    table = pd.read_csv(artifact(parent, "trials.csv")).set_index("trial")
    for child in by_kind("trial"):
        val = pd.read_csv(artifact(child, "predictions/val.csv"))
        expected = balanced_accuracy_score(val["label"], val["prediction"])
        assert table.loc[int(child.data.params["trial"]), "best/balanced_accuracy"] == pytest.approx(expected, abs=1e-9)
        assert child.data.metrics["best/balanced_accuracy"] == pytest.approx(expected, abs=1e-9)
    assert list(table["state"]) == ["COMPLETE"] * 3
    best = table["best/balanced_accuracy"].idxmax()
    assert parent.data.tags["best_trial"] == str(best)
    assert parent.data.tags["best_run"] == table.loc[best, "run_id"]


def test_figures(there):
    (parent,) = by_kind("sweep")
    names = {Path(item.path).stem for item in connect(None).list_artifacts(parent.info.run_id, "figures")}
    assert names >= {"history", "learning_curves", "slice", "parallel_coordinate"}


def test_figures_follow_from_what_the_trials_allow():
    drawn = []
    for values in ([], [0.5], [0.5, 0.5], [0.5, 0.6, 0.7]):
        found = optuna.create_study(direction="maximize")
        for value in values:
            trial = found.ask({"model.dropout": optuna.distributions.FloatDistribution(0.0, 0.5)})
            trial.report(value, 1)
            found.tell(trial, value)
        found.tell(found.ask(), state=optuna.trial.TrialState.FAIL)
        drawn.append(
            [name for name, draw in sweep_figures(found, "best/dice", "title", "note", lambda trial: True) if draw()]
        )
    one = ["history", "learning_curves", "slice"]
    assert drawn == [[], one, [*one, "parallel_coordinate"], [*one, "parallel_coordinate", "importance"]]


def test_the_best_configuration_repeats_the_best_trial_exactly(there, new_store):
    (parent,) = by_kind("sweep")
    best = parent.data.metrics["best/balanced_accuracy"]
    path = artifact(parent, "best.yaml")
    assert path.read_text() == (paths.sweeps_folder(connect(None).tracking_uri) / "three/best.yaml").read_text()
    command = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} python -m skincancer.fit --experiment best.yaml"
    assert path.read_text().splitlines()[0] == f"# repeat this trial with: {command}"
    content = load_yaml(path)
    assert content["search"] == {}
    assert content["name"] == "tiny_best"
    new_store("again")
    assert content["tracking"]["uri"] is None, "it may hold a password"
    assert fit.main([f"--experiment={path}"]) == 0
    again = only_run()
    assert again.data.metrics["best/balanced_accuracy"] == best
    assert "test/balanced_accuracy" in again.data.metrics


def test_a_second_start_adds_nothing_and_a_larger_total_goes_on(there, tiny_demo, session_cache, monkeypatch, capsys):
    (parent,) = by_kind("sweep")
    same = arguments(there, tiny_demo, "--study=three")
    assert sweep.main([*same, "--trials=3"]) == 0
    assert len(by_kind("trial")) == 3
    monkeypatch.setattr(slot, "COMMAND", (sys.executable, "-c", COMPLETE))
    assert sweep.main([*same, "--trials=4"]) == 0
    (again,) = by_kind("sweep")
    assert again.info.run_id == parent.info.run_id
    assert again.info.status == "FINISHED"
    assert len(pd.read_csv(artifact(again, "trials.csv"))) == 4
    capsys.readouterr()
    assert sweep.main([*same, "--trials=3"]) == 2
    assert "4 trials of the study three have already ended" in capsys.readouterr().err
    # another machine, or this one before it lost its power, is at it; or was, a long while ago
    client = connect(None)
    client.update_run(parent.info.run_id, status="RUNNING")
    tags = {"boot_id": "another", "heartbeat": "2020-01-01T00:00:00+00:00"}
    client.set_tag(parent.info.run_id, "boot_id", tags["boot_id"])
    assert sweep.main([*same, "--trials=5"]) == 1
    assert "which is not visible from this machine" in capsys.readouterr().err
    assert len(pd.read_csv(artifact(again, "trials.csv"))) == 4
    client.set_tag(parent.info.run_id, "heartbeat", tags["heartbeat"])
    assert sweep.main([*same, "--trials=5"]) == 0
    assert len(pd.read_csv(artifact(again, "trials.csv"))) == 5
    other = [flag for flag in same if not flag.startswith("--trainer.max_epochs")]
    assert sweep.main([*other, "--trainer.max_epochs=3", "--trials=9"]) == 2
    assert "trainer.max_epochs: the study has 2, requested is 3" in capsys.readouterr().err


def link(answer: str) -> tuple[OrderLink, int]:
    """A trial's end of its line to an engine that always gives this answer, and the engine's."""
    reading, writing = os.pipe()
    found = OrderLink(7, "parent", {"model.dropout": 0.1}, writing)
    found._answers.put(answer)
    return found, reading


def test_a_pruned_fit_ends_after_its_epoch_and_tells_no_objective(tmp_path, tiny_demo, store, monkeypatch):
    monkeypatch.setattr(lifecycle, "reap", lambda *_: pytest.fail("the sweep has done so"))
    (tmp_path / "tiny.yaml").write_text(SPACE)
    flags = {"data.root": str(tiny_demo), **dict(flag.removeprefix("--").split("=") for flag in TINY_FIT)}
    parser = build_parser("test", "")
    given, _ = parse_flags(parser, [f"--{key}={value}" for key, value in flags.items()])
    experiment, _ = resolve(str(tmp_path / "tiny.yaml"), {**given, "trainer.max_epochs": 3})
    line, reading = link("prune")
    run_id = fit.fit(experiment, trial=line)
    run = only_run()
    assert run.info.run_id == run_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["trial_state"] == "PRUNED"
    assert run.data.params["trial"] == "7"
    assert len(pd.read_csv(artifact(run, "epochs.csv"))) == 1
    assert not [name for name in run.data.metrics if name.startswith(("best/", "test/"))]
    messages = [json.loads(line) for line in os.read(reading, 65536).splitlines()]
    assert [next(iter(message)) for message in messages] == ["epoch", "pruned"]
    assert messages[0]["value"] == run.data.metrics["val/balanced_accuracy"]


def test_a_trial_whose_worker_is_gone_is_interrupted():
    line, reading = link("go")
    os.close(reading)
    with pytest.raises(Interrupted) as caught:
        line.report(1, 0.5, last=False)
    assert caught.value.exit_code == 143


def test_a_trial_that_waits_for_an_answer_when_its_worker_dies_is_interrupted(monkeypatch):
    line, _ = link("go")
    line._answers.get()
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    monkeypatch.setattr(os, "kill", lambda *_: None)  # the signal came just before
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: None)
    line.listen()
    with pytest.raises(Interrupted):
        line.report(1, 0.5, last=False)


# ------------------------------------------------------------------------------------------------------ what trials leave in MLflow

COMPLETE = """
import json, os, sys
for line in sys.stdin:
    os.write(int(sys.argv[-1]), b'{"objective": 0.25}\\n{"exit": 0}\\n')
"""


@pytest.fixture
def one(tmp_path: Path) -> study.Sweep:
    plan = Plan(
        "x", {"task": "classification"}, {}, {"model.dropout": {"low": 0.0, "high": 0.5}}, "tpe", "median", "", ""
    )
    opened = study.create(f"journal://{tmp_path}/one.journal", "one", plan, 1, maximize=True)
    opened.begin(1)
    opened.study.set_user_attr("parent_run", connect(None).create_run(RunStore(None).experiment_id("demo")).info.run_id)
    return opened


def child_run() -> mlflow.entities.Run:
    (child,) = [run for run in all_runs() if "trial_state" in run.data.tags]
    return child


def test_a_trial_that_failed_before_its_run_began_has_one_nevertheless(store, one, capsys):
    with pytest.raises(RunError, match="killed by SIGSEGV"):
        run_trials(one, lambda order: Result("failed", reason="killed by SIGSEGV"), client=connect(None))
    child = child_run()
    assert child.info.status == "FAILED"
    assert child.data.tags["mlflow.parentRunId"] == one.parent
    assert child.data.tags["trial_state"] == "FAIL"
    assert "SIGSEGV" in child.data.tags["status_reason"]
    assert child.data.params["trial"] == "0"


def running_child(store: str) -> tuple[str, Path]:
    """A run of a trial with working files, after its process died."""
    child = connect(None).create_run(
        RunStore(None).experiment_id("demo"), tags={"kind": "trial", "trial_state": "RUNNING"}
    )
    work = paths.work_root(store) / child.info.run_id
    (work / "checkpoints").mkdir(parents=True)
    return child.info.run_id, work


def test_the_run_of_a_dead_drivers_trial_is_closed(store, one):
    run_id, work = running_child(store)
    one.ask().set_user_attr("run_id", run_id)
    dead = one.begin(1)
    bury(connect(None), [trial.user_attrs["run_id"] for trial in dead], "its sweep died")
    assert not work.exists(), "it is repeated from its start"
    child = child_run()
    assert (child.info.status, child.data.tags["trial_state"]) == ("KILLED", "DEAD")
    assert child.data.tags["status_reason"] == "its sweep died; the trial is repeated"


def test_the_run_of_a_lost_machine_is_closed(store, one):
    run_id, work = running_child(store)

    def lost(order: Order):
        yield RunCreated(order.number, run_id)
        yield Lost(order.number, "node2, GPU 0")
        return Result("complete", 0.5)

    run_trials(one, lost, client=connect(None))
    child = child_run()
    assert (child.info.status, child.data.tags["trial_state"]) == ("KILLED", "DEAD")
    assert not work.exists()


def test_a_point_that_is_no_experiment_fails_with_its_reason(store, one):
    runner = TrialRunner(one, StubEngine(lambda order: pytest.fail("started")), {"data.size": 0}, connect(None), print)
    with pytest.raises(RunError, match=r"data\.size is 0"):
        runner.run(None, lambda: None)
    assert "data.size is 0" in child_run().data.tags["status_reason"]


# ------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--experiment=resnet50", "--trials=3"], "has no search: block"),
        (["--experiment=efficientnet_lite0"], "--trials is 0"),
        (["--experiment=efficientnet_lite0", "--trials=-1"], "--trials is -1"),
        (
            ["--experiment=efficientnet_lite0", "--trials=3", "--model.dropout=0.1"],
            "--model.dropout is set on the command line and in search:",
        ),
        (["--experiment=efficientnet_lite0", "--trials=3", "--trainer.devices=2"], "a trial uses one device"),
        (["--experiment=efficientnet_lite0", "--trials=3", "--sampler=tpes"], "Did you mean 'tpe'?"),
        (["--experiment=efficientnet_lite0", "--trials=3", "--pruner=mean"], "--pruner is 'mean'"),
        (["--experiment=efficientnet_lite0", "--trials=3", "--workers=0"], "--workers is 0"),
        (["--experiment=efficientnet_lite0", "--trials=3", "--timeout=-1"], "--timeout is -1"),
        (["--experiment=efficientnet_lite0", "--trials=3", "--study=../x"], "--study is '../x'"),
        (["--experiment=efficientnet_lite0", "--trials=3", "--sampler=grid"], "has no steps"),
        (["--experiment=efficientnet_lite0", "--trials=3", "--storage=nonsense"], "--storage is not a URL"),
        (["--experiment=efficientnet_lite", "--trials=3"], "unknown"),
        (["--trials=3"], "--experiment is missing"),
        (
            ["--experiment=efficientnet_lite0", "--trials=3", "--gpus-per-trial=2"],
            "--gpus-per-trial is 2.0; expected 0 to 1",
        ),
        (["--experiment=efficientnet_lite0", "--trials=3", "--cpus-per-trial=0"], "--cpus-per-trial is 0"),
        (["--experiment=efficientnet_lite0", "--trials=3", "--cluster=head"], "expected HOST:PORT, auto or local"),
        (["--experiment=efficientnet_lite0", "--trials=3", "--cluster=auto"], "RAY_ADDRESS is not set"),
    ],
)
def test_what_is_asked_wrongly_is_reported_before_anything_starts(flags, said, capsys, places):
    assert sweep.main(flags) in (1, 2)
    assert said in capsys.readouterr().err
    assert not (places / "sweeps").exists()


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            "model.dropout: {low: 0.0, high: 1.5}",
            "model.dropout may be 1.5, which is not valid: model.dropout is 1.5",
        ),
        ("augment.policy: {choices: [light, strng]}", "augment.policy may be 'strng'"),
        ("model.backbone: {choices: [resnet18, resnet19]}", "resnet19"),
        ("data.split: {choices: ['80:20', '70:30']}", "data.split cannot be searched"),
    ],
)
def test_a_space_whose_ends_are_no_experiments_is_refused(space, said, tmp_path, capsys, places):
    (tmp_path / "bad.yaml").write_text(f"task: classification\nsearch:\n  {space}\n")
    assert sweep.main([f"--experiment={tmp_path / 'bad.yaml'}", "--trials=3"]) == 2
    assert said in capsys.readouterr().err
    assert not (places / "sweeps").exists()


def test_what_can_be_swept_is_listed(capsys):
    assert sweep.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert "efficientnet_lite0" in shown
    assert "model.optimizer.lr" in shown
    assert "vgg16_frozen" not in shown


# ------------------------------------------------------------------------------------------------------- ways of ending


def start(folder: Path, root: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "skincancer.sweep", *arguments(folder, root, "--study=long", *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_a_trial(count: int, seconds: float = 180) -> mlflow.entities.Run:
    """Wait until the run of the trial `count` (from 1) has begun an epoch."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = by_kind("trial")
        if len(found) >= count and "train/loss" in found[-1].data.metrics:
            return found[-1]
        time.sleep(0.5)
    raise AssertionError("no trial has begun")


def wait_for_end(run_id: str, seconds: float = 60) -> str:
    until = time.monotonic() + seconds
    client = connect(None)
    while time.monotonic() < until and client.get_run(run_id).info.status == "RUNNING":
        time.sleep(0.5)
    return str(client.get_run(run_id).info.status)


@pytest.mark.slow
def test_interrupted_killed_and_gone_on(tmp_path, tiny_demo, store):
    long = ["--trainer.max_epochs=200", "--trials=2"]
    process = start(tmp_path, tiny_demo, *long)
    first = wait_for_a_trial(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert wait_for_end(first.info.run_id, 5) == "KILLED"
    (parent,) = by_kind("sweep")
    assert parent.info.status == "KILLED"

    process = start(tmp_path, tiny_demo, *long)
    second = wait_for_a_trial(2)
    assert second.data.params["model.optimizer.lr"] == first.data.params["model.optimizer.lr"], "repeated"
    owner = int(second.data.tags["pid"])
    process.kill()
    process.wait()
    assert wait_for_end(second.info.run_id) == "KILLED", "a trial ends by itself when its worker has exited"
    psutil.wait_procs([psutil.Process(owner)] if psutil.pid_exists(owner) else [], timeout=30)
    assert not psutil.pid_exists(owner)

    process = start(tmp_path, tiny_demo, *long)
    third = wait_for_a_trial(3)
    assert third.data.params["model.optimizer.lr"] == first.data.params["model.optimizer.lr"]
    os.kill(int(third.data.tags["pid"]), signal.SIGKILL)
    fourth = wait_for_a_trial(4)
    assert fourth.data.params["model.optimizer.lr"] != first.data.params["model.optimizer.lr"], (
        "a crash costs one trial"
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    client = connect(None)
    assert client.get_run(third.info.run_id).info.status == "FAILED"
    assert "SIGKILL" in client.get_run(third.info.run_id).data.tags["status_reason"]
    (parent,) = by_kind("sweep")
    assert parent.info.status == "KILLED"
    table = pd.read_csv(artifact(parent, "trials.csv"))
    assert list(table["state"]).count("FAIL") == 4
    assert table["counts"].sum() == 1, "the one that crashed"
    left = {path.name for path in paths.work_root(store).iterdir()}
    assert left <= {parent.info.run_id}, "trials are never resumed, and leave no checkpoints"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "objective"),
    [("unet_efficientnet_lite0", "best/jaccard"), ("unet_efficientnet_lite0_joint", "best/balanced_accuracy")],
)
def test_the_other_tasks(experiment, objective, tiny_demo, store):
    flags = [*TINY_FIT, "--model.backbone=tu-test_resnet", "--model.tta=none", f"--data.root={tiny_demo}"]
    assert sweep.main([f"--experiment={experiment}", *flags, "--trials=2", "--workers=2"]) == 0
    (parent,) = by_kind("sweep")
    values = [child.data.metrics[objective] for child in by_kind("trial")]
    assert len(values) == 2
    assert parent.data.metrics[objective] == pytest.approx(max(values), abs=1e-12)


@pytest.mark.slow
def test_no_password_is_in_anything_that_a_sweep_leaves(server, tmp_path, tiny_demo, monkeypatch, capfd):
    uri, url = postgres.new_database(server), postgres.new_database(server)
    words = {postgres.PASSWORD, quote(postgres.PASSWORD, safe="")}
    place = (
        f"from skincancer.system import paths; paths.store_folder = lambda: paths.Path({str(tmp_path / 'mlruns')!r})"
    )
    code = f"import sys; {place}; from skincancer import order_process; sys.exit(order_process.main())"
    monkeypatch.setattr(slot, "COMMAND", (sys.executable, "-c", code))
    monkeypatch.setattr(paths, "store_folder", lambda: tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of a database
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    flags = arguments(tmp_path, tiny_demo, "--study=one", f"--storage={url}", "--trials=2")
    (tmp_path / "tiny.yaml").write_text(f"{SPACE}tracking: {{uri: {uri}}}\n")
    assert sweep.main(flags) == 0
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # not for a minute
    wrong = {place: place.replace(quote(postgres.PASSWORD, safe=""), "hunter2") for place in (uri, url)}
    for store, storage in ((uri, wrong[url]), (wrong[uri], url)):
        (tmp_path / "tiny.yaml").write_text(f"{SPACE}tracking: {{uri: {store}}}\n")
        assert sweep.main([*flags[:-3], "--study=one", f"--storage={storage}", "--trials=2"]) == 1
    (tmp_path / "tiny.yaml").unlink()

    said = capfd.readouterr()
    assert "***" in said.out
    assert said.err.count("password authentication failed") == 2
    texts = {"output": said.out + said.err}
    texts |= {str(path): path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()}
    client = connect(uri)
    for run in client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]):
        texts[f"run {run.info.run_id}"] = str(run.to_dictionary())
        assert run.info.status == "FINISHED"
    found = optuna.load_study(study_name="one", storage=open_storage(url))
    texts["study"] = str(found.user_attrs) + str(found.trials)
    assert any(name.endswith("best.yaml") for name in texts)
    assert len(found.trials) == 2
    for word in (*words, "hunter2"):
        assert [name for name, text in texts.items() if word in text] == []
