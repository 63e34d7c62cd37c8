"""Machines, GPUs and cores of the orders of an engine."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skincancer.errors import ConfigError
from skincancer.system.hardware import most_processes

_MANY = 10_000
# Flags, in the order of the attributes of `Resources`.
FLAGS = ("workers", "cluster", "gpus_per_trial", "cpus_per_trial")


@dataclass(frozen=True)
class Resources:
    """Machines, GPUs and cores of orders.

    Attributes:
        workers: largest number of orders at the same time. None for as many as the machines have room for; without a GPU on this
            machine, one.
        cluster: address of a Ray cluster (HOST:PORT), "auto" for $RAY_ADDRESS, "local" for Ray on this machine. None for no Ray.
        gpus: GPUs of an order, at most 1. None for one where there are GPUs.
        cpus: threads of an order. None for a share of the cores of this machine on a CPU, or one core of a cluster.
    """

    workers: int | None = None
    cluster: str | None = None
    gpus: float | None = None
    cpus: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ConfigError: A value is out of range, or the address is missing.
        """
        most = most_processes() if self.cluster is None else _MANY
        if self.workers is not None and not 1 <= self.workers <= most:
            raise ConfigError(f"--workers is {self.workers}; expected 1 to {most}.")
        if self.gpus is not None and not (0 <= self.gpus <= 1 and math.isfinite(self.gpus)):
            raise ConfigError(
                f"--gpus-per-trial is {self.gpus}; expected 0 to 1, such as 0.5 for two on one GPU. One process uses one GPU at most."
            )
        if self.cpus is not None and not 1 <= self.cpus <= _MANY:
            raise ConfigError(f"--cpus-per-trial is {self.cpus}; expected 1 or more threads.")
        if self.cluster == "auto" and not os.environ.get("RAY_ADDRESS"):
            raise ConfigError(
                "--cluster is auto, but the environment variable RAY_ADDRESS is not set. Set it to HOST:PORT, or use --cluster "
                "HOST:PORT."
            )
        if self.cluster is not None and self.cluster not in ("auto", "local") and not _is_address(self.cluster):
            raise ConfigError(f"--cluster is {self.cluster!r}; expected HOST:PORT, auto or local.")

    def slots(self, gpus: int) -> int:
        """Return the number of orders that share the GPUs of one machine.

        An order uses one GPU, so shares of two GPUs do not add up.
        """
        return gpus * int(1 / (self.gpus or 1) + 1e-9)


def add_flags(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the flags of resources to the parser of a verb.

    Args:
        parser: the parser.
        what: name of an order in the plural, such as trials.
    """
    one = what.rstrip("s")
    parser.add_argument("--workers", type=int, metavar="W", help=f"concurrent {what}; default: one per GPU, or one")
    parser.add_argument(
        "--cluster", type=str, metavar="HOST:PORT", help=f"run {what} on a Ray cluster; auto: $RAY_ADDRESS; local: this machine"
    )  # fmt: skip
    parser.add_argument("--gpus_per_trial", type=float, metavar="F", help=f"share of a GPU for each {one}, at most 1")
    parser.add_argument("--cpus_per_trial", type=int, metavar="N", help=f"threads of each {one}")


def underscored(argv: Sequence[str], *names: str) -> list[str]:
    """Write the flags of resources, and `names`, with underscores.

    Other flags of the schema are dotted keys with underscores, and a parser knows one form only.
    """
    pattern = "|".join(("gpus-per-trial", "cpus-per-trial", *names))
    return [re.sub(rf"^--({pattern})(?==|$)", lambda match: "--" + match[1].replace("-", "_"), word) for word in argv]


def parse_resources(own: Mapping[str, Any]) -> Resources:
    """Return the resources of a command line, from the verb's own flags."""
    return Resources(*map(own.get, FLAGS))


def refuse_resources(own: Mapping[str, Any], remedy: str) -> None:
    """Refuse the flags of resources in a command that runs in one process.

    Raises:
        ConfigError: A flag is set, with the remedy.
    """
    for name in FLAGS:
        if own.get(name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for several processes. {remedy}")


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host and colon) and port.isdecimal() and 0 < int(port) < 65536
