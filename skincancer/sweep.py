"""Search hyper-parameters: `python -m skincancer.sweep --experiment NAME --trials N`, over the experiment's `search:` block."""

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
    """What to sweep, and how.

    Args:
        experiment: a shipped experiment's name or a path; None joins a sweep that another process has started.
        flags: dotted keys that go before the experiment's; for a joining worker only those of `PLACE_KEYS`.
        trials: how many there are to be in all, those of earlier starts among them.
        workers: trials at once in this process; None: one for every GPU, or one.
        study: its name; None: of experiment, data set and split.
        storage: URL; None: a journal beside the MLflow store.
        minutes: start no trial after so long.
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
    """Start a sweep, or go on with one that was stopped; return its MLflow run id.

    Raises:
        ConfigError: the space, or what is asked for, is wrong, or differs from the study's.
        DataError: the data cannot be used.
        RunError: the storage or the MLflow store cannot be used, or every trial fails.
    """
    assert request.experiment is not None
    started = time.monotonic()
    plan, experiment, points, notes = _check(request)
    from skincancer.data.prepare import prepare_data
    from skincancer.inference.model import mask_source
    from skincancer.metrics.names import monitor_mode
    from skincancer.models.factory import check_network
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
        console.print(f"closed run {closed} as KILLED: its process is gone")
    plan = replace(plan, split_hash=data.split_hash, index_hash=data.index_hash, images=used_images(data))
    opened = study.create(url, name, plan, request.trials, maximize=monitor_mode(experiment.training.monitor) == "max")
    record = SweepRecord(opened, name, data, console, _places(request), store)
    with record.start(request.trials) as run:
        console.print(
            f"study {name} in {shown(url)}; other machines join by: {join_command(name, shown(url))}", markup=False
        )
        try:
            _run_trials(opened, request, record, started)
        except BaseException:
            with contextlib.suppress(Exception):  # what ended the sweep is to be told
                record.finish(run)
            raise
        record.finish(run)
    record.report()
    return run.run_id


def join(request: Request, console: Console | None = None) -> None:
    """Run trials of a sweep that another process has started, until it has its total.

    Raises:
        RunError: there is no such study, its run is in another MLflow store, or the images here are others.
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
    opened = study.join(url, request.study, tell=lambda text: console.print(text, markup=False))
    try:
        store.client.get_run(opened.parent)
    except MlflowException as error:
        raise RunError(
            f"--worker: the sweep's run {opened.parent} is not in {store}. Give --tracking.uri (or "
            "MLFLOW_TRACKING_URI) of the store that the sweep writes to."
        ) from error
    here = opened.plan.resolve({}, _places(request))
    with progress_bars(console) as bars:
        masks = mask_source(here.data, store) if here.data.crop else None
        data = prepare_data(here.data, masks, bars, task=here.task)
    for what, ours in (("index_hash", data.index_hash), ("split_hash", data.split_hash), ("images", used_images(data))):
        theirs = getattr(opened.plan, what)
        if ours != theirs and (theirs or what != "images"):  # a study of an older version does not know its images
            raise RunError(
                f"--worker: the images here are not those of the sweep: {what} is {ours}, and the study has {theirs}. Give "
                "--data.root of the same data."
            )
    record = SweepRecord(opened, request.study, data, console, _places(request), store)
    _run_trials(opened, request, record, started)
    left = "; the sweep goes on elsewhere" if not opened.is_over() else ""
    console.print(f"no trial is left for this worker{left}; the sweep's run is {opened.parent}")


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
    """Return the name of a study that was given none: experiment, data set and split."""
    return re.sub(r"[^\w.]+", "-", f"{experiment.name}-{experiment.data.dataset}-{experiment.data.split}")


def join_command(name: str, url: str) -> str:
    """Return the command that a worker joins by."""
    return shlex.join(["python", "-m", "skincancer.sweep", "--worker", "--study", name, "--storage", url])


