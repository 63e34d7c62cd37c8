"""Names that keys of an experiment take, from the registries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args, get_origin

from skincancer.config.validation import MASK_SOURCES, NAMES
from skincancer.data.catalog import DATASETS
from skincancer.imaging.augmentation_policies import AUGMENTATIONS, POLICIES
from skincancer.imaging.cleaning.steps import STEPS
from skincancer.imaging.quality import RULES
from skincancer.metrics.custom import CUSTOM_METRICS
from skincancer.metrics.names import TASK_METRICS
from skincancer.models.names import ARCHITECTURES, MASK_LOSSES
from skincancer.schema.dotted_keys import TYPES
from skincancer.schema.model import CLASSICAL, DEEP, FAMILIES


def known_names() -> dict[str, list[str]]:
    """Return the allowed names of each key that takes names."""
    literals = {
        key: [str(name) for name in get_args(kind)] for key, kind in TYPES.items() if get_origin(kind) is Literal
    }
    monitored = dict.fromkeys(name for names in TASK_METRICS.values() for name in names)
    registries: dict[str, Iterable[str]] = {
        **NAMES, "augment.extra": AUGMENTATIONS, "augment.policy": POLICIES, "data.clean": STEPS, "data.dataset": DATASETS,
        "data.masks": MASK_SOURCES, "data.quality_rules": RULES, "model.architecture": ARCHITECTURES,
        "model.classical.features": [*FAMILIES, DEEP], "model.classifier": ["network", *CLASSICAL], "model.loss.masks": MASK_LOSSES,
        "training.monitor": ["auto", "val/loss", *(f"val/{name}" for name in (*monitored, *CUSTOM_METRICS))],
    }  # fmt: skip
    return literals | {key: list(names) for key, names in registries.items()}
