"""What a sweep is of: the experiment, its space, and how it is searched, as it is kept in the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skincancer import config
from skincancer.search import PLACE_KEYS


@dataclass(frozen=True)
class Plan:
    """What a study is of; it is kept in the study, so that a worker needs nothing else.

    Args:
        experiment: its name.
        content: of its file.
        flags: dotted keys of the command line.
        search: the space.
        sampler: one of SAMPLERS.
        pruner: one of PRUNERS.
        split_hash: of the roles of images.
        index_hash: of the images.
    """

    experiment: str
    content: dict[str, Any]
    flags: dict[str, Any]
    search: dict[str, Any]
    sampler: str
    pruner: str
    split_hash: str
    index_hash: str

    def resolve(self, params: Mapping[str, Any], places: Mapping[str, Any]) -> Any:
        """Return the experiment of one point of the space.

        Args:
            params: dotted key to value.
            places: PLACE_KEYS of this machine.

        Raises:
            ConfigError: the point is no experiment.
        """
        content = {key: value for key, value in self.content.items() if key != "search"}
        return config.resolve_content(self.experiment, content, {**self.flags, **places, **params})[0]

    def differences(self, other: Plan) -> list[str]:
        """Return a line for whatever makes `other` another sweep, with both values."""
        mine, theirs = self._identity(), other._identity()
        keys = dict.fromkeys([*mine, *theirs])
        return [
            f"{key}: the study has {mine.get(key)!r}, asked is {theirs.get(key)!r}"
            for key in keys
            if mine.get(key) != theirs.get(key)
        ]

    def _identity(self) -> dict[str, Any]:
        own = config.flatten(self.resolve({}, {}).to_dict())
        kept = {key: value for key, value in own.items() if key not in (*PLACE_KEYS, "search", "description")}
        space = {f"search {key}": value for key, value in self.search.items()}
        rest = {name: getattr(self, name) for name in ("sampler", "pruner", "split_hash", "index_hash")}
        return {**kept, **space, **rest}
