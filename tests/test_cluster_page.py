"""The scripts of docs/clusters.md: read by shellcheck, and run with another store, storage and data."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_FIT, all_runs

from skincancer.system.launcher import without_launcher
from skincancer.system.yaml_files import load_yaml

PAGE = Path(__file__).parents[1] / "docs" / "clusters.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.S | re.M)
SCRIPTS = {re.search(r"--job-name=(\w+)", block)[1]: block for block in BLOCKS if block.startswith("#!/bin/bash")}


def test_there_are_an_array_of_workers_and_a_run_on_several_nodes():
    assert sorted(SCRIPTS) == ["densenet", "lesions"]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_shellcheck_finds_nothing(number, tmp_path):
    path = tmp_path / "block.sh"
    path.write_text(BLOCKS[number])
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--shell=bash", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_array_of_workers_runs_one_sweep(tmp_path, tiny_demo, store):
    tiny = " ".join([flag for flag in TINY_FIT if "system_metrics" not in flag])
    changed = SCRIPTS["lesions"]
    for before, after in (
        ('"http://${HEAD:?the machine that keeps trials and runs}:5000"', store),
        ('"postgresql://sweeper@$HEAD/sweeps"', f"journal://{tmp_path}/lesions.journal"),
        ("exec python ", f"exec {sys.executable} "),
        ("--trials 200", f"--trials 2 {tiny}"),
        ("--data.dataset ham10000", f"--data.dataset demo --data.root {tiny_demo}"),
    ):
        assert before in changed, before
        changed = changed.replace(before, after)
    changed = changed.replace("--worker ", f"--worker --data.root {tiny_demo} ")
    (tmp_path / "array.sh").write_text(changed)
    tasks = [
        subprocess.Popen(["bash", tmp_path / "array.sh"], env={**os.environ, "SLURM_ARRAY_TASK_ID": str(task)})
        for task in (1, 0)
    ]
    try:
        assert [task.wait(300) for task in tasks] == [0, 0]
    finally:
        for task in tasks:
            task.send_signal(signal.SIGTERM) if task.poll() is None else None
    kinds = [run.data.tags["kind"] for run in all_runs()]
    assert sorted(kinds) == ["sweep", "trial", "trial"]
    assert {run.info.status for run in all_runs()} == {"FINISHED"}


def test_the_run_on_several_nodes_parses(tmp_path):
    """Srun is not here: a stand-in runs what it is given; fit takes the line and says what it would do."""
    (tmp_path / "srun").write_text('#!/bin/bash\nshift\n"$@" --dry_run\n')
    (tmp_path / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for name in ("srun", "python"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(SCRIPTS["densenet"])
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HEAD": "head", "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_JOB_NUM_NODES": "2",
    }  # fmt: skip
    done = subprocess.run(["bash", tmp_path / "job.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = done.stdout[done.stdout.index("\nname:") :]  # below the line on the study's values
    (tmp_path / "printed.yaml").write_text(config)
    printed = load_yaml(tmp_path / "printed.yaml")
    assert printed["trainer"]["devices"] == 4
    assert printed["trainer"]["num_nodes"] == 2
    assert printed["trainer"]["strategy"] == "ddp"


SRUN = """#!/bin/bash
# what SLURM tells the tasks of two nodes, on this machine
shift
export SLURM_NTASKS=2 SLURM_NNODES=2 SLURM_STEP_ID=0 SLURM_JOB_ID=77 SLURM_JOB_NAME=fit SLURM_NODELIST=127.0.0.1
for task in 0 1; do
    SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit 1; done
"""


@pytest.mark.slow
def test_the_run_on_several_nodes_is_one_run(tmp_path, tiny_demo, store):
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for name in ("srun", "python"):
        (tmp_path / name).chmod(0o755)
    changed = SCRIPTS["densenet"]
    for before, after in (
        ('"http://${HEAD:?the machine of the MLflow server}:5000"', store),
        ("SKINCANCER_DATA=/shared/data SKINCANCER_CACHE=/shared/cache", "ON_ONE_MACHINE=1"),
    ):
        assert before in changed, before
        changed = changed.replace(before, after)
    (tmp_path / "job.sh").write_text(changed)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    environment = {
        **without_launcher(os.environ), "PATH": f"{tmp_path}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NUM_NODES": "2", "MASTER_PORT": port,
    }  # fmt: skip
    flags = [*TINY_FIT, "--data.dataset=demo", f"--data.root={tiny_demo}"]
    done = subprocess.run(
        ["bash", tmp_path / "job.sh", *flags], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert {name: run.data.params[name] for name in ("ranks", "devices")} == {"ranks": "2", "devices": "1"}
