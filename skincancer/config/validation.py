"""Checks of a resolved experiment that need neither data nor torch: ranges, names, and choices that contradict each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from skincancer.config.search_space import check_search
from skincancer.data.balance import BALANCES
from skincancer.data.catalog import DATASETS
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.splits import parse_split
from skincancer.errors import ConfigError, UnusedKey, nearest
from skincancer.imaging import augmentation_policies, quality
from skincancer.imaging.cleaning.steps import check_clean
from skincancer.imaging.features.families import FAMILIES
from skincancer.metrics.custom import custom_metrics
from skincancer.metrics.names import MONITORED
from skincancer.models.losses import LOSSES, mask_loss
from skincancer.models.optimizers import OPTIMIZERS, SCHEDULES
from skincancer.models.segmenters import OWN_LOSSES, SMALLEST_BATCH, check_architecture
from skincancer.schema import DEEP, OF_CLASSIFIERS, Experiment

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
MASK_SOURCES = ("auto", "truth", "otsu")
CLASSICAL = ("svm", "knn", "kmeans", "random_forest")
# keys, or their beginnings, that mean something to networks alone; the backbone's, also to features that are deep
OF_NETWORKS = (
    "augment.", "model.dropout", "model.head", "model.freeze", "model.unfreeze_epoch", "model.mask.", "model.loss.",
    "model.optimizer.", "model.schedule.", "model.tta", "model.channels_last", "model.compile", "training.patience",
    "training.ema_decay", "data.workers", "trainer.max_epochs", "trainer.strategy", "trainer.precision",
    "trainer.accumulate_grad_batches", "trainer.gradient_clip", "trainer.limit_", "trainer.deterministic", "trainer.benchmark",
    "trainer.sync_batchnorm", "trainer.log_every_n_steps",
)  # fmt: skip
OF_BACKBONE = ("model.backbone", "model.weights")

# keys that mean something to some tasks alone: set in another, they would be silently ignored
OWN_KEYS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("classification", "joint"): (
        "data.target", "data.malignant", "data.balance", "model.dropout", "model.loss.name", "model.loss.label_smoothing",
    ),
    ("classification",): ("data.crop", "model.head", "model.head_hidden", "model.classifier"),
    ("segmentation", "joint"): (
        "model.architecture", "model.mask.threshold", "model.mask.largest_component", "model.mask.fill_holes",
        "model.loss.masks", "model.loss.alpha", "model.loss.beta",
    ),
    ("joint",): ("model.loss.class_factor",),
}  # fmt: skip


def _one_of(key: str, given: str, allowed: Iterable[str]) -> None:
    names = list(allowed)
    if given not in names:
        raise ConfigError(f"{key} is {given!r}; choose one of {', '.join(names)}.{nearest(given, names)}")


def _require(holds: bool, key: str, given: object, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{key} is {given!r}; it must be {allowed}.")


def check_experiment(experiment: Experiment, types: Mapping[str, Any]) -> None:
    """Check an experiment.

    Args:
        experiment: resolved.
        types: every dotted key of the schema, which a search space may name, and its type.

    Raises:
        ConfigError: names the key, the value, what is allowed, and what to do.
    """
    _check_task(experiment)
    _check_data(experiment)
    augmentation_policies.check(experiment.augment)
    if not experiment.model.is_network:
        check_for_network(experiment, types)
    _check_training(experiment)
    _check_classical(experiment)
    _check_model(experiment)
    check_search(experiment.search, types)


def check_masks(masks: str) -> None:
    """Check what `data.masks` says.

    Raises:
        ConfigError: it names no source of masks.
    """
    _require(
        masks in MASK_SOURCES or (masks.startswith("run:") and len(masks) > 4), "data.masks", masks,
        f"{', '.join(MASK_SOURCES)}, or run:RUN_ID",
    )  # fmt: skip


def _value(experiment: Experiment, key: str) -> Any:
    found: Any = experiment
    for name in key.split("."):
        found = getattr(found, name)
    return found


def _only_with(experiment: Experiment, key: str, needed: str, chosen: Sequence[str]) -> None:
    """Refuse a value that differs from the default where what it belongs to is not chosen: it would be silently ignored."""
    given = _value(experiment, key)
    if given != _value(Experiment(), key) and needed not in chosen:
        raise UnusedKey(
            key, f"{key} is {given!r}; it is for {needed}, and chosen is {', '.join(chosen)}. Leave it out."
        )


def _check_task(experiment: Experiment) -> None:
    for tasks, keys in OWN_KEYS.items():
        for key in keys:
            given = _value(experiment, key)
            if experiment.task not in tasks and given != _value(Experiment(), key):
                raise UnusedKey(
                    key,
                    f"{key} is {given!r}; it is for task {' and '.join(tasks)}, and the task is {experiment.task}. Leave it out.",
                )


def _check_data(experiment: Experiment) -> None:
    data = experiment.data
    entry = catalog_entry(data.dataset)
    if experiment.task not in entry.tasks:
        fitting = [name for name, other in DATASETS.items() if experiment.task in other.tasks]
        raise ConfigError(
            f"data.dataset {data.dataset} is for {', '.join(entry.tasks)}, not for {experiment.task}. "
            f"For {experiment.task}: {', '.join(fitting)}."
        )
    parse_split(data.split)
    check_clean(data.clean)
    _one_of("data.balance", data.balance, BALANCES)
    _require(experiment.seed >= 0, "seed", experiment.seed, "0 or more")
    _require(data.split_seed >= 0, "data.split_seed", data.split_seed, "0 or more")
    _require(1 <= data.size <= 4096, "data.size", data.size, "a whole number of pixels from 1 to 4096")
    _require(data.batch_size >= 1, "data.batch_size", data.batch_size, "1 or more")
    _require(data.workers >= 0, "data.workers", data.workers, "0 or more")
    _require(0 < data.class_weight_power <= 2, "data.class_weight_power", data.class_weight_power, "above 0, at most 2")
    check_masks(data.masks)
    _require(0 <= data.crop_margin <= 5, "data.crop_margin", data.crop_margin, "from 0 to 5")
    crop = ["data.crop true" if data.crop else "data.crop false"]
    if not experiment.model.is_hand_made:
        _only_with(experiment, "data.masks", "data.crop true", crop)
    _only_with(experiment, "data.crop_margin", "data.crop true", crop)
    quality.check(data.quality_rules)
    _only_with(experiment, "data.quality_rules", "data.quality drop_flagged", [f"data.quality {data.quality}"])
    if data.balance_fixed and data.balance != "undersample":
        raise UnusedKey(
            "data.balance_fixed", f"data.balance_fixed is for data.balance undersample; balance is {data.balance!r}."
        )
    if data.class_weight_power != 1 and data.balance != "class_weights":
        raise UnusedKey(
            "data.class_weight_power",
            f"data.class_weight_power is for data.balance class_weights; balance is {data.balance!r}.",
        )


def check_for_network(experiment: Experiment, types: Iterable[str]) -> None:
    """Refuse what a classical classifier has no use for: it would be silently ignored.

    Raises:
        ConfigError: names the key.
    """
    model, default = experiment.model, Experiment()
    default = replace(default, augment=augmentation_policies.resolve(default.augment))
    for key in types:
        given = _value(experiment, key)
        if is_of_network(key, model.is_hand_made) and given != _value(default, key):
            features = " with hand-made features" if key in OF_BACKBONE else ""
            raise UnusedKey(
                key,
                f"{key} is {given!r}; it is for networks, and model.classifier is {model.classifier}{features}. Leave it out.",
            )


def is_of_network(key: str, hand_made: bool) -> bool:
    """Say whether a key means something to networks alone; with hand-made features the backbone's are among them."""
    return key.startswith(OF_NETWORKS) or (hand_made and key in OF_BACKBONE)


