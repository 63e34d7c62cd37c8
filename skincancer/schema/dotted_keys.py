"""Dotted keys of an experiment, such as `data.split`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from skincancer.errors import ConfigError
from skincancer.schema.experiment import Experiment


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Convert nested sections to dotted keys, without splitting schema keys such as search.

    Raises:
        ConfigError: a key is set twice, as `data: {size: 64}` and as `data.size: 32`.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        dotted = f"{prefix}{key}"
        is_section = isinstance(value, Mapping) and dotted not in KEYS and (value or dotted in SECTIONS)
        for name, inner in (flatten(value, f"{dotted}.") if is_section else {dotted: value}).items():
            if name in flat:
                raise ConfigError(f"{name} is set twice, to {flat[name]!r} and to {inner!r}. Remove one of the two.")
            flat[name] = inner
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Convert dotted keys to nested sections."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *sections, last = dotted.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def _types(section: Any, prefix: str = "") -> dict[str, Any]:
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        types |= _types(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else {f"{prefix}{name}": hint}
    return types


TYPES = _types(Experiment)
KEYS = tuple(TYPES)
SECTIONS = sorted({key.rsplit(".", 1)[0] for key in KEYS if "." in key})
MAY_BE_NULL = {key for key, value in flatten(Experiment().to_dict()).items() if value is None}
