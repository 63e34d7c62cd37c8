"""Hyper-parameter search: `python -m skincancer.sweep --experiment NAME --trials N`."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from skincancer.config.cli import build_parser, parse_flags
from skincancer.config.experiments import find_experiment, list_experiments
from skincancer.config.resolve import resolve
from skincancer.config.search_space import PLACE_KEYS, PRUNERS, SAMPLERS, grid
from skincancer.errors import ConfigError, RunError, nearest
from skincancer.schema import TYPES, Experiment
from skincancer.sweeps.plan import Plan, used_images
from skincancer.sweeps.space_check import check_space
from skincancer.system.console import make_console, make_table, program, progress_bars, run_verb
from skincancer.system.credentials import shown
from skincancer.system.interrupts import signals_as_interrupts
from skincancer.system.yaml_files import load_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from skincancer.sweeps.report import SweepRecord
    from skincancer.sweeps.study import Sweep
    from skincancer.sweeps.trial import TrialLink


@dataclass(frozen=True)
class Request:
    """Options of a sweep.

    Args:
        experiment: Name of a shipped experiment, or a path. None joins a sweep of another process.
        flags: Dotted keys that override the experiment. A joining worker accepts only `PLACE_KEYS`.
        trials: Total number of trials, including those of earlier starts.
        workers: Concurrent trials in this process. None starts one per GPU, or one.
        study: Name of the study. None derives it from experiment, data set and split.
        storage: URL of the storage. None uses a journal next to the MLflow store.
        minutes: Time after which no trial is started.
        sampler: tpe, random or grid.
        pruner: median, hyperband or none.
    """

    experiment: str | None
    flags: Mapping[str, Any]
    trials: int = 0
    workers: int | None = None
    study: str | None = None
    storage: str | None = None
    minutes: float | None = None
    sampler: str = "tpe"
    pruner: str = "median"


def sweep(request: Request, console: Console | None = None) -> str:
    """Start or resume a sweep, and return its MLflow run id.

    Raises:
        ConfigError: The search space or an option is wrong, or differs from the existing study.
        DataError: The data cannot be used.
        RunError: The storage or the MLflow store cannot be used, or every trial fails.
    """
    assert request.experiment is not None
    started = time.monotonic()
    plan, experiment, points, notes = _check(request)
    from skincancer.data.prepare import prepare_data
    from skincancer.inference.model import mask_source
    from skincancer.metrics.names import monitor_mode
    from skincancer.models.compatibility import check_network
    from skincancer.runs.lifecycle import reap
    from skincancer.runs.store import RunStore
    from skincancer.sweeps import study
    from skincancer.sweeps.report import SweepRecord
    from skincancer.sweeps.storage import storage_url

    for point in points:
        check_network(point)
    console = console or make_console()
    for note in notes:
        console.print(note, markup=False)
    store = RunStore(experiment.tracking.uri).open()
    name = request.study or default_name(experiment)
    url = storage_url(request.storage, store.sweeps_folder / f"{name}.journal")
    with progress_bars(console) as bars:
        data = prepare_data(
            experiment.data, mask_source(experiment.data, store), bars, task=experiment.task,
            hand_crafted=experiment.model.is_hand_made,
        )  # fmt: skip
    for closed in reap(store.client):
        console.print(f"closed run {closed} as KILLED: its process exited")
    plan = replace(plan, split_hash=data.split_hash, index_hash=data.index_hash, images=used_images(data))
    opened = study.create(url, name, plan, request.trials, maximize=monitor_mode(experiment.training.monitor) == "max")
    record = SweepRecord(opened, name, data, console, _places(request), store)
    with record.start(request.trials) as run:
        console.print(
            f"study {name} in {shown(url)}; join from other machines with: {join_command(name, shown(url))}",
            markup=False,
        )
        try:
            _run_trials(opened, request, record, started)
        except BaseException:
            # The first error is the one to report.
            with contextlib.suppress(Exception):
                record.finish(run)
            raise
        record.finish(run)
    record.report()
    return run.run_id


def join(request: Request, console: Console | None = None) -> None:
    """Run trials of a sweep of another process, until all trials have ended.

    Raises:
        RunError: The study does not exist, its run is in another MLflow store, or the images on this machine differ.
    """
    started = time.monotonic()
    from mlflow.exceptions import MlflowException

    from skincancer.data.prepare import prepare_data
    from skincancer.inference.model import mask_source
    from skincancer.runs.store import RunStore
    from skincancer.sweeps import study
    from skincancer.sweeps.report import SweepRecord
    from skincancer.sweeps.storage import storage_url

    assert request.study is not None
    console = console or make_console()
    store = RunStore(request.flags.get("tracking.uri"))
    url = storage_url(request.storage, store.sweeps_folder / f"{request.study}.journal")
    opened = study.join(url, request.study, say=lambda text: console.print(text, markup=False))
    try:
        store.client.get_run(opened.parent)
    except MlflowException as error:
        raise RunError(
            f"--worker: the sweep's run {opened.parent} is not in {store}. Set --tracking.uri (or MLFLOW_TRACKING_URI) to the "
            "store of the sweep."
        ) from error
    here = opened.plan.resolve({}, _places(request))
    with progress_bars(console) as bars:
        masks = mask_source(here.data, store) if here.data.crop else None
        data = prepare_data(here.data, masks, bars, task=here.task)
    for name, value in (
        ("index_hash", data.index_hash),
        ("split_hash", data.split_hash),
        ("images", used_images(data)),
    ):
        expected = getattr(opened.plan, name)
        # Studies of older versions have no record of their images.
        if value != expected and (expected or name != "images"):
            raise RunError(
                f"--worker: the images on this machine differ from those of the sweep: {name} is {value}; expected {expected}. "
                "Set --data.root to the same data."
            )
    record = SweepRecord(opened, request.study, data, console, _places(request), store)
    _run_trials(opened, request, record, started)
    elsewhere = "; other workers continue the sweep" if not opened.is_over() else ""
    console.print(f"no trial is left for this worker{elsewhere}; the run of the sweep is {opened.parent}")


def _places(request: Request) -> dict[str, Any]:
    return {key: value for key, value in request.flags.items() if key in PLACE_KEYS and key != "tracking.uri"}


def _run_trials(opened: Sweep, request: Request, record: SweepRecord, started: float) -> None:
    from skincancer.sweeps import executor

    accelerator = record.places.get("trainer.accelerator", opened.base.trainer.accelerator)
    devices = executor.visible_devices() if accelerator in ("auto", "gpu", "cuda") else []
    workers = request.workers or max(1, len(devices))
    if 0 < len(devices) < workers:
        record.console.print(f"{workers} workers share {len(devices)} GPUs")
    runner = executor.TrialProcess(opened, record.places, record.store.client, record.folder, workers, devices)
    deadline = None if request.minutes is None else started + 60 * request.minutes
    with contextlib.closing(runner), record.live(workers) as tick:
        executor.work(opened, runner, workers, deadline=deadline, tick=tick, bury=runner.bury)


def default_name(experiment: Experiment) -> str:
    """Return the default name of a study: experiment, data set and split."""
    return re.sub(r"[^\w.]+", "-", f"{experiment.name}-{experiment.data.dataset}-{experiment.data.split}")


def join_command(name: str, url: str) -> str:
    """Return the command with which a worker joins."""
    return shlex.join(["python", "-m", "skincancer.sweep", "--worker", "--study", name, "--storage", url])


def _check(request: Request) -> tuple[Plan, Experiment, list[Experiment], list[str]]:
    """Check the experiment and the corners of its search space, without torch.

    Returns:
        Plan without data hashes; experiment; experiments with networks to check; and notes to print.
    """
    assert request.experiment is not None
    if request.trials < 1:
        raise ConfigError(f"--trials is {request.trials}; expected the total number of trials, 1 or more.")
    experiment, notes = resolve(request.experiment, request.flags)
    search, trainer = experiment.search, experiment.trainer
    if not search:
        raise ConfigError(
            f"--experiment {request.experiment} has no search: block. Add one to its file, such as\n"
            "  search:\n    model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}"
        )
    if str(trainer.devices) not in ("1", "auto") or trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.devices is {trainer.devices} (nodes: {trainer.num_nodes}); a trial uses one device. Use "
            "--workers for several devices, and --worker on other machines."
        )
    for key in search:
        if key in request.flags:
            raise ConfigError(
                f"--{key} is set on the command line and in search:. Remove the flag, or remove the key from the search: block."
            )
    if trainer.limit_val_batches != 1 and "data.batch_size" in search:
        raise ConfigError(
            f"search: data.batch_size cannot be searched with trainer.limit_val_batches {trainer.limit_val_batches}, because trials "
            "would be compared on different images. Remove one of the two keys."
        )
    content = load_yaml(find_experiment(request.experiment))
    flags = {key: value for key, value in request.flags.items() if key not in PLACE_KEYS}
    plan = Plan(experiment.name, content, flags, dict(search), request.sampler, request.pruner, "", "")
    checked = check_space(plan, _places(request))
    for key, choices in checked.unused.items():
        if request.sampler == "grid":
            raise ConfigError(
                f"--sampler grid: {key} has no effect with {choices}, so the grid would repeat trials. Sweep the choices "
                "with which it has an effect separately, or use another sampler."
            )
        notes.append(f"{key} has no effect with {choices}; such trials ignore it")
    if request.sampler == "grid":
        grid(search, TYPES)
    return plan, experiment, checked.networks, notes


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
        if own.get(name) is not None and own[name] <= 0:
            raise ConfigError(f"--{name} is {own[name]}; expected a number above 0.")
    if own.get("study") is not None and not re.fullmatch(r"[\w.][\w. -]*", own["study"]):
        raise ConfigError(f"--study is {own['study']!r}; expected letters, digits and . _ - inside.")
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
