"""Start or resume a sweep, and run its trials."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from skincancer.data.prepare import prepare_data
from skincancer.engines.choose import connect_cluster, make_engine
from skincancer.engines.machine_check import store_facts, used_images
from skincancer.engines.orders import Order
from skincancer.inference.model import mask_source
from skincancer.metrics.names import check_class_metric, monitor_mode
from skincancer.models.compatibility import check_network
from skincancer.runs.artifacts import config_to_keep
from skincancer.runs.lifecycle import reap
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.sweeps import study
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.report import SweepRecord
from skincancer.sweeps.request import Request, default_name
from skincancer.sweeps.storage import driver_lock, open_storage, storage_url
from skincancer.sweeps.study import Sweep
from skincancer.sweeps.trials import TrialRunner
from skincancer.system.console import progress_bars
from skincancer.system.credentials import mask_password
from skincancer.system.yaml_files import dump_yaml


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
    if request.resources.cluster is not None:
        connect_cluster(request.resources.cluster)
    with driver_lock(url, name):
        return _drive(request, plan, experiment, url, name, store, console, started)


def _drive(
    request: Request, plan: Plan, experiment: Experiment, url: str, name: str, store: RunStore, console: Console, started: float
) -> str:  # fmt: skip
    """Start or resume a sweep, after its study is locked."""
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
        console.print(f"study {name} in {mask_password(url)}", markup=False)
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


def _run_trials(opened: Sweep, request: Request, record: SweepRecord, started: float) -> None:
    places, resources = record.places, request.resources
    # Studies of older versions have no record of their images.
    hashes = {name: getattr(opened.plan, name) for name in ("index_hash", "split_hash", "images")}
    expected = (
        store_facts(record.store) | {"run": opened.parent} | {name: value for name, value in hashes.items() if value}
    )
    config = dump_yaml(config_to_keep(opened.plan.resolve({}, places), search={}))
    accelerator = places.get("trainer.accelerator", opened.base.trainer.accelerator)
    check = Order(-1, "check", "check", config, parent=opened.parent)
    engine = make_engine(resources, record.folder, record.store, accelerator, check, expected, record.say)
    deadline = None if request.minutes is None else started + 60 * request.minutes
    with contextlib.closing(engine), record.live() as tick:
        runner = TrialRunner(
            opened, engine, places, record.store.client, record.say, announce=resources.cluster is not None
        )
        runner.run(deadline, tick)
