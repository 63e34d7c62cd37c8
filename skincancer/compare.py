"""Compare finished runs, and train missing ones on request.

`python -m skincancer.compare --experiments A B --splits 80:20 70:30 40:60`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skincancer.comparison.request import (
    Request,
    check_metrics,
    resolve_entry,
)
from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.experiments import list_experiments
from skincancer.engines.resources import add_flags, parse_resources, refuse_resources, underscored
from skincancer.errors import ConfigError
from skincancer.system.console import make_console, program, run_verb
from skincancer.system.files import check_folder
from skincancer.system.interrupts import signals_as_interrupts

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from skincancer.comparison.tables import Comparison


_INSTEAD = {"data.split": "--splits", "seed": "--seeds", "data.dataset": "--dataset"}


def compare(
    request: Request, *, run_missing: bool = False, out: Path | None = None, console: Console | None = None
) -> tuple[str, Comparison]:
    """Compare finished fits, print the comparison and log it as a run.

    Args:
        request: experiments, splits, metrics and runs to compare.
        run_missing: whether to train missing runs, each in its own process.
        out: additional folder for the files.
        console: console for the tables.

    Returns:
        The id of the logged run, and the comparison.

    Raises:
        ConfigError: an experiment, split, metric or key is unknown.
        RunError: there is no run, a run cannot be compared, or training of a missing run failed.
    """
    requests = [resolve_entry(name, split, request) for name in request.experiments for split in request.splits]
    # The plugins of explicit runs may define metrics, so check those below.
    if not request.runs:
        check_metrics(request.metrics)
    if out is not None:
        check_folder(out, "--out")
    from skincancer.comparison.driver import compare_requests

    return compare_requests(request, requests, run_missing, out, console or make_console())


def make_parser() -> ArgumentParser:
    """Return the parser of the flags of compare."""
    parser = build_parser(
        program("compare"), "Compare finished runs. --KEY VALUE selects runs by a value of their config."
    )
    parser.usage = "%(prog)s --experiments A B … [--splits 80:20 …] [--dataset NAME] [--KEY VALUE …]"
    parser.add_argument("--experiments", type=str, nargs="+", metavar="NAME", help="names or paths of experiments")
    parser.add_argument("--splits", type=str, nargs="+", help="splits (default 80:20); fold:*/5 pools five folds")
    parser.add_argument("--dataset", type=str, help="data set of the runs (default demo)")
    parser.add_argument("--metric", type=str, nargs="+", help="metrics (default balanced_accuracy, for masks jaccard)")
    parser.add_argument("--seeds", type=int, nargs="+", help="training seeds (default: all existing ones)")
    parser.add_argument(
        "--runs", type=str, nargs="+", metavar="RUN_ID", help="explicit runs; they replace others of the same seed"
    )
    parser.add_argument("--run_missing", action="store_true", help="train missing runs")
    add_flags(parser, "runs")
    parser.add_argument("--out", type=str, metavar="DIR", help="additional folder for page, tables and figures")
    return parser


def _verb(argv: Sequence[str]) -> None:
    flags, own = parse_flags(make_parser(), underscored(argv, "run-missing"))
    if own.get("experiment") or own.get("list"):
        raise ConfigError("--experiment and --list are not flags of compare; use --experiments A B … (see fit --list).")
    uri = flags.pop("tracking.uri", None)
    dataset = flags.pop("data.dataset", None)
    if dataset and own.get("dataset") not in (None, dataset):
        raise ConfigError(f"--dataset {own['dataset']} and --data.dataset {dataset} contradict each other; use one.")
    for key, instead in _INSTEAD.items():
        if key in flags:
            raise ConfigError(f"--{key} is not a flag of compare; use {instead}.")
    if not own.get("experiments") and not own.get("runs"):
        raise ConfigError(
            f"--experiments is missing; use paths or names of {', '.join(list_experiments())}; or use --runs RUN_ID …"
        )
    if negative := [seed for seed in own.get("seeds") or () if seed < 0]:
        raise ConfigError(f"--seeds is {negative[0]}; expected whole numbers of 0 or more.")
    if not own.get("run_missing"):
        refuse_resources(own, "Add --run-missing to train missing runs, or remove the flag.")
    request = Request(
        experiments=tuple(dict.fromkeys(own.get("experiments") or ())), splits=tuple(dict.fromkeys(own.get("splits") or ("80:20",))),
        dataset=own.get("dataset") or dataset or "demo", metrics=tuple(own.get("metric") or ()),
        seeds=tuple(own["seeds"]) if own.get("seeds") else None, runs=tuple(own.get("runs") or ()), flags=flags, uri=uri,
        resources=parse_resources(own),
    )  # fmt: skip
    with signals_as_interrupts():
        compare(request, run_missing=bool(own.get("run_missing")), out=Path(own["out"]) if own.get("out") else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
