"""Search space of a sweep: check of the `search:` block, Optuna's distributions, grid.

The space of a key is `{low, high}` of numbers, optionally with `log: true` or `step`, or `{choices: [a, b, …]}`. Numbers are whole if
the key takes whole numbers only. Only `distributions` imports Optuna.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from skincancer.errors import ConfigError, nearest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


Space = Mapping[str, Mapping[str, Any]]

# Keys that all trials of a sweep share, because other values change the comparison and not the method.
FIXED = (
    "name", "description", "task", "search", "plugins", "data.dataset", "data.where", "data.name",
    "data.split", "data.split_seed", "data.groups", "data.leaks",
    "data.target", "data.malignant", "data.positive", "data.skip_bad", "data.quality", "data.quality_rules",
    "training.monitor", "trainer.devices", "trainer.strategy", "trainer.num_nodes",
    "trainer.limit_val_batches", "trainer.limit_test_batches",
)  # fmt: skip
# Keys of the machine, which may differ between the workers of a sweep.
PLACE_KEYS = (
    "data.root",
    "data.images",
    "data.workers",
    "tracking.uri",
    "tracking.system_metrics",
    "trainer.accelerator",
)
LARGEST_GRID = 10_000
SAMPLERS, PRUNERS = ("tpe", "random", "grid"), ("median", "hyperband", "none")
_RANGE = "{low, high}, optionally with log or step, or {choices}"


def check_search(search: Space, types: Mapping[str, Any]) -> None:
    """Check keys, ranges and choices of a `search:` block.

    Args:
        search: space of each dotted key.
        types: type of each dotted key of the schema.

    Raises:
        ConfigError: names the key, the value and the allowed values.
    """
    for key, space in search.items():
        if key not in types:
            raise ConfigError(f"search: {key} is not a known key.{nearest(str(key), types)}")
        if key in (*FIXED, *PLACE_KEYS):
            raise ConfigError(
                f"search: {key} cannot be searched: it defines the data, metric or machine of the comparison of trials. "
                "Set it on the command line, and run one sweep per value."
            )
        if set(space) == {"choices"}:
            _check_choices(key, space["choices"])
        else:
            _check_range(key, space, types[key])


def _check_choices(key: str, choices: Any) -> None:
    plain = isinstance(choices, list) and all(isinstance(value, str | int | float | None) for value in choices)
    if not plain or not choices or len({(type(value), value) for value in choices}) < len(choices):
        raise ConfigError(
            f"search: {key}: choices is {choices!r}; it must be a list of different texts, numbers, true, false or null."
        )


def _check_range(key: str, space: Mapping[str, Any], kind: Any) -> None:
    def refuse(allowed: str) -> ConfigError:
        return ConfigError(f"search: {key} is {dict(space)!r}; it must be {allowed}.")

    if not {"low", "high"} <= set(space) <= {"low", "high", "log", "step"}:
        raise refuse(_RANGE)
    whole, real = is_of(kind, int), is_of(kind, float)
    if not (whole or real):
        raise refuse("{choices}: the key takes no numbers")
    numbers = [space[name] for name in ("low", "high", "step") if name in space]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers):
        raise refuse("of numbers")
    if not real and not all(isinstance(value, int) for value in numbers):
        raise refuse("of whole numbers")
    low, high, step = space["low"], space["high"], space.get("step")
    if not low < high or not all(map(math.isfinite, numbers)):
        raise refuse("finite numbers, low below high")
    if not isinstance(space.get("log", False), bool):
        raise refuse("with log true or false")
    if space.get("log") and low <= 0:
        raise refuse("above 0 for log")
    if space.get("log") and step is not None:
        raise refuse("with log or with step, not with both")
    if step is not None:
        count = (high - low) / step if step > 0 else 0
        if count < 1 or abs(count - round(count)) > 1e-6:
            raise refuse("with a step above 0 that leads from low to high")


def is_of(kind: Any, wanted: type) -> bool:
    """Return whether the type of a key includes `wanted`."""
    return kind is wanted or wanted in get_args(kind)


def is_whole(space: Mapping[str, Any], kind: Any) -> bool:
    """Return whether a range has whole numbers.

    The key takes whole numbers only, or takes both and the range is written in whole numbers.
    """
    written = all(isinstance(space[name], int) for name in ("low", "high", "step") if space.get(name) is not None)
    return is_of(kind, int) and (written or not is_of(kind, float))


def distributions(search: Space, types: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each key of a checked space."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    result: dict[str, BaseDistribution] = {}
    for key, space in search.items():
        if "choices" in space:
            result[key] = CategoricalDistribution(tuple(space["choices"]))
            continue
        low, high, log, step = space["low"], space["high"], bool(space.get("log")), space.get("step")
        if is_whole(space, types[key]):
            result[key] = IntDistribution(int(low), int(high), log=log, step=int(step or 1))
        else:
            result[key] = FloatDistribution(
                float(low), float(high), log=log, step=None if step is None else float(step)
            )
    return result


def ends_of(space: Mapping[str, Any], kind: Any) -> list[Any]:
    """Return the values to check: all choices, or both ends of a range."""
    if "choices" in space:
        return list(space["choices"])
    return [(int if is_whole(space, kind) else float)(space[name]) for name in ("low", "high")]


def grid(search: Space, types: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every point of a space. The values of the last key change fastest.

    Raises:
        ConfigError: a range without steps, or too many points.
    """
    values: list[Sequence[Any]] = []
    for key, space in search.items():
        if "choices" in space:
            values.append(space["choices"])
            continue
        step = space.get("step")
        if (step is None and not is_whole(space, types[key])) or space.get("log"):
            raise ConfigError(
                f"--sampler grid: {key} is {dict(space)!r}, which has no steps. Use choices or a step, or another --sampler."
            )
        count = round((space["high"] - space["low"]) / (step or 1)) + 1
        values.append([space["low"] + number * (step or 1) for number in range(count)])
    if (count := math.prod(map(len, values))) > LARGEST_GRID:
        raise ConfigError(
            f"--sampler grid: the space has {count:,} points; at most {LARGEST_GRID:,} are queued. Use fewer choices, or --sampler random."
        )
    return [dict(zip(search, point, strict=True)) for point in itertools.product(*values)]
