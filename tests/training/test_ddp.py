"""Fits of two processes with each launcher: shares of the ranks, the common run, and all ways to end."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from conftest import TINY_FIT, all_runs, only_run
from mlflow.entities import Run
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

import skincancer
from skincancer import fit
from skincancer.data.balance import epoch_order
from skincancer.data.datamodule import check_shares
from skincancer.data.prepare import PreparedData, prepare_data
from skincancer.errors import ConfigError, RunError
from skincancer.metrics.classification import classification_metrics
from skincancer.models.factory import load_task
from skincancer.runs.lifecycle import reap, start_run
from skincancer.runs.store import RunStore, connect
from skincancer.schema.data import DataConfig
from skincancer.schema.training import TrainerConfig
from skincancer.system.launcher import PARENT, RUN_ID, is_rank_zero, without_launcher
from skincancer.training.distributed import Ranks
from skincancer.training.launch import check_launcher, count_ranks

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]

# runs at the start of every rank: writes down what it trains on, keeps the last resume point, and may fail on purpose
WATCHER = """
import os, sys
if "skincancer.fit" in sys.orig_argv and "torch.distributed.run" not in sys.orig_argv:
    import hashlib, json, pathlib, shutil, time
    from skincancer.training import callbacks, checkpoints

    folder = pathlib.Path(os.environ["WATCHED"])
    export = checkpoints.export_best

    class Watching(callbacks.EpochRecord):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if os.environ.get("BREAKS") == str(trainer.global_rank):
                raise ValueError("broken on purpose")
            if os.environ.get("PAUSES") == f"{trainer.current_epoch}.{batch_idx}":
                time.sleep(100)
            image = hashlib.sha256(batch["image"].contiguous().numpy().tobytes()).hexdigest()
            row = [trainer.current_epoch, batch_idx, batch["index"].tolist(), image]
            with open(folder / f"{trainer.global_rank}.jsonl", "a") as file:
                print(json.dumps(row), file=file)

    def export_and_keep(path, **changes):
        if (path.parent / "last.ckpt").is_file():
            shutil.copy(path.parent / "last.ckpt", folder)
        return export(path, **changes)

    callbacks.EpochRecord, checkpoints.export_best = Watching, export_and_keep
"""


# ------------------------------------------------------------------------------------------------------------ without a fit


@pytest.mark.parametrize(
    ("variables", "zero"),
    [
        ({}, True),
        ({PARENT: "1", "LOCAL_RANK": "1"}, False),
        # The first process of torchrun's second node.
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "GROUP_RANK": "1", "RANK": "1"}, False),
        # One torchrun per node of a job.
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "RANK": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, True),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "RANK": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "0"}, False),  # the first task of a second node
        ({"NODE_RANK": "1"}, False),
    ],
)
def test_rank_zero_is_known_before_lightning(variables, zero, alone, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero(ranks=4) == zero
    assert is_rank_zero() == zero
    assert is_rank_zero(ranks=1)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment of a process without a launcher."""
    kept = without_launcher(os.environ)
    for name in set(os.environ) - set(kept):
        monkeypatch.delenv(name)


def test_ranks_are_devices_times_nodes(monkeypatch):
    assert count_ranks(TrainerConfig()) == 1
    assert count_ranks(TrainerConfig(devices="2", num_nodes=3)) == 6
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert count_ranks(TrainerConfig(devices="auto", num_nodes=2)) == 8
    assert count_ranks(TrainerConfig(devices="auto", accelerator="cpu")) == 1


