"""Environment variables that torchrun, SLURM and this package set for distributed processes."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Set for the ranks that Lightning starts: id of the process that starts them, and of the run.
PARENT, RUN_ID = "SKINCANCER_RANK_ZERO", "SKINCANCER_RUN_ID"
_STARTED = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", PARENT, RUN_ID)
_SLURM = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID")


def is_rank_zero() -> bool:
    """Return whether this process is rank 0, which writes the run.

    Lightning, torchrun and SLURM set the environment variables.
    """
    return all(
        int(os.environ.get(name) or 0) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    )


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables of any launcher."""
    return {
        name: value
        for name, value in environment.items()
        if name not in (*_STARTED, *_SLURM) and not name.startswith("TORCHELASTIC_")
    }


def launcher() -> str:
    """Return the launcher of this process: torchrun, SLURM, or "" without one."""
    # torchrun may run inside a SLURM job, so torchrun is checked first, as in Lightning.
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun"
    in_slurm = "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    return "SLURM" if in_slurm else ""