def _check_classical(experiment: Experiment) -> None:
    model, trainer, data = experiment.model, experiment.trainer, experiment.data
    options = model.classical
    for key, owner in OF_CLASSIFIERS.items():
        _only_with(
            experiment, f"model.classical.{key}", f"model.classifier {owner}", [f"model.classifier {model.classifier}"]
        )
    if model.is_network:
        if options.features != Experiment().model.classical.features:
            raise UnusedKey(
                "model.classical.features",
                f"model.classical.features is {options.features!r}; it is for the classifiers {', '.join(CLASSICAL)}, and "
                "model.classifier is network. Leave it out.",
            )
        return
    families = options.features
    for family in families:
        _one_of("model.classical.features", family, [*FAMILIES, DEEP])
    _require(
        len(families) > 0 and len(set(families)) == len(families) and (DEEP not in families or len(families) == 1),
        "model.classical.features", families, f"one or more of {', '.join(FAMILIES)}, each once; or {DEEP} alone",
    )  # fmt: skip
    _require(0 < options.C < math.inf, "model.classical.C", options.C, "above 0")
    gamma = options.gamma
    _require(
        gamma == "scale" or (isinstance(gamma, float) and 0 < gamma < math.inf), "model.classical.gamma", gamma,
        "scale, or above 0",
    )  # fmt: skip
    for name in ("neighbours", "clusters", "trees"):
        _require(getattr(options, name) >= 1, f"model.classical.{name}", getattr(options, name), "1 or more")
    if model.is_hand_made and data.crop:
        raise ConfigError(
            "data.crop is True; hand-made features are measured in masks of whole images. Leave it out, or use "
            f"--model.classical.features [{DEEP}]."
        )
    if experiment.training.monitor == "val/loss":
        raise ConfigError(
            f"training.monitor is 'val/loss'; {model.classifier} is fitted without a loss. Give val/<metric>."
        )
    if str(trainer.devices) != "1" or trainer.num_nodes != 1:
        raise ConfigError(
            f"trainer.devices is {trainer.devices}, trainer.num_nodes {trainer.num_nodes}; {model.classifier} is fitted by one "
            "process. Leave both out."
        )


