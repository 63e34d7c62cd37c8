"""Hyper-parameter search: `python -m skincancer.sweep --experiment NAME --trials N`."""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.experiments import find_experiment, list_experiments
from skincancer.config.search_space import PRUNERS, SAMPLERS
from skincancer.engines.resources import add_flags, parse_resources, underscored
from skincancer.errors import ConfigError, nearest
from skincancer.sweeps.request import Request, check_request
from skincancer.system.console import make_console, make_table, program, run_verb
from skincancer.system.interrupts import signals_as_interrupts
from skincancer.system.yaml_files import load_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.console import Console


def sweep(request: Request, console: Console | None = None) -> str:
    """Start or resume a sweep, and return its MLflow run id.

    Raises:
        ConfigError: The search space or an option is wrong, or differs from the existing study.
        DataError: The data cannot be used.
        RunError: The storage or the MLflow store cannot be used, or every trial fails.
    """
    started, console = time.monotonic(), console or make_console()
    plan, experiment, points, notes = check_request(request)
    for note in notes:
        console.print(note, markup=False)
    from skincancer.sweeps.driver import run_sweep

    return run_sweep(request, plan, experiment, points, console, started)


def make_parser() -> ArgumentParser:
    """Return the parser of sweep's flags."""
    parser = build_parser(
        program("sweep"), "Search hyper-parameters: an Optuna study over an experiment's search space."
    )
    parser.usage = "%(prog)s --experiment NAME --trials N [--workers W] [--cluster HOST:PORT] [--study NAME] [--storage URL] [--KEY V …]"
    parser.add_argument(
        "--trials", type=int, metavar="N", help="total number of trials, including those of earlier starts"
    )
    add_flags(parser, "trials")
    parser.add_argument("--study", type=str, metavar="NAME", help="name of the study; an existing study is resumed")
    parser.add_argument("--storage", type=str, metavar="URL", help="journal:///PATH, sqlite:///PATH or postgresql://…")
    parser.add_argument("--timeout", type=float, metavar="MIN", help="minutes after which no trial is started")
    parser.add_argument("--sampler", type=str, default="tpe", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument("--pruner", type=str, default="median", help=f"one of {', '.join(PRUNERS)}")
    return parser


def _verb(argv: Sequence[str]) -> None:
    flags, own = parse_flags(make_parser(), underscored(argv))
    if own.get("list"):
        rows = [
            (name, ", ".join(load_yaml(find_experiment(name))["search"]))
            for name in list_experiments()
            if load_yaml(find_experiment(name)).get("search")
        ]
        make_console().print(make_table("experiments with a search: block", ["name", "searched keys"], rows))
        return
    for name, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if own.get(name, allowed[0]) not in allowed:
            raise ConfigError(
                f"--{name} is {own[name]!r}; expected one of {', '.join(allowed)}.{nearest(own[name], allowed)}"
            )
    if own.get("timeout") is not None and not 0 < own["timeout"] < math.inf:
        raise ConfigError(f"--timeout is {own['timeout']}; expected a finite number of minutes above 0.")
    if own.get("study") is not None and not re.fullmatch(r"(?=.*\w)[\w.][\w. -]{0,199}", own["study"]):
        raise ConfigError(f"--study is {own['study']!r}; expected at most 200 letters, digits and . _ -.")
    if not own.get("experiment"):
        raise ConfigError(f"--experiment is missing; use one of {', '.join(list_experiments())}, or a path.")
    request = Request(
        own["experiment"], flags, own.get("trials") or 0, own.get("study"), own.get("storage"), own.get("timeout"),
        own.get("sampler") or "tpe", own.get("pruner") or "median", parse_resources(own),
    )  # fmt: skip
    with signals_as_interrupts():
        sweep(request)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
