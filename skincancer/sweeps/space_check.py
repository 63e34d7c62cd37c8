"""Check of a search space before the first trial, by resolving its corners."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from skincancer.config.cli import build_parser
from skincancer.config.resolve import resolve_content
from skincancer.config.search_space import Space, ends_of
from skincancer.config.validation import check_experiment
from skincancer.errors import ConfigError
from skincancer.schema.dotted_keys import TYPES
from skincancer.schema.experiment import Experiment
from skincancer.schema.parsing import parse_value
from skincancer.sweeps.plan import DEFAULTS, Plan, without_unused

# Largest number of checked corners.
MOST = 64
# Other keys depend on these keys, so a corner with other values of them is resolved from the file, which takes much longer.
_RESOLVED = ("augment.policy", "model.backbone", "model.classifier", "data.size")


@dataclass(frozen=True)
class Checked:
    """Result of a check.

    Args:
        networks: Experiments with networks that are not yet checked.
        unused: For each key without effect, the choices with which it has none.
    """

    networks: list[Experiment]
    unused: dict[str, str]


def corners(search: Space, types: Mapping[str, Any], most: int = MOST) -> list[dict[str, Any]]:
    """Return the corners of a search space: all choices and range ends, combined.

    If there are more than `most`, a fixed sample is returned, in which all values of a key are equally frequent.
    """
    ends = {key: ends_of(space, types[key]) for key, space in search.items()}
    if math.prod(map(len, ends.values())) <= most:
        return [dict(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())]
    generator, count = random.Random(0), max(most, *map(len, ends.values()))
    columns = [[values[number % len(values)] for number in range(count)] for values in ends.values()]
    for column in columns:
        generator.shuffle(column)
    return [dict(zip(ends, values, strict=True)) for values in zip(*columns, strict=True)]


def check_space(plan: Plan, places: Mapping[str, Any]) -> Checked:
    """Check the corners of the search space of a plan.

    Args:
        plan: Plan of the sweep; data hashes may be empty.
        places: PLACE_KEYS of this machine.

    Raises:
        ConfigError: A corner is not a valid experiment, or a key has no effect in all corners; with the conflicting values.
    """
    parser = build_parser("skincancer", "")
    typed = {
        (key, repr(value)): _parsed(key, value, parser)
        for key, space in plan.search.items()
        for value in ends_of(space, TYPES[key])
    }
    resolved: dict[tuple[Any, ...], Experiment] = {}
    unused: dict[str, str] = {}
    used: set[str] = set()
    for point in corners(plan.search, TYPES):
        kind = tuple(point.get(key) for key in _RESOLVED)
        try:
            if kind in resolved:
                values = {key: typed[key, repr(value)] for key, value in point.items()}
                beside = partial(_check_with, resolved[kind])
                _, left_out = without_unused(values, beside)
            else:
                resolved[kind], left_out = plan.at(point, places, parser)
        except ConfigError as error:
            raise _refusal(plan, places, point, parser, error) from error
        used |= {key for key in point.keys() - left_out if typed[key, repr(point[key])] != DEFAULTS[key]}
        for key in left_out:
            others = [
                f"{name} {value}" for name, value in point.items() if name != key and "choices" in plan.search[name]
            ]
            unused.setdefault(key, ", ".join(others))
    if never := [key for key in unused if key not in used]:
        alone = next(
            point
            for point in corners(plan.search, TYPES)
            if typed[never[0], repr(point[never[0]])] != DEFAULTS[never[0]]
        )
        try:
            resolve_content(plan.experiment, {**plan.content, "search": {}}, {**plan.flags, **places, **alone}, parser)
        except ConfigError as error:
            raise ConfigError(
                f"search: {never[0]} has no effect at any point of the search space: {_plain(error)}"
            ) from error
    networks = {
        (point.model.architecture, point.model.backbone, point.data.size, point.model.is_hand_crafted): point
        for point in resolved.values()
    }
    return Checked(list(networks.values()), unused)


def _parsed(key: str, value: Any, parser: Any) -> Any:
    try:
        return parse_value(parser, key, value, "search")
    except ConfigError as error:
        raise ConfigError(f"search: {key} may be {value!r}, which is not valid: {_plain(error)}") from error


def _check_with(experiment: Experiment, values: Mapping[str, Any]) -> None:
    check_experiment(_with(experiment, values), TYPES)


def _with(section: Any, values: Mapping[str, Any]) -> Any:
    """Replace values of an experiment section, by dotted key."""
    own = {key: value for key, value in values.items() if "." not in key}
    inner: dict[str, dict[str, Any]] = {}
    for key in values.keys() - own.keys():
        head, _, rest = key.partition(".")
        inner.setdefault(head, {})[rest] = values[key]
    return replace(section, **own, **{head: _with(getattr(section, head), rest) for head, rest in inner.items()})


def _refusal(
    plan: Plan, places: Mapping[str, Any], point: Mapping[str, Any], parser: Any, error: ConfigError
) -> ConfigError:
    """Return an error with the smallest set of conflicting values of a corner."""
    left = dict(point)
    for key in point:
        fewer = {name: value for name, value in left.items() if name != key}
        try:
            plan.at(fewer, places, parser)
        except ConfigError as other:
            left, error = fewer, other
    (key, value), *others = (left or point).items()
    rest = f" with {', '.join(f'{name} {other!r}' for name, other in others)}" if others else ""
    advice = " Narrow one of the keys, or sweep each choice separately." if others else ""
    return ConfigError(f"search: {key} may be {value!r}{rest}, which is not valid: {_plain(error)}{advice}")


def _plain(error: ConfigError) -> str:
    return re.sub(r"^(command line|search): ", "", str(error))
