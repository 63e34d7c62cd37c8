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


@dataclass(frozen=True)
class Resources:
    """Machines, GPUs and cores of orders.

    Attributes:
        workers: largest number of orders at the same time. None for as many as the machines have room for; without a GPU on this
            machine, one.
        cluster: address of a Ray cluster (HOST:PORT), "auto" for $RAY_ADDRESS, "local" for Ray on this machine. None for no Ray.
        gpus: GPUs of an order, at most 1. None for one where there are GPUs.
        cpus: threads of an order on a CPU. None for a share of the cores of this machine, or one core of a cluster.
    """

    workers: int | None = None
    cluster: str | None = None
    gpus: float | None = None
    cpus: int | None = None


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
    parser.add_argument("--cpus_per_trial", type=int, metavar="N", help=f"threads of each {one} on a CPU")


def underscored(argv: Sequence[str], *names: str) -> list[str]:
    """Write the flags of resources, and `names`, with underscores.

    Other flags of the schema are dotted keys with underscores, and a parser knows one form only.
    """
    pattern = "|".join(("gpus-per-trial", "cpus-per-trial", *names))
    return [re.sub(rf"^--({pattern})(?==|$)", lambda match: "--" + match[1].replace("-", "_"), word) for word in argv]


def parse_resources(own: Mapping[str, Any]) -> Resources:
    """Return the resources of a command line.

    Args:
        own: values of the verb's own flags.

    Raises:
        ConfigError: A value is out of range, or the address is missing.
    """
    workers, cluster, gpus, cpus = (
        own.get(name) for name in ("workers", "cluster", "gpus_per_trial", "cpus_per_trial")
    )
    most = most_processes() if cluster is None else _MANY
    if workers is not None and not 1 <= workers <= most:
        raise ConfigError(f"--workers is {workers}; expected 1 to {most}.")
    if gpus is not None and not (0 <= gpus <= 1 and math.isfinite(gpus)):
        raise ConfigError(
            f"--gpus-per-trial is {gpus}; expected 0 to 1, such as 0.5 for two on one GPU. One process uses one GPU at most."
        )
    if cpus is not None and not 1 <= cpus <= _MANY:
        raise ConfigError(f"--cpus-per-trial is {cpus}; expected 1 or more threads.")
    if cluster == "auto" and not os.environ.get("RAY_ADDRESS"):
        raise ConfigError(
            "--cluster is auto, but the environment variable RAY_ADDRESS is not set. Set it to HOST:PORT, or use --cluster HOST:PORT."
        )
    if cluster is not None and cluster not in ("auto", "local") and not _is_address(cluster):
        raise ConfigError(f"--cluster is {cluster!r}; expected HOST:PORT, auto or local.")
    return Resources(workers, cluster, gpus, cpus)


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host and colon) and port.isdecimal() and 0 < int(port) < 65536