def _check_model(experiment: Experiment) -> None:
    model = experiment.model
    _require(0 <= model.dropout < 1, "model.dropout", model.dropout, "0 or more and below 1")
    _require(model.head_hidden >= 0, "model.head_hidden", model.head_hidden, "0 or more")
    freeze = str(model.freeze)
    _require(
        freeze in ("none", "all") or (freeze.isdigit() and int(freeze) > 0), "model.freeze", freeze,
        "none, all, or a number of stages",
    )  # fmt: skip
    if model.unfreeze_epoch is not None:
        _require(model.unfreeze_epoch >= 1, "model.unfreeze_epoch", model.unfreeze_epoch, "1 or more")
        if freeze == "none":
            raise UnusedKey(
                "model.unfreeze_epoch",
                "model.unfreeze_epoch is set but model.freeze is none; there is nothing to unfreeze.",
            )
        if experiment.trainer.devices not in (1, "1") or experiment.trainer.num_nodes > 1:
            raise ConfigError(
                "model.unfreeze_epoch needs one device: DDP fixes the set of trained parameters when it starts. "
                "Use --trainer.devices 1, or two runs with --model.weights run:RUN_ID."
            )
    loss = model.loss
    _one_of("model.loss.name", loss.name, LOSSES)
    _require(0 <= loss.label_smoothing < 1, "model.loss.label_smoothing", loss.label_smoothing, "0 or more and below 1")
    _require(loss.gamma >= 0, "model.loss.gamma", loss.gamma, "0 or more")
    if loss.label_smoothing and loss.name != "cross_entropy":
        raise UnusedKey(
            "model.loss.label_smoothing",
            f"model.loss.label_smoothing is for cross_entropy; loss.name is {loss.name!r}.",
        )
    _require(0 <= loss.class_factor < math.inf, "model.loss.class_factor", loss.class_factor, "0 or more, and finite")
    of_task = {"classification": [loss.name], "segmentation": [*loss.masks], "joint": [loss.name, *loss.masks]}
    losses = of_task[experiment.task]
    _only_with(experiment, "model.loss.gamma", "focal", losses)
    _only_with(experiment, "model.loss.alpha", "tversky", losses)
    _only_with(experiment, "model.loss.beta", "tversky", losses)
    _one_of("model.optimizer.name", model.optimizer.name, OPTIMIZERS)
    _require(0 < model.optimizer.lr < 100, "model.optimizer.lr", model.optimizer.lr, "above 0")
    _require(
        model.optimizer.weight_decay >= 0, "model.optimizer.weight_decay", model.optimizer.weight_decay, "0 or more"
    )
    _require(
        0 <= model.optimizer.momentum < 1, "model.optimizer.momentum", model.optimizer.momentum, "0 or more and below 1"
    )
    schedule = model.schedule
    _one_of("model.schedule.name", schedule.name, SCHEDULES)
    _require(
        0 <= schedule.warmup_epochs < experiment.trainer.max_epochs, "model.schedule.warmup_epochs",
        schedule.warmup_epochs, f"0 or more and below trainer.max_epochs ({experiment.trainer.max_epochs})",
    )  # fmt: skip
    if schedule.warmup_epochs and schedule.name != "cosine":
        raise UnusedKey(
            "model.schedule.warmup_epochs",
            f"model.schedule.warmup_epochs is for cosine; schedule.name is {schedule.name!r}.",
        )
    _require(schedule.step_epochs >= 1, "model.schedule.step_epochs", schedule.step_epochs, "1 or more")
    _require(0 < schedule.gamma <= 1, "model.schedule.gamma", schedule.gamma, "above 0, at most 1")
    _only_with(experiment, "model.optimizer.momentum", "sgd", [model.optimizer.name])
    _only_with(experiment, "model.schedule.step_epochs", "step", [schedule.name])
    _only_with(experiment, "model.schedule.gamma", "step", [schedule.name])
    if experiment.task != "classification":
        _check_segmenter(experiment)
    if model.head == "sigmoid":
        classes = 2 if experiment.data.target == "malignancy" else len(catalog_entry(experiment.data.dataset).classes)
        if classes not in (0, 2):  # 0: the reader finds out
            raise ConfigError(
                f"model.head is sigmoid, which is for two classes; {experiment.data.dataset} has {classes}. "
                "Use --data.target malignancy or --model.head softmax."
            )