TORCHELASTIC = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_RANK": "0", "RANK": "0"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("devices", "nodes", "variables", "error"),
    [
        (2, 1, {**TORCHELASTIC, "WORLD_SIZE": "2"}, None),
        (2, 2, {**TORCHELASTIC, "WORLD_SIZE": "4", "SLURM_NTASKS": "2"}, None),  # one torchrun per node, in a job
        (2, 1, {**TORCHELASTIC, "WORLD_SIZE": "4"}, "torchrun started 4. .*--nnodes"),
        (1, 1, {**TORCHELASTIC, "WORLD_SIZE": "2"}, "are 1 processes, but torchrun started 2"),
        (2, 2, SLURM, None),
        (2, 1, SLURM, "are 2 processes, but SLURM runs 4 tasks"),
        (1, 1, SLURM, "are 1 processes, but SLURM runs 4 tasks"),  # three tasks would be idle
        (2, 1, {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, "SLURM runs 1 tasks. .*--ntasks-per-node"),
        (2, 1, {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, "--ntasks-per-node, not with --ntasks"),
        (2, 1, {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, "only with srun"),
        (1, 1, {"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}, None),
        (1, 1, {"SLURM_NTASKS": "4"}, None),  # a job's script
        (1, 1, {"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "interactive"}, None),
        (2, 1, {}, "from a notebook or a script, use one device"),
        (1, 2, {}, "from a notebook or a script, use one device"),
        (1, 1, {}, None),
        (2, 1, {PARENT: "1", "LOCAL_RANK": "1"}, None),
        (2, 1, {"LOCAL_RANK": "0"}, "LOCAL_RANK is 0, but neither torchrun nor SLURM .*Unset LOCAL_RANK"),
        (2, 1, {"LOCAL_RANK": "1", "NODE_RANK": "0"}, "Unset LOCAL_RANK and NODE_RANK"),
        (1, 1, {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}, None),
        (4, 1, {**SLURM, "SLURM_JOB_NAME": "interactive"}, "each of the 4 tasks .*srun --ntasks 1"),
        (1, 1, {**SLURM, "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "3"}, None),
    ],
)
def test_the_launcher_starts_what_is_asked_for(devices, nodes, variables, error, alone, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    trainer = TrainerConfig(devices=devices, num_nodes=nodes)
    if error is None:
        check_launcher(trainer)
    else:
        with pytest.raises((ConfigError, RunError), match=error):
            check_launcher(trainer)


@pytest.mark.parametrize("other", [None, "ipykernel_launcher", "pytest"])  # None: a script, or python -c
def test_several_devices_need_the_command_line(other, alone, monkeypatch):
    main = types.ModuleType("__main__")
    main.__spec__ = None if other is None else types.SimpleNamespace(name=other)
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(RunError, match="from a notebook or a script, use one device"):
        check_launcher(TrainerConfig(devices=2))
    for name in ("skincancer.__main__", "skincancer.fit"):
        main.__spec__ = types.SimpleNamespace(name=name)
        check_launcher(TrainerConfig(devices=2))
    with pytest.raises(ConfigError, match="torchrun --nnodes 2"):
        check_launcher(TrainerConfig(num_nodes=2))


LEFT_OVER = [
    {**SLURM, "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"},
    {
        "LOCAL_RANK": "1",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    },
]


@pytest.mark.parametrize("variables", LEFT_OVER)
def test_a_single_process_with_the_rank_of_another_records_its_run(
    variables, tiny_demo, store, alone, monkeypatch, capsys
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # As Lightning sets it when it is imported.
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    flags = [f"--data.root={tiny_demo}", *TINY_FIT, "--trainer.max_epochs=1", "--seed=3"]
    assert fit.main(["--experiment=densenet169_undersample", *flags]) == 0
    assert only_run().info.status == "FINISHED"
    assert rank_zero_only.rank == 0
    assert "test: densenet169_undersample" in capsys.readouterr().out
    assert fit.main(["--resume=0123456789abcdef0123456789abcdef"]) == 1
    assert "there is no such run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SLURM_PROCID", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT"])
@pytest.mark.parametrize("value", ["x", "", "1.5"])
def test_a_variable_that_is_no_number_is_reported(name, value, alone, monkeypatch, capsys):
    monkeypatch.setenv(name, value)
    assert fit.main(["--experiment=resnet50"]) == 2
    assert capsys.readouterr().err.startswith(f"error: the environment variable {name} is {value!r}; expected a whole")
    with pytest.raises(ConfigError, match=name):
        _ = skincancer.fit_experiment


def test_a_process_that_trains_alone_knows_of_no_ranks():
    mine = {"PATH": "/bin", "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "1"}
    theirs = {
        **TORCHELASTIC,
        **SLURM,
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
        "WORLD_SIZE": "2",
        PARENT: "1",
        RUN_ID: "1",
    }
    assert without_launcher({**mine, **theirs}) == mine


@pytest.fixture(scope="module")
def data(tiny_demo: Path, session_cache: Path) -> PreparedData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINCANCER_CACHE", str(session_cache))
        return prepare_data(DataConfig(dataset="demo", root=str(tiny_demo), size=32))


def test_subsets_smaller_than_the_ranks_are_reported_before_a_run(tiny_demo, store, data, alone, monkeypatch, capsys):
    val = len(data.rows("val"))
    check_shares(data, 8, "undersample", ranks=2)
    with pytest.raises(
        ConfigError, match=f"the val set: {val} images in batches of 8 are too few for {val + 1} devices"
    ):
        check_shares(data, 8, "none", ranks=val + 1)
    with pytest.raises(ConfigError, match=f"the train set: {7 * 3} images .* too few for 22 devices"):
        check_shares(data, 8, "undersample", ranks=22)
    for name, value in {**TORCHELASTIC, "WORLD_SIZE": str(val + 1)}.items():
        monkeypatch.setenv(name, value)
    flags = [f"--data.root={tiny_demo}", f"--trainer.num_nodes={val + 1}", "--trainer.devices=1"]
    assert fit.main(["--experiment=densenet169_undersample", *TINY_FIT, *flags]) == 2
    assert "the val set" in capsys.readouterr().err
    assert not all_runs()


def test_strategies_that_are_not_built_for_are_refused(capsys):
    assert fit.main(["--experiment=densenet169_undersample", "--trainer.strategy=fsdp", "--dry_run"]) == 2
    assert "trainer.strategy is 'fsdp'; choose one of auto, ddp" in capsys.readouterr().err


def make_trainer(ranks: int) -> Any:
    return types.SimpleNamespace(
        world_size=ranks, global_rank=1, callbacks=[], strategy=types.SimpleNamespace(launcher=None)
    )


def test_one_device_has_no_ranks_to_end(store, alone):
    trainer = make_trainer(1)
    with Ranks(trainer, None, connect(None)):
        assert not trainer.callbacks
        assert not {PARENT, RUN_ID} & set(os.environ)


def test_rank_0_ends_with_the_error_that_another_rank_has_recorded(store, alone, monkeypatch):
    for name in (PARENT, RUN_ID):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    runs, trainer, error = RunStore(None), make_trainer(2), ValueError("broken")

    def rank_0() -> None:
        with (
            start_run(runs, "fits", "fit", {"kind": "fit"}, system_metrics=False) as run,
            Ranks(trainer, run, runs.client),
        ):
            other = Ranks(trainer, None, runs.client)
            assert other.run_id == run.run_id  # as Lightning's processes inherit it
            other.__exit__(ValueError, error, None)
            assert only_run().info.status == "FAILED"
            raise RuntimeError("Connection closed by peer")

    with pytest.raises(RunError, match=r"rank 1 \(process \d+ on .*\) failed: ValueError: broken"):
        rank_0()
    assert only_run().data.tags["status_reason"].endswith("failed: ValueError: broken")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


# ------------------------------------------------------------------------------------------------------------ two processes


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


class Fit:
    """A fit of two ranks: the processes that a user or a launcher starts, and their ranks."""

    def __init__(self, launcher: str, root: Path, places: Path, flags: list[str], variables: dict[str, str]) -> None:
        self.places, self.watched = places, places / "watched"
        self.watched.mkdir(parents=True, exist_ok=True)
        (self.watched / "sitecustomize.py").write_text(WATCHER)
        devices, nodes = (1, 2) if launcher == "two torchruns" else (2, 1)
        command = [
            "skincancer.fit", "--experiment=densenet169_undersample", *TINY_FIT, "--data.dataset=demo", f"--data.root={root}",
            "--trainer.strategy=ddp", f"--trainer.devices={devices}", f"--trainer.num_nodes={nodes}", *flags,
        ]  # fmt: skip
        checkout, port = Path(__file__).parents[2], free_port()
        environment = {
            **without_launcher(os.environ), "OMP_NUM_THREADS": "1", "WATCHED": str(self.watched), **variables,
            "PYTHONPATH": f"{self.watched}{os.pathsep}{checkout}",
        }  # fmt: skip
        plain = [sys.executable, "-m", *command]
        agents = ["2", "--master_port", port, "-m", *command]
        node = ["1", "--nnodes", "2", "--master_addr", "127.0.0.1", "--master_port", port, "--node_rank"]
        slurm = {
            "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_STEP_ID": "0",
            "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "fit", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        started: dict[str, list[tuple[list[str], dict[str, str]]]] = {
            "own": [(plain, {})],
            "torchrun": [([*TORCHRUN, *agents], {})],
            "two torchruns": [([*TORCHRUN, *node, str(number), "-m", *command], {}) for number in range(2)],
            "slurm": [(plain, {**slurm, "SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)}) for k in range(2)],
        }
        options: dict[str, Any] = {"cwd": checkout, "text": True, "start_new_session": True}
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.processes = [
            subprocess.Popen(one, env={**environment, **more}, **options) for one, more in started[launcher]
        ]
        self.known: dict[int, psutil.Process] = {}

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes that train, by rank."""
        for parent in self.processes:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(parent.pid)
                for one in (process, *process.children(recursive=True)):
                    if "skincancer.fit" in one.cmdline() and "torch.distributed.run" not in one.cmdline():
                        names = one.environ()
                        rank = names.get("RANK", names.get("SLURM_PROCID", names.get("LOCAL_RANK", 0)))
                        self.known[int(rank)] = one
        return self.known

    def wait_for(self, epochs: int) -> dict[int, psutil.Process]:
        """Wait until `epochs.csv` has enough rows (0: until both ranks exist), and return the ranks."""
        give_up = time.monotonic() + 240
        while time.monotonic() < give_up:
            for process in self.processes:
                assert process.poll() is None, process.communicate()[0]
            tables = list(self.places.glob("work/*/epochs.csv"))
            if len(self.ranks()) == 2 and (
                not epochs or any(len(table.read_text().splitlines()) > epochs for table in tables)
            ):
                return self.ranks()
            time.sleep(0.2)
        raise AssertionError("it never trained")

    def end(self, seconds: float) -> tuple[list[int], str]:
        """Wait for the end of all processes, and return exit codes and output."""
        said = "".join(process.communicate(timeout=seconds)[0] for process in self.processes)
        return [process.returncode for process in self.processes], said

    def trained_on(self, rank: int) -> list[tuple[int, int, tuple[int, ...], str]]:
        """Return the batches of a rank: epoch, batch, rows of the index, digest of the augmented images."""
        lines = (self.watched / f"{rank}.jsonl").read_text().splitlines()
        return [(epoch, batch, tuple(rows), image) for epoch, batch, rows, image in map(json.loads, lines)]


@contextlib.contextmanager
def two_ranks(launcher: str, root: Path, places: Path, *flags: str, **variables: str) -> Iterator[Fit]:
    """Fit with two ranks. Remaining processes are ended with the block."""
    found = Fit(launcher, root, places, list(flags), variables)
    try:
        yield found
    finally:
        left = list(found.ranks().values())
        for process in (*found.processes, *left):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in found.processes:
            process.communicate()


def finish(launcher: str, root: Path, places: Path, *flags: str) -> tuple[Fit, str]:
    """Fit to the end, and return the fit and its output."""
    with two_ranks(launcher, root, places, *flags) as two:
        codes, said = two.end(400)
        assert codes == [0] * len(codes), said
    return two, said


def stored(data: PreparedData, rows: Any) -> Tensor:
    return torch.from_numpy(np.asarray(data.store.images)[rows].transpose(0, 3, 1, 2) / 255).float()


def weights(path: Path) -> dict[str, Tensor]:
    return dict(torch.load(path, weights_only=True, map_location="cpu")["state_dict"])


def check_complete(run: Run, places: Path, data: PreparedData) -> Path:
    """Check that a run is complete and one process measures the same. Return its artifacts."""
    client = connect(None)
    assert run.info.status == "FINISHED"
    assert run.data.params["ranks"] == "2"
    top = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert top == {
        "attention.csv", "checkpoints", "classes.json", "config.yaml", "digests.csv", "dropped.csv", "environment.txt", "epochs.csv",
        "errors.csv", "figures", "fingerprints.npz", "intervals.csv", "predictions", "report.html", "split.csv", "subgroups.csv",
    }  # fmt: skip
    assert not any((places / "work").iterdir())
    artifacts = Path(client.download_artifacts(run.info.run_id, ""))
    task = load_task(artifacts / "checkpoints/best.ckpt")
    for role, prefix in (("val", "best"), ("test", "test")):
        rows = np.flatnonzero(data.index["role"] == role)
        with torch.no_grad():
            probability = torch.softmax(task(stored(data, rows)).double(), 1).numpy()
        table = pd.read_csv(artifacts / "predictions" / f"{role}.csv", dtype={"image_id": str})
        assert table["image_id"].tolist() == data.index["image_id"].iloc[rows].tolist()
        np.testing.assert_allclose(table[[f"p_{name}" for name in data.classes]], probability, atol=1e-6)
        metrics = classification_metrics(data.index["label"].to_numpy()[rows], probability, data.classes)
        logged = {name: value for name, value in metrics.items() if np.isfinite(value)}
        assert len(logged) > 5
        assert {name: run.data.metrics[f"{prefix}/{name}"] for name in logged} == pytest.approx(logged, abs=1e-6)
    return artifacts


FLAGS = ("--trainer.max_epochs=3", "--augment.policy=strong", "--model.dropout=0.5", "--model.schedule.name=one_cycle")


@pytest.fixture(scope="module")
def whole(tiny_demo, session_cache, tmp_path_factory) -> Iterator[tuple[Fit, str, str]]:
    """A finished fit of two ranks, its output, and its store."""
    from conftest import make_store

    places = tmp_path_factory.mktemp("whole") / "mlruns"
    uri = make_store(places)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINCANCER_CACHE", str(session_cache))
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield (*finish("own", tiny_demo, places, *FLAGS), uri)


@pytest.mark.slow
def test_two_ranks_leave_one_complete_run(whole, data, monkeypatch):
    two, said, uri = whole
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert said.count("browse it:") == 1  # Only rank 0 prints.
    run = only_run()
    artifacts = check_complete(run, two.places, data)
    assert (run.data.params["devices"], run.data.params["effective_batch_size"]) == ("2", "16")
    smallest = data.rows("train")["label"].value_counts().min()
    epochs = pd.read_csv(artifacts / "epochs.csv")
    assert epochs["images_seen"].tolist() == [7 * smallest * epoch for epoch in (1, 2, 3)]
    steps = -(-7 * smallest // 16)
    assert epochs["optimizer_steps"].tolist() == [steps * epoch for epoch in (1, 2, 3)]
    assert [point.step for point in connect(None).get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3]


@pytest.mark.slow
def test_an_epoch_shows_over_both_ranks_what_one_process_would_show(whole, data):
    two, _, _ = whole
    train = np.flatnonzero(data.index["role"] == "train")
    labels = data.index["label"].to_numpy()[train]
    shares = [two.trained_on(rank) for rank in range(2)]
    # Both ranks train the same number of steps.
    assert [step[:2] for step in shares[0]] == [step[:2] for step in shares[1]]
    for epoch in range(3):
        seen = [row for share in shares for step in share if step[0] == epoch for row in step[2]]
        assert Counter(seen) == Counter(train[epoch_order(labels, "undersample", 0, epoch)].tolist())
        assert max(Counter(seen).values()) == 1
    images = [step[3] for share in shares for step in share]
    assert len(set(images)) == len(images)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "code"), [("own", 143), ("torchrun", 1)])  # torchrun's own exit code is 1
def test_a_run_that_sigterm_ended_resumes_to_the_same_weights(launcher, code, whole, tiny_demo, store, places, data):
    two, _, _ = whole
    with two_ranks(launcher, tiny_demo, places, *FLAGS, PAUSES="2.1") as stopped:
        processes = stopped.wait_for(epochs=2)
        start = time.monotonic()
        stopped.processes[0].send_signal(signal.SIGTERM)  # rank 0, or torchrun, alone, as a person does
        codes, said = stopped.end(60)
        assert codes == [code], said
        assert time.monotonic() - start < 30
        assert not psutil.wait_procs(processes.values(), timeout=5)[1]
    run = only_run()
    assert (run.info.status, run.data.tags["status_reason"]) == ("KILLED", "interrupted by SIGTERM")
    resumed, _ = finish(launcher, tiny_demo, places, f"--resume={run.info.run_id}", *FLAGS)
    assert only_run().info.run_id == run.info.run_id
    check_complete(only_run(), places, data)
    for rank in range(2):
        steps = resumed.trained_on(rank)  # of both processes, one after the other
        assert set(steps) == set(two.trained_on(rank)), "the same images, augmented alike"
    once, again = weights(two.watched / "last.ckpt"), weights(resumed.watched / "last.ckpt")
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.slow
def test_two_torchruns_of_one_device_each_train_one_run(tiny_demo, store, places, data, whole):
    two, said = finish("two torchruns", tiny_demo, places, *FLAGS)
    assert said.count("browse it:") == 1
    check_complete(only_run(), places, data)
    one = weights(whole[0].watched / "last.ckpt")
    assert all(torch.equal(one[name], value) for name, value in weights(two.watched / "last.ckpt").items())


@pytest.mark.slow
def test_tasks_of_slurm_train_as_one_process_does(tiny_demo, store, places, data, new_store, tmp_path):
    """Two ranks with batches of 19 learn what one process with batches of 38 learns: the whole training set in one step.

    BatchNorm statistics are frozen, because they would be those of each rank's own batch.
    """
    assert len(data.rows("train")) == 38
    same = [
        "--data.balance=none", "--augment.policy=none", "--model.dropout=0", "--model.optimizer.name=sgd", "--model.optimizer.lr=0.1",
        "--trainer.max_epochs=3", "--training.monitor=val/loss", "--model.freeze=all",
    ]  # fmt: skip
    finish("slurm", tiny_demo, places, *same, "--data.batch_size=19")
    artifacts = check_complete(only_run(), places, data)
    new_store("one")
    flags = [*TINY_FIT, *same, f"--data.root={tiny_demo}", "--data.batch_size=38"]
    assert fit.main(["--experiment=densenet169_undersample", *flags]) == 0
    alone = Path(connect(None).download_artifacts(only_run().info.run_id, ""))
    here, there = (pd.read_csv(folder / "epochs.csv") for folder in (artifacts, alone))
    for name in ("train/loss", "val/loss"):
        assert here[name].tolist() == pytest.approx(there[name].tolist(), abs=1e-4)
    assert here["optimizer_steps"].tolist() == there["optimizer_steps"].tolist() == [1, 2, 3]
    assert only_run().data.params["effective_batch_size"] == "38"
    one = weights(alone / "checkpoints/best.ckpt")
    for name, value in weights(artifacts / "checkpoints/best.ckpt").items():
        torch.testing.assert_close(value, one[name], rtol=1e-3, atol=1e-4, msg=name)


LONG = "--trainer.max_epochs=100000"


def ended(launcher: str, root: Path, places: Path, how: str, early: bool = False) -> tuple[list[int], str, Run]:
    """End a fit in the given way. Return exit codes, output, and the run."""
    with two_ranks(launcher, root, places, LONG, **({"BREAKS": "1"} if how == "exception" else {})) as two:
        if how != "exception":
            processes = two.wait_for(epochs=0 if early else 1)
            start = time.monotonic()
            if how == "kill rank 1":
                processes[1].kill()
            elif how == "kill rank 0":
                processes[0].kill()
            elif how == "interrupt all":
                os.killpg(two.processes[0].pid, signal.SIGINT)
            elif how == "terminate all":
                os.killpg(two.processes[0].pid, signal.SIGTERM)
            elif how == "terminate launcher":
                two.processes[0].send_signal(signal.SIGTERM)
            codes, said = two.end(60)
            assert not psutil.wait_procs(processes.values(), timeout=60)[1]
            assert time.monotonic() - start < 60, "every rank ends within a minute"
        else:
            codes, said = two.end(240)
    return codes, said, only_run()


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "early"), [("own", True), ("own", False), ("torchrun", False)])
@pytest.mark.parametrize("how", ["kill rank 0", "kill rank 1"])
def test_a_killed_rank_ends_all_and_the_run_is_closed_at_the_next_start(launcher, how, early, tiny_demo, store, places):
    codes, said, run = ended(launcher, tiny_demo, places, how, early)
    assert codes != [0], said
    if run.info.status == "RUNNING":
        assert reap(connect(None)) == [run.info.run_id]
        run = only_run()
    assert (run.info.status, bool(run.data.tags["status_reason"])) in [("FAILED", True), ("KILLED", True)]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_an_exception_in_one_rank_ends_the_run_with_its_words(launcher, tiny_demo, store, places):
    codes, said, run = ended(launcher, tiny_demo, places, "exception")
    assert codes == [1], said
    assert run.info.status == "FAILED"
    assert re.match(r"rank 1 \(.*\) failed: ValueError: broken on purpose", run.data.tags["status_reason"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "how", "early", "code"),
    [
        ("own", "terminate all", False, 143),
        ("own", "terminate all", True, 143),
        ("own", "interrupt all", False, 130),
        ("torchrun", "terminate launcher", False, 1),  # torchrun's own exit code is 1
    ],
)
def test_a_signal_ends_both_ranks(launcher, how, early, code, tiny_demo, store, places):
    codes, said, run = ended(launcher, tiny_demo, places, how, early)
    assert codes == [code], said
    name = "SIGINT" if code == 130 else "SIGTERM"
    assert (run.info.status, run.data.tags["status_reason"]) == ("KILLED", f"interrupted by {name}")
