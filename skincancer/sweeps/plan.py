"""Plan of a sweep: experiment, search space, sampler and pruner, stored in the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from skincancer.config.resolve import resolve_content
from skincancer.config.search_space import PLACE_KEYS
from skincancer.errors import UnusedKey
from skincancer.schema.dotted_keys import flatten, unflatten
from skincancer.schema.experiment import Experiment

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_Made = TypeVar("_Made")
DEFAULTS = flatten(Experiment().to_dict())


@dataclass(frozen=True)
class Plan:
    """Plan of a study, stored in it so that workers need no other input.

    Args:
        experiment: Name of the experiment.
        content: of its file; without the MLflow store, which each machine names for itself, and which may hold a password.
        flags: Dotted keys of the command line.
        search: Search space.
        sampler: One of SAMPLERS.
        pruner: One of PRUNERS.
        split_hash: Hash of the roles of the images.
        index_hash: Hash of the images.
        images: Training and validation images, from `engines.machine_check.used_images`; "" in studies of older versions.
    """

    experiment: str
    content: dict[str, Any]
    flags: dict[str, Any]
    search: dict[str, Any]
    sampler: str
    pruner: str
    split_hash: str
    index_hash: str
    images: str = ""

    def __post_init__(self) -> None:
        """Drop the MLflow store."""
        flat = flatten(self.content)
        kept = {key: value for key, value in flat.items() if key not in ("tracking.uri", "study.tracking.uri")}
        object.__setattr__(self, "content", unflatten(kept))

    def resolve(self, params: Mapping[str, Any], places: Mapping[str, Any]) -> Experiment:
        """Return the experiment of one point of the search space."""
        return self.at(params, places)[0]

    def at(
        self, params: Mapping[str, Any], places: Mapping[str, Any], parser: ArgumentParser | None = None
    ) -> tuple[Experiment, list[str]]:
        """Return the experiment of one point, and its keys without effect.

        For example, the momentum of SGD has no effect with Adam.

        Args:
            params: Values by dotted key.
            places: PLACE_KEYS of this machine.
            parser: Result of `build_parser`.

        Raises:
            ConfigError: The point is not a valid experiment.
        """
        content = {key: value for key, value in self.content.items() if key != "search"}

        def resolve(point: Mapping[str, Any]) -> Experiment:
            return resolve_content(self.experiment, content, {**self.flags, **places, **point}, parser)[0]

        return without_unused(params, resolve)

    def differences(self, other: Plan) -> list[str]:
        """List all differences from another plan, with both values."""
        stored, requested = self._identity(), other._identity()
        if not self.images:
            stored["images"] = requested["images"]
        keys = dict.fromkeys([*stored, *requested])
        return [
            f"{key}: the study has {stored.get(key)!r}, requested is {requested.get(key)!r}"
            for key in keys
            if stored.get(key) != requested.get(key)
        ]

    def _identity(self) -> dict[str, Any]:
        own = flatten(self.resolve({}, {}).to_dict())
        kept = {key: value for key, value in own.items() if key not in (*PLACE_KEYS, "search", "description")}
        space = {f"search {key}": value for key, value in self.search.items()}
        rest = {name: getattr(self, name) for name in ("sampler", "pruner", "split_hash", "index_hash", "images")}
        return {**kept, **space, **rest}


def without_unused(values: Mapping[str, Any], make: Callable[[Mapping[str, Any]], _Made]) -> tuple[_Made, list[str]]:
    """Call `make` with the values, and defaults for keys without effect.

    Returns:
        The result of `make`, and the keys without effect.

    Raises:
        ConfigError: `make` rejects the values for another reason.
    """
    point, unused = dict(values), list[str]()
    while True:
        try:
            return make(point), unused
        except UnusedKey as error:
            if error.key not in point or error.key in unused:
                raise
            unused.append(error.key)
            point[error.key] = DEFAULTS[error.key]
