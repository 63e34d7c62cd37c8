"""Train, test and register one experiment."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_only

from skincancer.data.datamodule import check_shared_memory, check_shares, check_workers
from skincancer.data.prepare import prepare_data
from skincancer.inference.model import mask_source
from skincancer.metrics.names import check_class_metric
from skincancer.models.compatibility import check_single_image
from skincancer.models.lightning import quiet_lightning
from skincancer.runs import registry
from skincancer.runs.lifecycle import reap
from skincancer.runs.store import RunStore
from skincancer.schema.experiment import Experiment
from skincancer.schema.tasks import TASKS
from skincancer.system.console import make_console, progress_bars
from skincancer.system.hardware import keep_freed_memory
from skincancer.system.launcher import is_rank_zero
from skincancer.training.callbacks import EpochReporter
from skincancer.training.launch import check_launcher, count_ranks
from skincancer.training.recorder import FitRecorder
from skincancer.training.trainer import check_devices, fit_classical, fit_network, plugin_callbacks


def train(
    experiment: Experiment, resume: str | None, target: registry.Target | None, trial: EpochReporter | None
) -> str:
    """Train or resume an experiment, and return the MLflow run id.

    Arguments and errors are as in `skincancer.fit.fit`, except the parsed registry target.
    """
    network = experiment.model.is_network
    quiet_lightning()
    check_devices(experiment.trainer)
    check_launcher(experiment.trainer)
    check_workers(experiment.data.workers)
    callbacks = plugin_callbacks() if network else []
    keep_freed_memory()
    console, ranks = make_console(), count_ranks(experiment.trainer)
    is_zero = is_rank_zero(ranks)
    console.quiet = not is_zero
    if ranks == 1:
        # Lightning has taken the rank from the variables of a launcher, and keeps it as an attribute of its decorator.
        vars(rank_zero_only)["rank"] = 0

    store = RunStore(experiment.tracking.uri)
    client = store.client
    store.check_experiment(f"{experiment.data.name or experiment.data.dataset}-{experiment.task}")
    if resume and not target and (before := registry.stored_target(client, resume)):
        target = registry.parse_target(before)
    if target:
        registry.check_registry(client)

    with progress_bars(console) as bars:
        masks, hand_crafted = mask_source(experiment.data, store), experiment.model.is_hand_crafted
        data = prepare_data(
            experiment.data, masks, bars, task=experiment.task, hand_crafted=hand_crafted, for_fit=not resume
        )
    if TASKS[experiment.task].has_classes:
        check_class_metric("training.monitor", experiment.training.monitor, len(data.classes))
    if network:
        if check_shares(data, experiment.data.batch_size, experiment.data.balance, ranks) == 1:
            check_single_image(experiment)
        check_shared_memory(data, experiment.data, -(-ranks // experiment.trainer.num_nodes))
    # Trials do not close stale runs: the sweep has already done so, and another worker may still be recording why its trial crashed.
    for closed in reap(client) if is_zero and trial is None else []:
        console.print(f"closed run {closed} as KILLED: its process has exited")

    recorder = FitRecorder(experiment, data, store, console, trial)
    recorder.announce()
    tags = {registry.REGISTER_TAG: str(target)} if target else {}
    if network:
        fit_network(experiment, data, recorder, store, resume, tags, callbacks)
    else:
        fit_classical(experiment, data, recorder, store, tags)
    if trial:
        return recorder.run_id
    recorder.report()
    if target and is_zero:
        version = registry.register(client, recorder.run_id, target)
        console.print(f"registered as {target}, version {version}", markup=False)
    return recorder.run_id
