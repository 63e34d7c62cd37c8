"""Command-line parsing: every key of an experiment is a dotted flag."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from skincancer.errors import ConfigError, nearest
from skincancer.plugins import load_plugins
from skincancer.schema.dotted_keys import KEYS, MAY_BE_NULL, SECTIONS, flatten, unflatten
from skincancer.schema.experiment import Experiment


def _check_keys(flat: Mapping[str, Any], source: str) -> None:
    for key in flat:
        if key in KEYS:
            continue
        if key in SECTIONS:
            raise ConfigError(
                f"{source}: {key} is {flat[key]!r}; it is a section and takes keys such as {_inside(key)}"
            )
        raise ConfigError(f"{source}: {key} is not a known key.{nearest(key, KEYS)} {_allowed(key)}")


def _inside(section: str) -> str:
    return ", ".join(key for key in KEYS if key.startswith(f"{section}."))


def _allowed(key: str) -> str:
    """List the keys of the section of an unknown key."""
    section = key
    while "." in section:
        section = section.rsplit(".", 1)[0]
        if section in SECTIONS:
            return f"Keys of {section}: {_inside(section)}."
    return f"Top-level keys: {', '.join(sorted({key.split('.')[0] for key in KEYS}))}, study."


def build_parser(prog: str, description: str) -> ArgumentParser:
    """Return a parser of `--experiment` and of all keys as dotted flags."""
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s --experiment NAME [--KEY VALUE …]",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    parser.add_argument(
        "--experiment", type=str, help="name of a shipped experiment (see --list) or path to a YAML file"
    )
    parser.add_argument("--list", action="store_true", help="list the shipped experiments and exit")
    add_plugin_flag(parser)
    parser.add_class_arguments(Experiment, None, fail_untyped=True)
    return parser


def add_plugin_flag(parser: ArgumentParser) -> None:
    """Add `--plugin`. `parse_flags` loads the plugins."""
    parser.add_argument(
        "--plugin", type=str, action="append", metavar="MODULE", help="import a module that registers parts of your own"
    )


_TYPE_NAMES = (
    (r"<class '(\w+)'>", r"\1"), ("NoneType", "null"), (r"typing\.", ""), ("Union", "one of "), ("Literal", "one of "),
    (r"\bint\b", "whole number"), (r"\bfloat\b", "number"), (r"\bstr\b", "text"), (r"\bbool\b", "true or false"),
)  # fmt: skip


def explain_error(error: Exception, source: str, flags: Sequence[str] = ()) -> ConfigError:
    """Return an error with source, key, value, allowed values and nearest match."""
    text = str(error)
    unknown = re.match(r"unrecognized arguments: (.*)", text, re.S)
    if unknown:
        flag = unknown[1].split()[0]
        known = [f"--{key}" for key in KEYS] + list(flags)
        key = flag.split("=")[0]
        return ConfigError(f"{source}: {key} is not a known flag.{nearest(key, known)} {_allowed(key.lstrip('-'))}")
    wrong = re.match(r'Parser key "([\w.]+)":\s*(.*)', text, re.S)
    if wrong:
        values = re.findall(r"(?:Got|Given) value: (.*)", wrong[2])
        expected = re.findall(r"Expected an? (.*?)(?:\. Got value|$)", wrong[2], re.M) or [wrong[2]]
        allowed = " or ".join(dict.fromkeys(expected))
        for pattern, plain in _TYPE_NAMES:
            allowed = re.sub(pattern, plain, allowed)
        value = values[-1].strip().removesuffix("." if "Given value" in wrong[2] else "") if values else ""
        choices = re.findall(r"'([^']+)'", allowed)
        hint = f" Write a list as [{value}]." if allowed.startswith("list") else nearest(value, choices)
        return ConfigError(f"{source}: {wrong[1]} is {value!r}; it must be {allowed}.{hint}")
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
    if value is None and key not in MAY_BE_NULL:
        raise ConfigError(f"{source}: {key} is null; set a value, or leave the key out.")
    try:
        return parser.parse_object(unflatten({key: value}), defaults=False, env=False)[key]
    except ArgumentError as error:
        raise explain_error(error, source) from error


def parse_flags(parser: ArgumentParser, argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse the command line, and load its plugins.

    Returns:
        Values of keys of the schema, and of the verb's own flags, without defaults.

    Raises:
        ConfigError: an unknown flag, a wrong type, or a plugin that fails.
    """
    own = [option for action in parser._actions for option in action.option_strings]
    for flag in argv:
        section = flag.split("=")[0]
        if section.startswith("--") and section[2:] in SECTIONS:
            raise ConfigError(f"command line: {section} is a section; set its keys: {_inside(section[2:])}")
    try:
        values = parser.parse_args(list(argv), defaults=False, env=False).as_dict()
    except ArgumentError as error:
        raise explain_error(error, "command line", own) from error
    flat = flatten(values)
    keys = {key: value for key, value in flat.items() if key in KEYS}
    own_flags = {key: value for key, value in flat.items() if key not in KEYS}
    if plugins := [*keys.get("plugins", []), *own_flags.pop("plugin", [])]:
        keys["plugins"] = plugins
    load_plugins(plugins, installed=True)
    return keys, own_flags
