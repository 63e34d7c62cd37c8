"""Ranks of a run: count them, and check that the launcher starts as many.

A rank is one of the processes that train together, one per device. Lightning, torchrun or srun in a SLURM job starts the ranks.
Lightning detects torchrun and SLURM by their environment variables.
"""

from __future__ import annotations

import os
import sys

from skincancer.errors import ConfigError, RunError
from skincancer.schema import TrainerConfig
from skincancer.system.launcher import launcher


def count_ranks(trainer: TrainerConfig) -> int:
    """Return how many processes train together: devices × nodes. Devices `auto` are the GPUs of this machine, 1 without."""
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
        if not _is_command_line():
            raise RunError(
                f"{asked}, and each is started with the command line of the first. Use python -m skincancer.fit …, torchrun or "
                "SLURM; from a notebook or a script, use one device."
            )
        if trainer.num_nodes > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
            raise ConfigError(
                f"{asked}, and nothing here knows the other nodes. Start with torchrun --nnodes {trainer.num_nodes} on "
                "each, or with srun in a SLURM job."
            )


def _is_command_line() -> bool:
    """Return whether Lightning can start this command line again, which it takes from `__main__` and `sys.argv`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name in ("skincancer.fit", "skincancer.__main__")
