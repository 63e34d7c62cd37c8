"""What a sweep is of: the experiment, its space, and how it is searched, as it is kept in the study."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from skincancer.config.resolve import resolve_content
from skincancer.config.search_space import PLACE_KEYS
from skincancer.errors import UnusedKey
from skincancer.schema import Experiment, flatten, unflatten

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from skincancer.data.prepare import PreparedData


_Made = TypeVar("_Made")
DEFAULTS = flatten(Experiment().to_dict())


@dataclass(frozen=True)
class Plan:
    """What a study is of; it is kept in the study, so that a worker needs nothing else.

    Args:
        experiment: its name.
        content: of its file; without the MLflow store, which each machine names for itself, and which may hold a password.
        flags: dotted keys of the command line.
        search: the space.
        sampler: one of SAMPLERS.
        pruner: one of PRUNERS.
        split_hash: of the roles of images.
        index_hash: of the images.
        images: those that are learned from and validated on, as `used_images` tells them; "" in studies of older versions.
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
        """Return the experiment of one point of the space; see `at`."""
        return self.at(params, places)[0]

    def at(
        self, params: Mapping[str, Any], places: Mapping[str, Any], parser: ArgumentParser | None = None
    ) -> tuple[Experiment, list[str]]:
        """Return the experiment of one point of the space, and which of its keys have no meaning there, such as SGD's momentum with Adam.

        Args:
            params: dotted key to value.
            places: PLACE_KEYS of this machine.
            parser: as `build_parser` makes it.

        Raises:
            ConfigError: the point is no experiment.
        """
        content = {key: value for key, value in self.content.items() if key != "search"}

        def resolve(point: Mapping[str, Any]) -> Experiment:
            return resolve_content(self.experiment, content, {**self.flags, **places, **point}, parser)[0]

        return without_unused(params, resolve)

    def differences(self, other: Plan) -> list[str]:
        """Return a line for whatever makes `other` another sweep, with both values."""
        mine, theirs = self._identity(), other._identity()
        if not self.images:
            mine["images"] = theirs["images"]
        keys = dict.fromkeys([*mine, *theirs])
        return [
            f"{key}: the study has {mine.get(key)!r}, asked is {theirs.get(key)!r}"
            for key in keys
            if mine.get(key) != theirs.get(key)
        ]

    def _identity(self) -> dict[str, Any]:
        own = flatten(self.resolve({}, {}).to_dict())
        kept = {key: value for key, value in own.items() if key not in (*PLACE_KEYS, "search", "description")}
        space = {f"search {key}": value for key, value in self.search.items()}
        rest = {name: getattr(self, name) for name in ("sampler", "pruner", "split_hash", "index_hash", "images")}
        return {**kept, **space, **rest}


def without_unused(values: Mapping[str, Any], make: Callable[[Mapping[str, Any]], _Made]) -> tuple[_Made, list[str]]:
    """Return what `make` makes of values, and which keys have no meaning with the others; these have their defaults there.

    Raises:
        ConfigError: as `make` does, of whatever is wrong beside that.
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


def used_images(data: PreparedData) -> str:
    """Return how many images are learned from and validated on, and a hash of which: not all that have a role can be read everywhere."""
    parts = {role: sorted(data.rows(role)["image_id"]) for role in ("train", "val")}
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    return f"{len(parts['train'])} to train on, {len(parts['val'])} to validate on ({digest})"
