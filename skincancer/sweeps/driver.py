"""Run the trials of a sweep on this machine."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace

from mlflow.exceptions import MlflowException
from rich.console import Console

from skincancer.data.prepare import prepare_data
from skincancer.errors import RunError
from skincancer.inference.model import mask_source
from skincancer.metrics.names import check_class_metric, monitor_mode
from skincancer.models.compatibility import check_network
from skincancer.runs.lifecycle import reap
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.sweeps import executor, study
from skincancer.sweeps.plan import Plan, used_images
from skincancer.sweeps.report import SweepRecord
from skincancer.sweeps.request import Request, default_name
from skincancer.sweeps.storage import open_storage, storage_url
from skincancer.sweeps.study import Sweep
from skincancer.system.console import progress_bars
from skincancer.system.credentials import mask_password


def run_sweep(
    request: Request, plan: Plan, experiment: Experiment, points: Sequence[Experiment], console: Console, started: float
) -> str:
    """Start or resume a sweep, and return its MLflow run id.

    Args:
        request: options.
        plan, experiment, points: as `check_request` returns them.
        console: console for the progress.
        started: time of `time.monotonic` from which `minutes` count.

    Raises:
        ConfigError: The search space or an option is wrong, or differs from the existing study.
        DataError: The data cannot be used.
        RunError: The storage or the MLflow store cannot be used, or every trial fails.
    """
    for point in points:
        check_network(point)
    store = RunStore(experiment.tracking.uri).open()
    store.check_experiment(f"{experiment.data.name or experiment.data.dataset}-{experiment.task}")
    name = request.study or default_name(experiment)
    url = storage_url(request.storage, store.sweeps_folder / f"{name}.journal")
    # A storage that cannot be used is reported before the data are prepared.
    open_storage(url)
    with progress_bars(console) as bars:
        data = prepare_data(
            experiment.data, mask_source(experiment.data, store), bars, task=experiment.task,
            hand_crafted=experiment.model.is_hand_crafted, for_fit=True,
        )  # fmt: skip
    check_class_metric("training.monitor", experiment.training.monitor, len(data.classes))
    data.reading.report(console)
    for closed in reap(store.client):
        console.print(f"closed run {closed} as KILLED: its process exited")
    plan = replace(plan, split_hash=data.split_hash, index_hash=data.index_hash, images=used_images(data))
    opened = study.create(url, name, plan, request.trials, maximize=monitor_mode(experiment.training.monitor) == "max")
    record = SweepRecord(opened, name, data, console, request.places, store)
    with record.start(request.trials) as run:
        console.print(
            f"study {name} in {mask_password(url)}; join from other machines with: {join_command(name, mask_password(url))}",
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


def join_sweep(request: Request, console: Console) -> None:
    """Run trials of a sweep of another process, until all trials have ended.

    Raises:
        RunError: The study does not exist, its run is in another MLflow store, or the images on this machine differ.
    """
    started = time.monotonic()
    assert request.study is not None
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
    here = opened.plan.resolve({}, request.places)
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
    record = SweepRecord(opened, request.study, data, console, request.places, store)
    _run_trials(opened, request, record, started)
    elsewhere = "; other workers continue the sweep" if not opened.is_over() else ""
    console.print(f"no trial is left for this worker{elsewhere}; the run of the sweep is {opened.parent}")


def _run_trials(opened: Sweep, request: Request, record: SweepRecord, started: float) -> None:
    accelerator = record.places.get("trainer.accelerator", opened.base.trainer.accelerator)
    devices = executor.visible_devices() if accelerator in ("auto", "gpu", "cuda") else []
    workers = request.workers or max(1, len(devices))
    if 0 < len(devices) < workers:
        record.console.print(f"{workers} workers share {len(devices)} GPUs")
    runner = executor.TrialProcess(opened, record.places, record.store.client, record.folder, workers, devices)
    deadline = None if request.minutes is None else started + 60 * request.minutes
    with contextlib.closing(runner), record.live(workers) as tick:
        executor.work(opened, runner, workers, deadline=deadline, tick=tick, bury=runner.bury)


def join_command(name: str, url: str) -> str:
    """Return the command with which a worker joins."""
    return shlex.join(["python", "-m", "skincancer.sweep", "--worker", "--study", name, "--storage", url])
