"""Ranges of the values of keys."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from skincancer.errors import ConfigError
from skincancer.schema.experiment import Experiment
from skincancer.schema.rules import NAMES

RANGES: dict[str, Callable[[Any], bool]] = {
    "1 to 200 characters on one line": lambda value: 0 < len(value) <= 200 and value.isprintable(),
    "at most 1,000 characters": lambda value: len(value) <= 1000,
    "0 or more": lambda value: value >= 0,
    "0 or more, at most 1000": lambda value: 0 <= value <= 1000,
    "0 or more, at most a million": lambda value: 0 <= value <= 10**6,
    "from 0 to 1024": lambda value: 0 <= value <= 1024,
    "from 0 to 65536": lambda value: 0 <= value <= 65536,
    "0 or more and below 1": lambda value: 0 <= value < 1,
    "1 or more": lambda value: value >= 1,
    "1 or more, at most a million": lambda value: 1 <= value <= 10**6,
    "above 0, and finite": lambda value: 0 < value < math.inf,
    "above 0 and below 100": lambda value: 0 < value < 100,
    "above 0, at most 1": lambda value: 0 < value <= 1,
    "above 0, at most 2": lambda value: 0 < value <= 2,
    "from 0 to 5": lambda value: 0 <= value <= 5,
    "a whole number of pixels from 1 to 4096": lambda value: 1 <= value <= 4096,
    "a number of batches (1 or more) or a share (above 0, at most 1.0)": lambda value: (
        value >= 1 if isinstance(value, int) else 0 < value <= 1
    ),
    "auto, or 1 or more": lambda value: value == "auto" or _is_count(value),
    "auto, or above 0 and below 1": lambda value: value == "auto" or 0 < value < 1,
    "scale, or above 0": lambda value: value == "scale" or 0 < value < math.inf,
    NAMES: lambda value: bool(re.fullmatch(r"\w[\w .-]{0,79}", value)),
    "none, all, or a number of stages": lambda value: value in ("none", "all") or _is_count(value),
}


def _is_count(value: int | str) -> bool:
    """Return whether a number or text is a count from 1."""
    text = str(value)
    return text.isdecimal() and len(text) < 10 and int(text) > 0


def _rules(
    section: Any, prefix: str = "", inherited: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every dotted key with its rules. Keys inherit `only_with` of their section."""
    hints = get_type_hints(section)
    for option in fields(section):
        name, hint = f"{prefix}{option.name}", hints[option.name]
        rules = {**option.metadata, "only_with": {**(inherited or {}), **option.metadata.get("only_with", {})}}
        if is_dataclass(hint):
            yield from _rules(hint, f"{name}.", rules["only_with"])
        else:
            yield name, rules


RULES = dict(_rules(Experiment))


def check_range(key: str, value: Any) -> None:
    """Check the range of a value, and that a list has no value twice.

    Null is in every range.

    Raises:
        ConfigError: names the key, the value and the range or the repeated value.
    """
    allowed = RULES[key].get("allowed") or "a finite number"
    is_finite = not isinstance(value, float) or math.isfinite(value)
    if value is not None and not (is_finite and RANGES.get(allowed, lambda _: True)(value)):
        shown = repr(value)
        raise ConfigError(f"{key} is {shown if len(shown) < 200 else f'{shown[:100]}…'}; it must be {allowed}.")
    if isinstance(value, list) and (repeated := [part for number, part in enumerate(value) if part in value[:number]]):
        raise ConfigError(f"{key} contains {repeated[0]!r} twice. Remove one of the two.")
