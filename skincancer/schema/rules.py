"""Rules of keys: their ranges, and the other keys that they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from skincancer.schema.tasks import TASKS

# Values of other keys with which a key has an effect.
WITH_CLASSES = {"task": tuple(name for name, kind in TASKS.items() if kind.has_classes)}
WITH_MASKS = {"task": tuple(name for name, kind in TASKS.items() if kind.has_masks)}
CLASSIFICATION = {"task": ("classification",)}
NETWORK = {"model.classifier": ("network",)}
# Range of the keys trainer.limit_*_batches.
BATCHES = "a number of batches (1 or more) or a share (above 0, at most 1.0)"
# Range of data.name, which is part of the names of MLflow experiments and files.
NAMES = "up to 80 letters, digits, spaces and . _ - (the first a letter or digit), and no name of the catalog"


def key(default: Any, allowed: str = "", only_with: Mapping[str, tuple[str, ...]] | None = None) -> Any:
    """Return a field with rules that `schema.ranges` and `config.validation` check.

    Args:
        default: its value.
        allowed: its range, a name in `schema.ranges.RANGES`.
        only_with: other keys, and the values of each with which this key has an effect.
    """
    return field(default=default, metadata={"allowed": allowed, "only_with": only_with or {}})
