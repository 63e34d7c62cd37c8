"""Write docs/reference.md from the schema: run `python docs/generate_reference.py` after a key was changed."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from skincancer.config.names import known_names
from skincancer.schema.experiment import Experiment

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Keys of an experiment

Set a key in an experiment file, or on the command line as a flag: `--data.split 70:30`.

This page is generated from `skincancer/schema/`. Do not edit it; run `python docs/generate_reference.py`.
"""
PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "any value"}


def type_name(hint: Any) -> str:
    """Return the words for the type of a key."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(part) for part in inner)
    if origin is list:
        return f"list ({type_name(inner[0])})"
    if origin is dict:
        return f"mapping ({type_name(inner[0])}: {type_name(inner[1])})"
    return PLAIN[hint]


def default_text(value: Any) -> str:
    """Return a default as a YAML file has it."""
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list):
        return f"`[{', '.join(value)}]`"
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{key}: {number:g}" for key, number in value.items()) + "}`"
    return f"`{value}`" if value != "" else "(empty)"


def rows(section: Any, prefix: str, names: dict[str, list[str]]) -> list[str]:
    """Return one row of a table for each key of a section, without those of inner sections."""
    help_texts = {entry.arg_name: entry.description or "" for entry in parse(section.__doc__ or "").params}
    lines = []
    for name, hint in get_type_hints(section).items():
        if dataclasses.is_dataclass(hint):
            continue
        key = prefix + name
        meaning = " ".join(help_texts[name].split())
        if key in names and get_origin(hint) is not Literal:
            meaning += f". Names: {', '.join(f'`{known}`' for known in names[key])}" if names[key] else ""
        cells = [f"`{key}`", type_name(hint), default_text(getattr(section(), name)), meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return lines


def tables(section: Any, prefix: str, names: dict[str, list[str]]) -> list[str]:
    """Return the heading and the table of a section, then those of its inner sections."""
    title = f"`{prefix.rstrip('.')}`" if prefix else "Top level"
    summary = parse(section.__doc__ or "").short_description or ""
    own = rows(section, prefix, names)
    lines = [f"\n## {title}\n\n{summary}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |", *own]
    for name, hint in get_type_hints(section).items():
        if dataclasses.is_dataclass(hint):
            lines += tables(hint, f"{prefix}{name}.", names)
    return lines


def reference() -> str:
    """Return the page."""
    return HEAD + "\n".join(tables(Experiment, "", known_names())) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
