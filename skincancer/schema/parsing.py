"""Parsing of dotted keys: known keys, types, and plain sizes of values."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from skincancer.errors import ConfigError, nearest
from skincancer.schema.dotted_keys import KEYS, MAY_BE_NULL, SECTIONS, flatten, unflatten
from skincancer.schema.experiment import Experiment
from skincancer.schema.ranges import check_range

# Seeds of numpy and Lightning are at most as large, and no key needs larger whole numbers.
LARGEST = 2**32 - 1
# Longest path of Linux. MLflow refuses params of more than 6,000 characters.
LONGEST = 4096
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def _check_keys(flat: Mapping[Any, Any], source: str) -> None:
    for key in map(str, flat):
        if key in KEYS:
            continue
        if key in SECTIONS:
            raise ConfigError(
                f"{source}: {key} is {flat.get(key)!r}; it is a section and takes keys such as {inside(key)}."
            )
        raise ConfigError(f"{source}: {key} is not a known key.{nearest(key, KEYS)} {_allowed(key)}")


def inside(section: str) -> str:
    """Return the keys of a section, separated by commas."""
    return ", ".join(key for key in KEYS if key.startswith(f"{section}."))


def _allowed(key: str) -> str:
    """List the keys of the section of an unknown key."""
    section = key
    while "." in section:
        section = section.rsplit(".", 1)[0]
        if section in SECTIONS:
            return f"Keys of {section}: {inside(section)}."
    return f"Top-level keys: {', '.join(sorted({key.split('.')[0] for key in KEYS}))}, study."


_TYPE_NAMES = (
    (r"<class '(\w+)'>", r"\1"), ("NoneType", "null"), (r"typing\.", ""), ("Union", "one of "), ("Literal", "one of "),
    (r"\bint\b", "whole number"), (r"\bfloat\b", "number"), (r"\bstr\b", "text"), (r"\bbool\b", "true or false"),
)  # fmt: skip


def explain_error(error: Exception, source: str, flags: Sequence[str] = ()) -> ConfigError:
    """Return an error with source, key, value, allowed values and nearest match."""
    text = str(error)
    unknown = re.match(r"unrecognized arguments: (.*)", text, re.S)
    if unknown:
        flag = (unknown[1].split() or ["''"])[0]
        known = [f"--{key}" for key in KEYS] + list(flags)
        key = flag.split("=")[0]
        return ConfigError(f"{source}: {key} is not a known flag.{nearest(key, known)} {_allowed(key.lstrip('-'))}")
    wrong = re.match(r'Parser key "([\w.]+)"(?: element \d+)?:\s*(.*)', text, re.S)
    if wrong:
        values = re.findall(r"(?:Got|Given) value: (.*)", wrong[2])
        expected = re.findall(r"Expected an? (.*?)(?:\. Got value|$)", wrong[2], re.M) or [wrong[2]]
        allowed = " or ".join(dict.fromkeys(expected))
        for pattern, plain in _TYPE_NAMES:
            allowed = re.sub(pattern, plain, allowed)
        value = values[-1].strip().removesuffix("." if "Given value" in wrong[2] else "") if values else ""
        choices = re.findall(r"'([^']+)'", allowed)
        hint = f" Write a list as [{value}]." if allowed.startswith("list") else nearest(value, choices)
        name = wrong[1] if wrong[1] in KEYS else f"--{wrong[1].replace('_', '-')}"
        return ConfigError(f"{source}: {name} is {value!r}; it must be {allowed}.{hint}")
    return ConfigError(f"{source}: {text}")


def parse_layer(parser: ArgumentParser, flat: Mapping[str, Any], source: str) -> None:
    """Check keys and types of the values of one file. Errors name the file."""
    _check_keys(flat, source)
    for key, value in flat.items():
        parse_value(parser, key, value, source)


def parse_value(parser: ArgumentParser, key: str, value: Any, source: str) -> Any:
    """Return a value in the type of its key.

    Raises:
        ConfigError: the value has another type.
    """
    check_size(key, value, source)
    if value is None and key not in MAY_BE_NULL:
        raise ConfigError(f"{source}: {key} is null; set a value, or leave the key out.")
    try:
        return parser.parse_object(unflatten({key: value}), defaults=False, env=False)[key]
    except ArgumentError as error:
        raise explain_error(error, source) from error


def parse_config(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check keys, types and ranges in the config of a run.

    Returns:
        The config with all keys. Keys that are newer than the run have their defaults.

    Raises:
        ConfigError: the content is not the config of a run.
    """
    flat = flatten(content)
    if "task" not in flat:
        raise ConfigError(f"{source} has no key task; expected the config of a run. Use the files of a finished run.")
    parse_layer(_parser(), flat, source)
    for key, value in flat.items():
        try:
            check_range(key, value)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
    return unflatten({**flatten(Experiment().to_dict()), **flat})


@functools.cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(Experiment, None, fail_untyped=True)
    return parser


def check_size(key: str, value: Any, source: str) -> None:
    """Check whole numbers and texts of a value, also inside lists and mappings.

    Raises:
        ConfigError: a number is too large, or a text is too long or has control characters.
    """
    for part in _parts(value):
        problem = ""
        if isinstance(part, int) and abs(part) > LARGEST:
            digits = "a whole number of many digits" if abs(part) >= 10**50 else str(part)
            problem = f"is {digits}; a whole number must be at most {LARGEST}"
        elif isinstance(part, str) and len(part) > LONGEST:
            problem = f"is a text of {len(part):,} characters; it must have at most {LONGEST:,}"
        elif isinstance(part, str) and (control := _CONTROLS.search(part)):
            problem = f"is {part!r}; it must not contain the control character {control[0]!r}"
        if problem:
            raise ConfigError(f"{source}: {key} {problem}. Use another value.")


def _parts(value: Any) -> Iterator[Any]:
    """Yield the values and keys of nested lists and mappings."""
    if isinstance(value, Mapping):
        yield from _parts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _parts(inner)
    else:
        yield value