def _check(request: Request) -> tuple[Plan, Experiment, list[Experiment], list[str]]:
    """Resolve the experiment, and the corners of its space, as far as can be known without torch.

    Returns:
        The plan, still without its data; the experiment; those whose networks are still to be checked; and notes to print.
    """
    assert request.experiment is not None
    if request.trials < 1:
        raise ConfigError(f"--trials is {request.trials}; give how many there are to be in all, 1 or more.")
    experiment, notes = resolve(request.experiment, request.flags)
    search, trainer = experiment.search, experiment.trainer
    if not search:
        raise ConfigError(
            f"--experiment {request.experiment} has no search: block, so there is nothing to sweep. Add one to its file, such as\n"
            "  search:\n    model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}"
        )
    if str(trainer.devices) not in ("1", "auto") or trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.devices is {trainer.devices} (nodes: {trainer.num_nodes}); a trial has one device. Use "
            "--workers for several devices, and --worker on other machines."
        )
    for key in search:
        if key in request.flags:
            raise ConfigError(
                f"--{key} is given, and search: has {key} too. Leave the flag out, or take the key out of the search: block."
            )
    if trainer.limit_val_batches != 1 and "data.batch_size" in search:
        raise ConfigError(
            f"search: data.batch_size cannot be searched with trainer.limit_val_batches {trainer.limit_val_batches}: trials would be "
            "compared on different images. Leave one of them out."
        )
    content = load_yaml(find_experiment(request.experiment))
    flags = {key: value for key, value in request.flags.items() if key not in PLACE_KEYS}
    plan = Plan(experiment.name, content, flags, dict(search), request.sampler, request.pruner, "", "")
    checked = check_space(plan, _places(request))
    for key, choices in checked.unused.items():
        if request.sampler == "grid":
            raise ConfigError(
                f"--sampler grid: {key} has no meaning with {choices}, so points that differ in it alone would be the same. Sweep "
                "the choices with which it has one by themselves, or use another sampler."
            )
        notes.append(f"{key} has no meaning with {choices}; trials there leave it out")
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
        "--trials", type=int, metavar="N", help="how many trials in all, those of earlier starts included"
    )
    parser.add_argument("--workers", type=int, metavar="W", help="trials at once; default: one for every GPU, or one")
    parser.add_argument("--study", type=str, metavar="NAME", help="the study's name; the same name goes on with it")
    parser.add_argument("--storage", type=str, metavar="URL", help="journal:///PATH, sqlite:///PATH or postgresql://…")
    parser.add_argument("--timeout", type=float, metavar="MIN", help="start no trial after so many minutes")
    parser.add_argument("--sampler", type=str, default="tpe", help=f"one of {', '.join(SAMPLERS)}")
    parser.add_argument("--pruner", type=str, default="median", help=f"one of {', '.join(PRUNERS)}")
    parser.add_argument("--worker", action="store_true", help="join a sweep that another process has started")
    return parser


def _verb(argv: Sequence[str]) -> None:
    flags, own = parse_flags(make_parser(), argv)
    if own.get("list"):
        rows = [
            (name, ", ".join(load_yaml(find_experiment(name))["search"]))
            for name in list_experiments()
            if load_yaml(find_experiment(name)).get("search")
        ]
        make_console().print(make_table("experiments with a search: block", ["name", "what is searched"], rows))
        return
    for name, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if own.get(name, allowed[0]) not in allowed:
            raise ConfigError(
                f"--{name} is {own[name]!r}; choose one of {', '.join(allowed)}.{nearest(own[name], allowed)}"
            )
    for name in ("workers", "timeout"):
        if own.get(name) is not None and own[name] <= 0:
            raise ConfigError(f"--{name} is {own[name]}; it must be above 0.")
    if own.get("study") is not None and not re.fullmatch(r"[\w.][\w. -]*", own["study"]):
        raise ConfigError(f"--study is {own['study']!r}; use letters, digits, and . _ - inside.")
    request = Request(
        own.get("experiment"), flags, own.get("trials") or 0, own.get("workers"), own.get("study"), own.get("storage"),
        own.get("timeout"), own.get("sampler") or "tpe", own.get("pruner") or "median",
    )  # fmt: skip
    if not own.get("worker"):
        if not request.experiment:
            raise ConfigError(f"give --experiment NAME; one of {', '.join(list_experiments())}, or a path.")
        with signals_as_interrupts():
            sweep(request)
        return
    given = [name for name in ("experiment", "trials", "sampler", "pruner") if name in own]
    if given or not request.study:
        raise ConfigError(
            "--worker takes --study and --storage, and what it is a study of from there"
            + (f"; leave out {', '.join(f'--{name}' for name in given)}." if given else ". Give --study NAME.")
        )
    if foreign := [key for key in flags if key not in PLACE_KEYS]:
        raise ConfigError(
            f"--worker: --{foreign[0]} would make trials that cannot be compared; a worker takes only {', '.join(PLACE_KEYS)}."
        )
    with signals_as_interrupts(), contextlib.suppress(BrokenPipeError):
        join(request)


def _fit_trial(experiment: Experiment, link: TrialLink) -> None:
    from skincancer.fit import fit

    fit(experiment, trial=link)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["trial-process"]:
        from skincancer.sweeps import trial

        return trial.main(arguments[1:], _fit_trial)
    return run_verb(_verb, arguments)


if __name__ == "__main__":
    sys.exit(main())
