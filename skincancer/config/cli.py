"""Command-line parsing: every key of an experiment is a dotted flag."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from skincancer.errors import ConfigError, nearest
from skincancer.plugins import load_plugins
from skincancer.schema.dotted_keys import KEYS, SECTIONS, flatten
from skincancer.schema.experiment import Experiment
from skincancer.schema.parsing import check_size, explain_error, inside


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
            raise ConfigError(f"command line: {section} is a section; set its keys: {inside(section[2:])}")
    try:
        values = parser.parse_args(list(argv), defaults=False, env=False).as_dict()
    except ArgumentError as error:
        raise explain_error(error, "command line", own) from error
    flat = flatten(values)
    for key, value in flat.items():
        if key in KEYS:
            check_size(key, value, "command line")
        else:
            check_flag(key, value)
    keys = {key: value for key, value in flat.items() if key in KEYS}
    own_flags = {key: value for key, value in flat.items() if key not in KEYS}
    if plugins := [*keys.get("plugins", []), *own_flags.pop("plugin", [])]:
        keys["plugins"] = plugins
    load_plugins(plugins, installed=True)
    return keys, own_flags


def flag_words(flags: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line for values of keys."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flags.items()]


def parse_plain_flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line of a verb without keys of an experiment.

    Args:
        parser: parser with `exit_on_error=False`.
        argv: words of the command line.

    Raises:
        ConfigError: an unknown flag, a wrong type, or an empty or huge value.
    """
    try:
        flags, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise ConfigError(f"command line: {error}. See --help.") from error
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
        flag = unknown[0].split("=")[0] or "''"
        raise ConfigError(f"command line: {flag} is not a known flag.{nearest(flag, known)} Flags: {' '.join(known)}.")
    for action in parser._actions:
        if action.option_strings and getattr(flags, action.dest, None) is not None:
            check_flag(action.option_strings[0].lstrip("-"), getattr(flags, action.dest))
    return flags


def check_flag(name: str, value: Any) -> None:
    """Check the size of a flag's value.

    Raises:
        ConfigError: the value is empty, huge, or repeated.
    """
    check_size(f"--{name}", value, "command line")
    values = value if isinstance(value, list) else [value]
    flag = f"--{name.replace('_', '-')}"
    if not values or "" in values:
        raise ConfigError(f"command line: {flag} is empty. Set a value, or leave the flag out.")
    if repeated := [word for number, word in enumerate(values) if word in values[:number]]:
        raise ConfigError(f"command line: {flag} names {repeated[0]} twice. Use each value once.")
