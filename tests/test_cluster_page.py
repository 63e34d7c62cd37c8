"""The scripts of docs/clusters.md: checked by shellcheck, and run by SLURM with small numbers."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import machines
import psutil
import pytest
from conftest import TINY_FIT, all_runs
from machines import Cluster, wait_until

from skincancer.system.yaml_files import load_yaml

PAGE = Path(__file__).parents[1] / "docs" / "clusters.md"
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.S | re.M)
SCRIPTS = {re.search(r"--job-name=(\w+)", block)[1]: block for block in BLOCKS if block.startswith("#!/bin/bash")}


def test_there_are_scripts_for_one_node_a_cluster_and_a_run_on_several_nodes():
    assert sorted(SCRIPTS) == ["densenet", "lesions", "onenode"]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_shellcheck_finds_nothing(number, tmp_path):
    path = tmp_path / "block.sh"
    path.write_text(BLOCKS[number])
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--shell=bash", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_run_on_several_nodes_parses(tmp_path):
    """A stub of srun runs its command, which prints the configuration."""
    (tmp_path / "srun").write_text('#!/bin/bash\nshift\n"$@" --dry_run\n')
    (tmp_path / "python").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for name in ("srun", "python"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(SCRIPTS["densenet"])
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HEAD": "head", "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "8",
    }  # fmt: skip
    done = subprocess.run(["bash", tmp_path / "job.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = done.stdout[done.stdout.index("\nname:") :]  # below the line on the study's values
    (tmp_path / "printed.yaml").write_text(config)
    printed = load_yaml(tmp_path / "printed.yaml")
    assert printed["trainer"]["devices"] == 4
    assert printed["trainer"]["num_nodes"] == 2
    assert printed["trainer"]["strategy"] == "ddp"


CONF = """
ClusterName=test
SlurmctldHost=alpha
SlurmUser=root
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName=alpha,beta CPUs=2
PartitionName=main Nodes=ALL Default=YES
"""


def slurm_missing() -> str:
    """Return why SLURM cannot run here, "" if it can."""
    programs = ("slurmctld", "slurmd", "munged", "sbatch")
    if names := [name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]:
        return f"needs {', '.join(names)} (apt-get install slurmctld slurmd munge slurm-client)"
    return machines.missing()


@pytest.fixture(scope="module")
def slurm(session_cache) -> Iterator[Cluster]:
    """SLURM on two machines."""
    if why := slurm_missing():
        pytest.skip(why)
    with machines.cluster({"SKINCANCER_CACHE": str(session_cache)}) as cluster:
        folder = cluster.folder
        cluster.environment |= {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{cluster.environment['PATH']}:/usr/sbin",
        }
        (folder / "slurm.conf").write_text(CONF.format(folder=folder))
        for name in ("munge", "state", "spool_alpha", "spool_beta"):
            (folder / name).mkdir(mode=0o755)
        (folder / "munge/key").write_bytes(os.urandom(64))
        (folder / "munge/key").chmod(0o600)
        munged = (
            f"munged --foreground --force --socket={folder}/munge/socket --key-file={folder}/munge/key "
            + " ".join(f"--{name}-file={folder}/munge/{name}" for name in ("pid", "log", "seed"))
        )
        cluster.add("alpha", command=f"{munged} & sleep 2; slurmctld -D & slurmd -D -N alpha")
        cluster.add("beta", command="slurmd -D -N beta")

        def idle() -> bool:
            states = cluster.head.run("sinfo", "--noheader", "--format=%T %D")
            return states.wait() == 0 and states.output.split() == ["idle", "2"]

        wait_until(idle, "both nodes are idle")
        yield cluster


def submit(slurm: Cluster, name: str, folder: Path, store: str, root: Path, *flags: str) -> str:
    """Run a script of the page in SLURM with small numbers, and return its output."""
    script = SCRIPTS[name]
    changes = {
        r'"http://\$\{HEAD:[^"]*:5000"': store, r"SKINCANCER_DATA=/shared/data SKINCANCER_CACHE=/shared/cache": "SMALL=1",
        r"#SBATCH --gpus-per-node=4\n": "", r"--cpus-per-task=\d+": "--cpus-per-task=1",
        r"--data.dataset ham10000": f"--data.dataset demo --data.root {root}",
    }  # fmt: skip
    for before, after in changes.items():
        script, count = re.subn(before, after, script)
        assert count == 1, before
    script = re.sub(r"--nodes=4", "--nodes=2", script)
    script = re.sub(r"--ntasks-per-node=4", "--ntasks-per-node=1", script)
    script = re.sub(r"--trials 200", "--trials 3", script)
    (folder / "job.sh").write_text(script)
    output = folder / "output.txt"
    job = slurm.head.run("sbatch", "--wait", f"--output={output}", str(folder / "job.sh"), *TINY_FIT, *flags)
    code = job.wait()
    text = output.read_text() if output.exists() else ""
    assert code == 0, job.output + text
    return text


@pytest.mark.slow
def test_the_script_for_one_node(slurm, tmp_path, tiny_demo, store):
    output = submit(slurm, "onenode", tmp_path, store, tiny_demo)
    assert "the best of 3 trials" in output
    assert {run.info.status for run in all_runs()} == {"FINISHED"}
    assert sorted(run.data.tags["kind"] for run in all_runs()) == ["sweep", "trial", "trial", "trial"]


@pytest.mark.slow
def test_the_script_for_a_cluster(slurm, tmp_path, tiny_demo, store):
    output = submit(slurm, "lesions", tmp_path, store, tiny_demo)
    assert "the best of 3 trials" in output
    trials = [run for run in all_runs() if run.data.tags["kind"] == "trial"]
    assert len(trials) == 3
    assert {run.info.status for run in all_runs()} == {"FINISHED"}
    assert {run.data.tags["host"] for run in trials} == {"alpha", "beta"}
    # The job has ended, so the processes of Ray on both nodes have.
    left = [" ".join(psutil.Process(pid).cmdline()) for machine in slurm.machines.values() for pid in machine.pids()]
    assert not [line for line in left if "raylet" in line or "order_process" in line]


@pytest.mark.slow
def test_the_run_on_several_nodes_is_one_run(slurm, tmp_path, tiny_demo, store):
    submit(slurm, "densenet", tmp_path, store, tiny_demo)
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert {name: run.data.params[name] for name in ("ranks", "devices")} == {"ranks": "2", "devices": "1"}
