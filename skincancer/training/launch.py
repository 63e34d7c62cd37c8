"""Ranks of a run: count them, and check that the launcher starts as many.

A rank is one of the processes that train together, one per device. Lightning, torchrun or srun in a SLURM job starts the ranks.
Lightning detects torchrun and SLURM by their environment variables.
"""

from __future__ import annotations

import os
import sys

from skincancer.errors import ConfigError, RunError
from skincancer.schema.training import TrainerConfig
from skincancer.system.launcher import PARENT, launcher


def count_ranks(trainer: TrainerConfig) -> int:
    """Return the number of processes that train together: devices × nodes.

    Devices `auto` are the GPUs of this machine, or one CPU.
    """
    devices = str(trainer.devices)
    if devices == "auto":
        import torch

        gpus = torch.cuda.device_count() if trainer.accelerator in ("auto", "gpu", "cuda") else 0
        return max(1, gpus) * trainer.num_nodes
    return int(devices) * trainer.num_nodes


def check_launcher(trainer: TrainerConfig) -> None:
    """Check that the launcher starts as many ranks as the experiment needs.

    Raises:
        ConfigError: torchrun or SLURM has started another number of processes.
        RunError: several devices in a notebook or in a script.
    """
    ranks = count_ranks(trainer)
    requested = f"trainer.devices {trainer.devices} × trainer.num_nodes {trainer.num_nodes} are {ranks} processes"
    if launcher() == "torchrun":
        if (started := int(os.environ.get("WORLD_SIZE", "1"))) != ranks:
            raise ConfigError(
                f"{requested}, but torchrun started {started}. Use the same number for --trainer.devices and torchrun's "
                "--nproc_per_node, and for --trainer.num_nodes and --nnodes."
            )
    elif launcher() == "SLURM":
        # Without a step the process is the script of the job, of which SLURM starts one for any number of tasks.
        if "SLURM_STEP_ID" not in os.environ:
            if ranks > 1:
                raise ConfigError(
                    f"{requested}, which SLURM starts only with srun. Use srun python -m skincancer.fit …"
                )
        elif (started := int(os.environ["SLURM_NTASKS"])) != ranks:
            raise ConfigError(
                f"{requested}, but SLURM runs {started} tasks. Use the same number for --trainer.num_nodes and #SBATCH --nodes, and "
                "for --trainer.devices and #SBATCH --ntasks-per-node. For independent runs, set SLURM_JOB_NAME=interactive."
            )
        elif ranks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ConfigError(f"{requested}. Request them with #SBATCH --ntasks-per-node, not with --ntasks.")
    elif ranks > 1 and PARENT not in os.environ:
        _check_left_over(requested)
        if not _is_command_line():
            raise RunError(
                f"{requested}, which are all started with the command line of the first process. Use python -m skincancer.fit …, "
                "torchrun or SLURM; from a notebook or a script, use one device."
            )
        if trainer.num_nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            raise ConfigError(
                f"{requested}, but the addresses of the other nodes are unknown. Use torchrun --nnodes {trainer.num_nodes} on each "
                "node, or srun in a SLURM job."
            )


def _check_left_over(requested: str) -> None:
    """Check that no other launcher has started this process.

    Raises:
        ConfigError: the environment has the rank of a process of another launcher, or SLURM has started several tasks.
    """
    left = [name for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK") if name in os.environ]
    if left and not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        raise ConfigError(
            f"the environment variable {left[0]} is {os.environ[left[0]]}, but neither torchrun nor SLURM started this process. "
            f"Unset {' and '.join(left)}, because {requested}, which this process starts itself."
        )
    if "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise ConfigError(
            f"{requested}, and each of the {os.environ['SLURM_NTASKS']} tasks of srun would start all of them in an interactive job. "
            "Use srun --ntasks 1, or sbatch."
        )


def _is_command_line() -> bool:
    # Lightning starts the other ranks with the command line in `__main__` and `sys.argv`.
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name in ("skincancer.fit", "skincancer.__main__")
