"""Checks of a resolved experiment, without data and torch: names, ranges, contradictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from skincancer.config.search_space import check_search
from skincancer.data.balance import BALANCES
from skincancer.data.catalog import DATASETS
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.splits import parse_split
from skincancer.data.where import parse_where
from skincancer.errors import ConfigError, UnusedKey, nearest
from skincancer.imaging import augmentation_policies, quality
from skincancer.imaging.cleaning.steps import check_clean
from skincancer.metrics.custom import custom_metrics
from skincancer.metrics.names import TASK_METRICS, check_class_metric
from skincancer.models.names import (
    LOSSES,
    OPTIMIZERS,
    OWN_LOSSES,
    SCHEDULES,
    SMALLEST_BATCH,
    check_architecture,
    check_mask_losses,
)
from skincancer.schema.data import segmenter_run
from skincancer.schema.dotted_keys import flatten
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import DEEP, FAMILIES
from skincancer.schema.ranges import RULES, check_range
from skincancer.schema.rules import NAMES as DATASET_NAMES
from skincancer.schema.tasks import TASKS

NAMES: dict[str, Iterable[str]] = {
    "data.balance": BALANCES,
    "model.loss.name": LOSSES,
    "model.optimizer.name": OPTIMIZERS,
    "model.schedule.name": SCHEDULES,
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.precision": ("32", "bf16-mixed", "16-mixed"),
    "trainer.strategy": ("auto", "ddp", "ddp_find_unused_parameters_true"),
}
MASK_SOURCES = ("auto", "truth", "otsu")
# Keys of the backbone, which networks and deep features have, but hand-crafted features do not.
OF_BACKBONE = ("model.backbone", "model.weights")


class Requirement(NamedTuple):
    """Key that needs one of the values of another key."""

    key: str
    other: str
    values: tuple[str, ...]


# A wrong task explains more than a wrong choice, so requirements on the task are checked first.
REQUIREMENTS = sorted(
    (Requirement(key, *needed) for key, rules in RULES.items() for needed in rules["only_with"].items()),
    key=lambda requirement: requirement.other != "task",
)
OF_NETWORKS = {requirement.key for requirement in REQUIREMENTS if requirement.values == ("network",)}


def _one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    names = list(allowed)
    if value not in names:
        raise ConfigError(f"{key} is {value!r}; choose one of {', '.join(names)}.{nearest(value, names)}")


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ConfigError(f"{key} is {value!r}; it must be {allowed}.")


def check_experiment(experiment: Experiment, types: Mapping[str, Any]) -> None:
    """Check a resolved experiment.

    Args:
        experiment: resolved experiment.
        types: type of every dotted key, for the search space.

    Raises:
        ConfigError: names the key, the value, the allowed values and a remedy.
    """
    values = flatten(experiment.to_dict())
    for key, names in NAMES.items():
        _one_of(key, str(values[key]), names)
    monitors = [f"val/{name}" for name in ("loss", *TASK_METRICS[experiment.task], *custom_metrics(experiment.task))]
    _one_of("training.monitor", experiment.training.monitor, monitors)
    # The trainer is checked first: the range of the warm-up depends on its epochs.
    for key in sorted(RULES, key=lambda key: not key.startswith("trainer.")):
        check_range(key, values[key])
    _check_unused(experiment, values)
    _check_data(experiment)
    augmentation_policies.check(experiment.augment)
    if not experiment.model.is_network:
        _check_classical(experiment)
    _check_model(experiment)
    check_search(experiment.search, types)


def check_masks(masks: str) -> None:
    """Check that `data.masks` names a mask source.

    Raises:
        ConfigError: unknown mask source.
    """
    _require(
        masks in MASK_SOURCES or bool(segmenter_run(masks)), "data.masks", masks,
        f"{', '.join(MASK_SOURCES)}, or run:RUN_ID",
    )  # fmt: skip


def _check_unused(experiment: Experiment, values: Mapping[str, Any]) -> None:
    """Reject changed values that have no effect, so that none is silently ignored."""
    default = Experiment()
    defaults = flatten(replace(default, augment=augmentation_policies.resolve(default.augment)).to_dict())

    def refuse(key: str, needed: str, chosen: str) -> None:
        if values[key] != defaults[key]:
            raise UnusedKey(key, f"{key} is {values[key]!r}; it is for {needed}, and {chosen}. Leave it out.")

    for key, other, allowed in REQUIREMENTS:
        chosen = _names(values[other])
        if not set(allowed) & set(chosen):
            refuse(key, *_describe_choice(other, allowed, ", ".join(chosen)))
    model, loss, kind = experiment.model, experiment.model.loss, TASKS[experiment.task]
    if model.is_hand_crafted:
        for key in OF_BACKBONE:
            refuse(key, "networks", f"model.classifier is {model.classifier} with hand-crafted features")
    elif not experiment.data.crop:
        refuse("data.masks", "data.crop true", "data.crop is false")
    losses = [*([loss.name] if kind.has_classes else []), *(loss.masks if kind.has_masks else [])]
    if "focal" not in losses:
        refuse("model.loss.gamma", "focal", f"chosen is {', '.join(losses)}")


def _names(value: Any) -> list[str]:
    """Return the names that a value consists of, spelt as in an experiment file."""
    if isinstance(value, Mapping):
        return list(value)
    return [str(value).lower() if isinstance(value, bool) else str(value)]


def _describe_choice(other: str, allowed: Sequence[str], chosen: str) -> tuple[str, str]:
    """Describe the required choice and the present choice."""
    if other == "task":
        return f"task {' and '.join(allowed)}", f"the task is {chosen}"
    if other == "model.classifier" and len(allowed) > 1:
        return f"the classifiers {', '.join(allowed)}", f"model.classifier is {chosen}"
    if other.startswith(("model.loss.", "model.optimizer.", "model.schedule.")):
        return ", ".join(allowed), f"chosen is {chosen}"
    return "networks" if allowed == ("network",) else f"{other} {', '.join(allowed)}", f"{other} is {chosen}"


def _check_data(experiment: Experiment) -> None:
    data = experiment.data
    entry = catalog_entry(data.dataset)
    if experiment.task not in entry.tasks:
        fitting = [name for name, other in DATASETS.items() if experiment.task in other.tasks]
        raise ConfigError(
            f"data.dataset {data.dataset} is for {', '.join(entry.tasks)}, not for {experiment.task}. "
            f"For {experiment.task}: {', '.join(fitting)}."
        )
    _require(data.name not in DATASETS, "data.name", data.name, DATASET_NAMES)
    parse_split(data.split)
    if data.where is not None:
        parse_where(data.where)
    check_clean(data.clean)
    check_masks(data.masks)
    quality.check(data.quality_rules)


def _check_classical(experiment: Experiment) -> None:
    model, trainer, data = experiment.model, experiment.trainer, experiment.data
    families = model.classical.features
    for family in families:
        _one_of("model.classical.features", family, [*FAMILIES, DEEP])
    _require(
        len(families) > 0 and len(set(families)) == len(families) and (DEEP not in families or len(families) == 1),
        "model.classical.features", families, f"one or more of {', '.join(FAMILIES)}, each once; or {DEEP} alone",
    )  # fmt: skip
    if model.is_hand_crafted and data.crop:
        raise ConfigError(
            "data.crop is True; hand-crafted features are measured in masks of whole images. Leave it out, or use "
            f"--model.classical.features [{DEEP}]."
        )
    if experiment.training.monitor == "val/loss":
        raise ConfigError(
            f"training.monitor is 'val/loss'; {model.classifier} is fitted without a loss. Use val/<metric>."
        )
    if str(trainer.devices) != "1" or trainer.num_nodes != 1:
        raise ConfigError(
            f"trainer.devices is {trainer.devices}, trainer.num_nodes {trainer.num_nodes}; {model.classifier} is fitted by one "
            "process. Leave both out."
        )


def _check_model(experiment: Experiment) -> None:
    model = experiment.model
    if model.unfreeze_epoch is not None:
        if model.freeze == "none":
            raise UnusedKey(
                "model.unfreeze_epoch",
                "model.unfreeze_epoch is set but model.freeze is none; there is nothing to unfreeze.",
            )
        if experiment.trainer.devices not in (1, "1") or experiment.trainer.num_nodes > 1:
            raise ConfigError(
                "model.unfreeze_epoch needs one device: DDP fixes the set of trained parameters when it starts. "
                "Use --trainer.devices 1, or two runs with --model.weights run:RUN_ID."
            )
    classes = 2 if experiment.data.target == "malignancy" else len(catalog_entry(experiment.data.dataset).classes)
    if TASKS[experiment.task].has_classes:
        # 0 means that only the reader knows the classes.
        check_class_metric("training.monitor", experiment.training.monitor, classes)
    schedule = model.schedule
    _require(
        0 <= schedule.warmup_epochs < experiment.trainer.max_epochs, "model.schedule.warmup_epochs",
        schedule.warmup_epochs, f"0 or more and below trainer.max_epochs ({experiment.trainer.max_epochs})",
    )  # fmt: skip
    if TASKS[experiment.task].has_masks:
        _check_segmenter(experiment)
    if model.head == "sigmoid" and classes not in (0, 2):
        raise ConfigError(
            f"model.head is sigmoid, which is for two classes; {experiment.data.dataset} has {classes}. "
            "Use --data.target malignancy or --model.head softmax."
        )


def _check_segmenter(experiment: Experiment) -> None:
    model, loss = experiment.model, experiment.model.loss
    check_architecture(model.architecture, TASKS[experiment.task].has_classes)
    smallest = SMALLEST_BATCH.get(model.architecture, 1)
    if experiment.data.batch_size < smallest:
        raise ConfigError(
            f"data.batch_size is {experiment.data.batch_size}; {model.architecture} needs at least {smallest}: its BatchNorm after "
            "global pooling has one value per image. Use a larger --data.batch_size."
        )
    _require(
        model.freeze in ("none", "all"),
        "model.freeze",
        model.freeze,
        f"none or all (the encoder) for {experiment.task}",
    )
    if model.architecture in OWN_LOSSES and loss.masks != Experiment().model.loss.masks:
        raise ConfigError(
            f"model.loss.masks is {loss.masks}; {model.architecture} learns by its own losses. Leave model.loss.masks out."
        )
    check_mask_losses(loss.masks, asdict(loss))