def _check_segmenter(experiment: Experiment) -> None:
    model, loss = experiment.model, experiment.model.loss
    check_architecture(model.architecture, experiment.task == "joint")
    smallest = SMALLEST_BATCH.get(model.architecture, 1)
    if experiment.data.batch_size < smallest:
        raise ConfigError(
            f"data.batch_size is {experiment.data.batch_size}; {model.architecture} needs at least {smallest}: its BatchNorm after "
            "global pooling has one value an image."
        )
    _require(
        model.freeze in ("none", "all"),
        "model.freeze",
        model.freeze,
        f"none or all (the encoder) for {experiment.task}",
    )
    threshold = model.mask.threshold
    _require(
        threshold == "auto" or (isinstance(threshold, float) and 0 < threshold < 1),
        "model.mask.threshold", threshold, "auto, or above 0 and below 1",
    )  # fmt: skip
    if model.architecture in OWN_LOSSES and loss.masks != Experiment().model.loss.masks:
        raise ConfigError(
            f"model.loss.masks is {loss.masks}; {model.architecture} learns by its own losses. Leave it out."
        )
    mask_loss(loss.masks, asdict(loss))  # names, weights, and what single losses ask of their options


def _check_training(experiment: Experiment) -> None:
    training, trainer = experiment.training, experiment.trainer
    monitored = (*MONITORED[experiment.task], *custom_metrics(experiment.task))
    _one_of("training.monitor", training.monitor, ["val/loss", *(f"val/{name}" for name in monitored)])
    _require(training.patience >= 0, "training.patience", training.patience, "0 or more")
    _require(0 <= training.ema_decay < 1, "training.ema_decay", training.ema_decay, "0 or more and below 1")
    _require(trainer.max_epochs >= 1, "trainer.max_epochs", trainer.max_epochs, "1 or more")
    _one_of("trainer.precision", str(trainer.precision), PRECISIONS)
    devices = str(trainer.devices)
    _require(
        devices == "auto" or (devices.isdigit() and int(devices) > 0), "trainer.devices", devices, "auto, or 1 or more"
    )
    _one_of("trainer.strategy", trainer.strategy, STRATEGIES)
    _require(trainer.num_nodes >= 1, "trainer.num_nodes", trainer.num_nodes, "1 or more")
    _require(
        trainer.accumulate_grad_batches >= 1,
        "trainer.accumulate_grad_batches",
        trainer.accumulate_grad_batches,
        "1 or more",
    )
    if trainer.gradient_clip_val is not None:
        _require(trainer.gradient_clip_val > 0, "trainer.gradient_clip_val", trainer.gradient_clip_val, "above 0")
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        limit = getattr(trainer, name)
        fits = limit >= 1 if isinstance(limit, int) else 0 < limit <= 1
        _require(fits, f"trainer.{name}", limit, "a number of batches (1 or more) or a share (above 0, at most 1.0)")
    _require(trainer.log_every_n_steps >= 1, "trainer.log_every_n_steps", trainer.log_every_n_steps, "1 or more")
