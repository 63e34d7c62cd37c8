"""Train an experiment and record a complete run: `python -m skincancer.fit --experiment NAME`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer.config.cli import build_parser, flag_words, parse_flags
from skincancer.config.experiments import list_experiments
from skincancer.config.resolve import resolve
from skincancer.engines.resources import add_flags, parse_resources, refuse_resources, underscored
from skincancer.errors import ConfigError, RunError
from skincancer.runs import registry
from skincancer.runs.artifacts import config_to_keep
from skincancer.schema.experiment import Experiment
from skincancer.schema.folds import expand_folds
from skincancer.system.console import make_console, make_table, program, run_verb
from skincancer.system.interrupts import signals_as_interrupts
from skincancer.system.yaml_files import dump_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from skincancer.training.callbacks import EpochReporter


def fit(
    experiment: Experiment, resume: str | None = None, register: str | None = None, trial: EpochReporter | None = None
) -> str:
    """Train an experiment or resume one of its runs. Return the MLflow run id.

    Args:
        experiment: return value of `skincancer.config.resolve.resolve`.
        resume: id of an interrupted run with the config of `experiment`.
        register: NAME or NAME@ALIAS of the registered model. None on resume keeps the name of the first start.
        trial: receiver of the progress of a sweep's trial. Trials never use the test set.

    Raises:
        ConfigError: the experiment cannot run on this machine or these data.
        DataError: the data cannot be used.
        WeightsError: the first weights are not available.
        RunError: the run failed, or cannot be resumed.
    """
    # Checks come in the order of their cost.
    target = registry.parse_target(register) if register is not None else None
    if resume and not experiment.model.is_network:
        raise RunError(
            f"--resume {resume}: {experiment.model.classifier} is fitted in one step and cannot be resumed. Start a new run: "
            f"python -m skincancer.fit --experiment {experiment.name} …"
        )
    experiment = _check_models(experiment, resume)
    # This module loads Lightning, pandas and MLflow. Errors of the command line are reported before.
    from skincancer.training.session import train

    return train(experiment, resume, target, trial)


def _check_models(experiment: Experiment, resume: str | None) -> Experiment:
    # The module loads torch.
    from skincancer.models.compatibility import check_models

    return check_models(experiment, resume)


def make_parser() -> ArgumentParser:
    """Return the parser of fit's flags."""
    parser = build_parser(
        program("fit"), "Train an experiment, test its best checkpoint, and record a complete run in MLflow."
    )
    parser.add_argument("--resume", type=str, metavar="RUN_ID", help="continue an interrupted run, in the same run")
    parser.add_argument(
        "--register", type=str, metavar="NAME[@ALIAS]", help="register the trained model (default alias: candidate)"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the resolved config and exit")
    parser.add_argument("--reap", action="store_true", help="close stale runs and exit")
    parser.add_argument(
        "--older_than", type=str, metavar="24h", help="with --reap: also runs of other hosts without a heartbeat for this long"
    )  # fmt: skip
    add_flags(parser, "folds")
    return parser


def _fit_folds(own: Mapping[str, Any], flags: Mapping[str, Any], parser: ArgumentParser) -> None:
    """Fit an experiment on every fold of `--data.split 'fold:*/5'`."""
    for name in ("resume", "register", "dry_run"):
        if own.get(name):
            raise ConfigError(
                f"--{name.replace('_', '-')} is for a single run, but --data.split is {flags['data.split']}. Use a single fold."
            )
    console, split = make_console(), flags["data.split"]
    resolved = [resolve(own["experiment"], {**flags, "data.split": fold}, parser) for fold in expand_folds(split)]
    experiments = [experiment for experiment, _ in resolved]
    for note in resolved[0][1]:
        console.print(note, markup=False)
    first = experiments[0]
    trainer = first.trainer
    if str(trainer.devices) not in ("1", "auto") or trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.devices is {trainer.devices} (nodes: {trainer.num_nodes}); with --data.split {flags['data.split']} each fold "
            "uses one device, and several folds run at the same time (--workers). Use --trainer.devices 1."
        )
    if first.data.groups:
        from skincancer.data.groups import read_groups

        read_groups(Path(first.data.groups))
    more = {key: value for key, value in flags.items() if key not in ("data.dataset", "data.split", "seed", "plugins")}
    command = [
        "--experiments", own["experiment"], "--splits", split, "--dataset", first.data.dataset, "--seeds", str(first.seed),
        *flag_words(more), *(f"--plugin={module}" for module in flags.get("plugins", ())),
    ]  # fmt: skip
    from skincancer.training.folds import fit_folds

    with signals_as_interrupts():
        fit_folds(experiments, command, parse_resources(own), console)


def _verb(argv: Sequence[str]) -> None:
    console = make_console()
    argv = underscored(argv, "dry-run", "older-than")
    parser = make_parser()
    flags, own = parse_flags(parser, argv)
    if own.get("list"):
        rows = list(list_experiments().items())
        console.print(make_table("experiments", ["name", "description and source of the recipe"], rows))
        return
    if own.get("older_than") and not own.get("reap"):
        raise ConfigError(f"--older-than is {own['older_than']}, but --reap is missing. Use both.")
    if own.get("reap"):
        from skincancer.runs.lifecycle import reap_runs
        from skincancer.runs.store import RunStore

        reap_runs(RunStore(flags.get("tracking.uri")), own.get("older_than"))
        return
    if not own.get("experiment") and not own.get("resume"):
        raise ConfigError(f"--experiment NAME is missing. Use one of {', '.join(list_experiments())}, or a path.")
    if expand_folds(str(flags.get("data.split", ""))):
        _fit_folds(own, flags, parser)
        return
    refuse_resources(own, "Add --data.split 'fold:*/5' for several folds, or remove the flag.")
    resume, notes = own.get("resume"), list[str]()
    if resume:
        from skincancer.training.resume import load_resumed

        experiment = load_resumed(resume, own.get("experiment"), flags, parser)
    else:
        experiment, notes = resolve(own["experiment"], flags, parser)
    for note in notes:
        console.print(note, markup=False)
    if experiment.data.groups and not resume:
        from skincancer.data.groups import read_groups

        read_groups(Path(experiment.data.groups))
    if own.get("dry_run"):
        experiment = _check_models(experiment, resume)
        console.print(dump_yaml(config_to_keep(experiment)), markup=False)
        return
    with signals_as_interrupts():
        fit(experiment, resume, own.get("register"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
