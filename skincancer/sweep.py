"""Hyper-parameter search: `python -m skincancer.sweep --experiment NAME --trials N`."""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.experiments import find_experiment, list_experiments
from skincancer.config.search_space import PLACE_KEYS, PRUNERS, SAMPLERS
from skincancer.errors import ConfigError, nearest
from skincancer.schema.experiment import Experiment
from skincancer.sweeps.request import Request, check_request
from skincancer.system.console import make_console, make_table, program, run_verb
from skincancer.system.hardware import most_processes
from skincancer.system.interrupts import signals_as_interrupts
from skincancer.system.yaml_files import load_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from skincancer.sweeps.trial import TrialLink


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


def join(request: Request, console: Console | None = None) -> None:
    """Run trials of a sweep of another process, until all trials have ended.

    Raises:
        RunError: The study does not exist, its run is in another MLflow store, or the images on this machine differ.
    """
    from skincancer.sweeps.driver import join_sweep

    join_sweep(request, console or make_console())


def make_parser() -> ArgumentParser:
    """Return the parser of sweep's flags."""
    parser = build_parser(
        program("sweep"), "Search hyper-parameters: an Optuna study over an experiment's search space."
    )
    parser.usage = "%(prog)s --experiment NAME --trials N [--workers W] [--study NAME] [--storage URL] [--KEY VALUE …]"
    parser.add_argument(
        "--trials", type=int, metavar="N", help="total number of trials, including those of earlier starts"
    )
    parser.add_argument("--workers", type=int, metavar="W", help="concurrent trials; default: one per GPU, or one")
    parser.add_argument("--study", type=str, metavar="NAME", help="name of the study; an existing study is resumed")
    parser.add_argument("--storage", type=str, metavar="URL", help="journal:///PATH, sqlite:///PATH or postgresql://…")
    parser.add_argument("--timeout", type=float, metavar="MIN", help="minutes after which no trial is started")
    parser.add_argument("--sampler", type=str, default="tpe", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument("--pruner", type=str, default="median", help=f"one of {', '.join(PRUNERS)}")
    parser.add_argument("--worker", action="store_true", help="join a sweep of another process")
    return parser


def _verb(argv: Sequence[str]) -> None:
    flags, own = parse_flags(make_parser(), argv)
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
    for name in ("workers", "timeout"):
        if own.get(name) is not None and not 0 < own[name] < math.inf:
            raise ConfigError(f"--{name} is {own[name]}; expected a finite number above 0.")
    if (own.get("workers") or 0) > (most := most_processes()):
        raise ConfigError(f"--workers is {own['workers']}; this machine runs at most {most} trials at the same time.")
    if own.get("study") is not None and not re.fullmatch(r"(?=.*\w)[\w.][\w. -]{0,199}", own["study"]):
        raise ConfigError(f"--study is {own['study']!r}; expected at most 200 letters, digits and . _ -.")
    request = Request(
        own.get("experiment"), flags, own.get("trials") or 0, own.get("workers"), own.get("study"), own.get("storage"),
        own.get("timeout"), own.get("sampler") or "tpe", own.get("pruner") or "median",
    )  # fmt: skip
    if not own.get("worker"):
        if not request.experiment:
            raise ConfigError(f"--experiment is missing; use one of {', '.join(list_experiments())}, or a path.")
        with signals_as_interrupts():
            sweep(request)
        return
    extra = [name for name in ("experiment", "trials", "sampler", "pruner") if name in own]
    if extra or not request.study:
        raise ConfigError(
            "--worker needs --study and --storage, and reads all other settings from the study"
            + (f"; remove {', '.join(f'--{name}' for name in extra)}." if extra else ". Set --study NAME.")
        )
    if foreign := [key for key in flags if key not in PLACE_KEYS]:
        raise ConfigError(
            f"--worker: --{foreign[0]} would make trials incomparable; a worker accepts only {', '.join(PLACE_KEYS)}."
        )
    with signals_as_interrupts(), contextlib.suppress(BrokenPipeError):
        join(request)


def _fit_trial(experiment: Experiment, link: TrialLink) -> None:
    from skincancer.fit import fit

    fit(experiment, trial=link)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, run, and return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["trial-process"]:
        from skincancer.sweeps import trial

        return trial.main(arguments[1:], _fit_trial)
    return run_verb(_verb, arguments)


if __name__ == "__main__":
    sys.exit(main())
