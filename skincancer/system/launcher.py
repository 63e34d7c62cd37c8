"""Environment variables that torchrun, SLURM and this package set for distributed processes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from skincancer.errors import ConfigError

# Set for the ranks that Lightning starts: id of the process that starts them, and of the run.
PARENT, RUN_ID = "SKINCANCER_RANK_ZERO", "SKINCANCER_RUN_ID"
_STARTED = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", PARENT, RUN_ID)
_SLURM = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_ID")


# Whole numbers, some of which Lightning reads as soon as it is imported.
_NUMBERS = (
    "LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_PORT", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE",
    "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "JSM_NAMESPACE_RANK",
)  # fmt: skip
# Variables with the rank of a process, by launcher.
_RANKS = {"torchrun": ("RANK",), "SLURM": ("SLURM_PROCID",), "": ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK")}


def check_numbers() -> None:
    """Check the environment variables of launchers.

    Raises:
        ConfigError: a variable is not a whole number.
    """
    for name in _NUMBERS:
        value = os.environ.get(name, "0")
        if not value.isdecimal():
            raise ConfigError(f"the environment variable {name} is {value!r}; expected a whole number. Unset it.")


def is_rank_zero(ranks: int | None = None) -> bool:
    """Return whether this process is rank 0, which writes the run.

    Args:
        ranks: number of processes that train together, None if not yet known. A single process is rank 0, whatever variables a launcher
            or another program has left in its environment.
    """
    return ranks == 1 or all(int(os.environ.get(name, "0")) == 0 for name in _RANKS[launcher()])


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
