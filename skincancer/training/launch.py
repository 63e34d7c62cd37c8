"""What starts the ranks of a run, and whether it starts as many as the experiment asks for.

A rank is a process that trains with others, one a device. Ranks are started by fit's own command line, by torchrun, or by srun in a
SLURM job, as Lightning detects them by their environment variables.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from skincancer.errors import ConfigError, RunError
from skincancer.schema import TrainerConfig

PARENT = "SKINCANCER_RANK_ZERO"  # the process that started this one; for processes of ours alone
_STARTED = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", PARENT)
_SLURM = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID")


def is_rank_zero() -> bool:
    """Say whether this process is the one that writes the run (Lightning, torchrun and SLURM set these)."""
    return all(
        int(os.environ.get(name) or 0) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    )


def count_ranks(trainer: TrainerConfig) -> int:
    """Return how many processes train together: devices × nodes. Devices `auto` are the GPUs of this machine, 1 without."""
    devices = str(trainer.devices)
    if devices == "auto":
        import torch

        gpus = torch.cuda.device_count() if trainer.accelerator in ("auto", "gpu", "cuda") else 0
        return max(1, gpus) * trainer.num_nodes
    return int(devices) * trainer.num_nodes


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what torchrun, SLURM or `skincancer.training.distributed` said, for a process that trains alone."""
    return {
        name: value
        for name, value in environment.items()
        if name not in (*_STARTED, *_SLURM) and not name.startswith("TORCHELASTIC_")
    }


def launcher() -> str:
    """Return what started the processes of this run: torchrun, SLURM, or "" for nobody."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # before SLURM, as Lightning has it: torchrun may run inside a job
        return "torchrun"
    in_slurm = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    return "SLURM" if in_slurm else ""


def check_launcher(trainer: TrainerConfig) -> None:
    """Check that what starts the ranks starts as many as the experiment asks for: this command line, torchrun or SLURM.

    Raises:
        ConfigError: torchrun or SLURM started another number of processes.
        RunError: several devices, and called from a notebook or another script.
    """
    ranks = count_ranks(trainer)
    asked = f"trainer.devices {trainer.devices} × trainer.num_nodes {trainer.num_nodes} are {ranks} processes"
    found = launcher()
    if found == "torchrun":
        if (started := int(os.environ["WORLD_SIZE"])) != ranks:
            raise ConfigError(
                f"{asked}, but torchrun started {started}. Give --trainer.devices as torchrun's --nproc_per_node, and "
                "--trainer.num_nodes as its --nnodes."
            )
    elif found == "SLURM":
        if "SLURM_STEP_ID" not in os.environ:  # the job's script itself, one process whatever the number of tasks
            if ranks > 1:
                raise ConfigError(f"{asked}, which SLURM starts only with srun: srun python -m skincancer.fit …")
        elif (started := int(os.environ["SLURM_NTASKS"])) != ranks:
            raise ConfigError(
                f"{asked}, but SLURM runs {started} tasks. Give #SBATCH --nodes as --trainer.num_nodes and --ntasks-per-node as "
                "--trainer.devices."
            )
        elif ranks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ConfigError(f"{asked}: tell SLURM so with #SBATCH --ntasks-per-node, not with --ntasks.")
    elif ranks > 1 and "LOCAL_RANK" not in os.environ:
        main = getattr(sys.modules["__main__"], "__spec__", None)
        if main is None or main.name != "skincancer.fit":
            raise RunError(
                f"{asked}, and each is started with the command line of the first. Use python -m skincancer.fit …, torchrun or "
                "SLURM; from a notebook or a script, use one device."
            )
        if trainer.num_nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            raise ConfigError(
                f"{asked}, and nothing here knows the other nodes. Start with torchrun --nnodes {trainer.num_nodes} on "
                "each, or with srun in a SLURM job."
            )
