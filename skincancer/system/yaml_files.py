"""YAML files: read and write, with `80:20` kept as text."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from skincancer.errors import ConfigError

# An experiment file of this project has 3 kB, its sections at most four levels and its `search:` block a few hundred values.
_LARGEST_FILE, _DEEPEST, _MOST = 1_000_000, 20, 10_000


class _Loader(yaml.SafeLoader):
    """Loader that reads `80:20` as text, `1e-4` as a float, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping, which YAML allows to have a key only once."""
        before: set[str] = set()
        for key, _ in node.value:
            # The merge key `<<` may be repeated.
            if isinstance(key, yaml.ScalarNode) and key.value in before - {"<<"}:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} is set twice", key.start_mark)
            before.add(str(key.value))
        return super().construct_mapping(node, deep)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_OTHER = (*_NUMBERS, "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHER]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBERS[0], re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(r"^[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+.0123456789"),
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Raises:
        ConfigError: the file is unreadable, too large, not YAML, or not a mapping.
    """
    try:
        if (size := path.stat().st_size) > _LARGEST_FILE:
            raise ConfigError(f"{path} has {size:,} bytes; expected an experiment file of at most {_LARGEST_FILE:,}.")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{path} cannot be read as YAML: {error.problem or error.context}{place}. Fix it.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}. Save it as UTF-8.") from error
    # The parser is recursive, and Python limits the digits of a number.
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read as YAML: {problem}. Use a plain experiment file.") from error
    if content is None:
        raise ConfigError(f"{path} is empty; expected a mapping of sections such as `data:`.")
    if not isinstance(content, dict):
        raise ConfigError(f"{path} contains {type(content).__name__}; expected a mapping of sections such as `data:`.")
    _check_nesting(content, path)
    return content


def _check_nesting(content: Any, path: Path) -> None:
    """Reject content that contains itself, or that anchors multiply without end."""
    values, count = [(content, 1)], 0
    while values:
        value, depth = values.pop()
        count += 1
        if depth > _DEEPEST or count > _MOST:
            raise ConfigError(
                f"{path} has more than {_DEEPEST} nested levels or {_MOST:,} values; expected a plain experiment file. "
                "Remove anchors (&) and aliases (*) that repeat their own section."
            )
        inner = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        values += [(part, depth + 1) for part in inner]


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes texts that PyYAML or `_Loader` would read as numbers."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Return a mapping as YAML text, with the keys in their order."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
