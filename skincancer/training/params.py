"""Params of a fit, by which runs are searched, sorted and grouped."""

from __future__ import annotations

from typing import Any

from skincancer.data.prepare import ROLES, PreparedData
from skincancer.imaging.cleaning.steps import describe_clean
from skincancer.imaging.features.families import WORKING_SIDE
from skincancer.metrics.names import positive_of
from skincancer.reports.task_outputs import Outcome
from skincancer.schema.data import segmenter_run
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import DEEP, OF_CLASSIFIERS
from skincancer.training.classical import ClassicalInputs
from skincancer.training.launch import count_ranks


def fit_params(
    experiment: Experiment, data: PreparedData, outcome: Outcome, inputs: ClassicalInputs | None, weights: str
) -> dict[str, Any]:
    """Return the params of a fit.

    Args:
        experiment: the experiment.
        data: its images.
        outcome: reports of its task.
        inputs: features of a classical classifier. None for a network.
        weights: source of the first weights.
    """
    e, ranks = experiment, count_ranks(experiment.trainer)
    counts = {f"{role}_images": len(data.rows(role)) for role in ROLES}
    own = _network_params(e, outcome, ranks) if inputs is None else _classical_params(e, data, inputs)
    return {
        "experiment": e.name, "task": e.task, "dataset": data.entry.name, "split": e.data.split,
        "split_seed": e.data.split_seed, "seed": e.seed, "backbone": e.model.learner,
        "clean": describe_clean(e.data.clean), "crop": e.data.crop, **(_crop_params(e, data) if e.data.crop else {}),
        "target": e.data.target, **({"positive": positive_of(data.classes)} if positive_of(data.classes) else {}),
        "balance": e.data.balance,
        "weights": weights, "size": e.data.size, "resize": e.data.resize, "batch_size": e.data.batch_size,
        "monitor": e.training.monitor, "leaks": e.data.leaks, "leaking_lesions": data.leaking_groups,
        "dropped_images": len(data.dropped), "quality": e.data.quality, "quality_dropped_images": data.flagged,
        **({"where": e.data.where} if e.data.where else {}),
        **({"shared_lesion_ids": data.shared_lesion_ids} if data.shared_lesion_ids else {}),
        "devices": e.trainer.devices, "ranks": ranks, **counts, **own,
    }  # fmt: skip


def _network_params(e: Experiment, outcome: Outcome, ranks: int) -> dict[str, Any]:
    return {
        **outcome.params(e.model), "max_epochs": e.trainer.max_epochs, "precision": e.trainer.precision,
        "lr": e.model.optimizer.lr, "optimizer": e.model.optimizer.name, "schedule": e.model.schedule.name,
        "tta": e.model.tta, "freeze": e.model.freeze, "augment": e.augment.policy, "ema_decay": e.training.ema_decay,
        "effective_batch_size": e.data.batch_size * ranks * e.trainer.accumulate_grad_batches,
    }  # fmt: skip


def _classical_params(e: Experiment, data: PreparedData, inputs: ClassicalInputs) -> dict[str, Any]:
    """Return features, hyper-parameters, and the number of images of each mask source."""
    options = e.model.classical
    own = {key: getattr(options, key) for key, owner in OF_CLASSIFIERS.items() if owner == e.model.classifier}
    if inputs.measured is None:
        return {"features": f"{DEEP}: {e.model.backbone}", **own}
    table = inputs.measured.table
    sources = table.loc[table["error"] == "", "masks"].map(lambda name: str(name).split(":")[0])
    counts = {f"masks_{name}": int(count) for name, count in sources.value_counts().items()}
    saw = {"segmenter_saw_test_images": data.segmenter_saw} if segmenter_run(e.data.masks) else {}
    return {"size": WORKING_SIDE, "features": "+".join(options.features), **own, "masks": e.data.masks, **counts, **saw}


def _crop_params(e: Experiment, data: PreparedData) -> dict[str, Any]:
    return {
        "masks": e.data.masks, "crop_margin": e.data.crop_margin, "segmenter_saw_test_images": data.segmenter_saw,
    }  # fmt: skip
