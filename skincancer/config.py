"""Experiments: load by name or path, override by dotted flag, check before anything long starts.

Order of values: schema defaults, the catalog entry's, the experiment file, its `study:` block (on real data only), flags.
Nothing here imports torch, pandas or MLflow, so that a wrong key is told in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from skincancer.checks import MONITORS, check_experiment, is_of_network
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.errors import ConfigError, UnusedKey, nearest
from skincancer.images import policies
from skincancer.models.backbones import SMALLEST_SIZE
from skincancer.paths import experiments_folder
from skincancer.schema import Experiment

EXTRA_KEYS = ("study",)  # keys of an experiment file that a resolved config does not hold


class _Loader(yaml.SafeLoader):
    """YAML without base-60 numbers (`80:20` stays text) and with floats such as `1e-4`."""


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBERS[0], re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(r"^[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf)$|^\.(nan|NaN)$"),
    list("-+.0123456789"),
)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        ConfigError: unreadable, not YAML, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}, not a mapping of sections such as `data:`")
    return content


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either PyYAML or our loader would take for a number."""


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def dump_yaml(content: Mapping[str, Any]) -> str:
    """Write a mapping as YAML, keys in their order."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def list_experiments() -> dict[str, str]:
    """Return the shipped experiments: name to description."""
    found = sorted(experiments_folder().glob("*.yaml"))
    return {path.stem: str(load_yaml(path).get("description", "")) for path in found}


def find_experiment(name: str) -> Path:
    """Return the file of an experiment given by name or path.

    Raises:
        ConfigError: there is none; says the nearest name and all of them.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name or os.sep in name:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise ConfigError(f"--experiment {name}: there is no such file (looked at {path.absolute()})")
    path = experiments_folder() / f"{name}.yaml"
    if path.is_file():
        return path
    names = [found.stem for found in sorted(experiments_folder().glob("*.yaml"))]
    raise ConfigError(
        f"--experiment {name}: unknown.{nearest(name, names)} Choose one of {', '.join(names)}, or give a path to a YAML file."
    )


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted keys; a key of the schema that holds a mapping (search) stays whole."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted not in KEYS:
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested sections."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *sections, last = dotted.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def _types(section: Any, prefix: str = "") -> dict[str, Any]:
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        types |= _types(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else {f"{prefix}{name}": hint}
    return types


TYPES = _types(Experiment)
KEYS = tuple(TYPES)
MAY_BE_NULL = {key for key, value in flatten(Experiment().to_dict()).items() if value is None}
SECTIONS = sorted({key.rsplit(".", 1)[0] for key in KEYS if "." in key})


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
    """Say which keys stand where the unknown one was written."""
    section = key
    while "." in section:
        section = section.rsplit(".", 1)[0]
        if section in SECTIONS:
            return f"Keys of {section}: {_inside(section)}."
    return f"Top-level keys: {', '.join(sorted({key.split('.')[0] for key in KEYS}))}, study."


def build_parser(prog: str, description: str) -> ArgumentParser:
    """Return a parser that takes `--experiment` and every key of the schema as a dotted flag."""
    parser = ArgumentParser(
        prog=prog,
        usage="%(prog)s --experiment NAME [--KEY VALUE …]",
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    parser.add_argument("--experiment", type=str, help="a shipped experiment's name (--list) or a path to a YAML file")
    parser.add_argument("--list", action="store_true", help="list the shipped experiments and stop")
    parser.add_class_arguments(Experiment, None, fail_untyped=True)
    return parser


_TYPE_NAMES = (
    (r"<class '(\w+)'>", r"\1"), ("NoneType", "null"), (r"typing\.", ""), ("Union", "one of "), ("Literal", "one of "),
    (r"\bint\b", "whole number"), (r"\bfloat\b", "number"), (r"\bstr\b", "text"), (r"\bbool\b", "true or false"),
)  # fmt: skip


def _explain(error: Exception, source: str, flags: Sequence[str] = ()) -> ConfigError:
    """Turn the parser's error into: where, key, value, what is allowed, nearest match."""
    text = str(error)
    unknown = re.match(r"unrecognized arguments: (.*)", text, re.S)
    if unknown:
        flag = unknown[1].split()[0]
        known = [f"--{key}" for key in KEYS] + list(flags)
        key = flag.split("=")[0]
        return ConfigError(f"{source}: {key} is not a known flag.{nearest(key, known)} {_allowed(key.lstrip('-'))}")
    wrong = re.match(r'Parser key "([\w.]+)":\s*(.*)', text, re.S)
    if wrong:
        given = re.findall(r"(?:Got|Given) value: (.*)", wrong[2])
        expected = re.findall(r"Expected an? (.*?)(?:\. Got value|$)", wrong[2], re.M) or [wrong[2]]
        allowed = " or ".join(dict.fromkeys(expected))
        for pattern, plain in _TYPE_NAMES:
            allowed = re.sub(pattern, plain, allowed)
        value = given[-1].strip().removesuffix("." if "Given value" in wrong[2] else "") if given else ""
        choices = re.findall(r"'([^']+)'", allowed)
        hint = f" Write a list as [{value}]." if allowed.startswith("list") else nearest(value, choices)
        return ConfigError(f"{source}: {wrong[1]} is {value!r}; it must be {allowed}.{hint}")
    return ConfigError(f"{source}: {text}")


def _parse_layer(parser: ArgumentParser, flat: Mapping[str, Any], source: str) -> None:
    """Check keys and types of one file's values, so that an error names the file that holds it."""
    _check_keys(flat, source)
    for key, value in flat.items():
        parse_value(parser, key, value, source)


def parse_value(parser: ArgumentParser, key: str, value: Any, source: str) -> Any:
    """Return a value as its key's type has it.

    Raises:
        ConfigError: it has another type.
    """
    if value is None and key not in MAY_BE_NULL:
        raise ConfigError(f"{source}: {key} is null; give a value, or leave the key out.")
    try:
        return parser.parse_object(unflatten({key: value}), defaults=False, env=False)[key]
    except ArgumentError as error:
        raise _explain(error, source) from error


def parse_flags(parser: ArgumentParser, argv: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse the command line into (keys of the schema that were given, the verb's own flags).

    Raises:
        ConfigError: an unknown flag or a wrong type.
    """
    own = [option for action in parser._actions for option in action.option_strings]
    for flag in argv:
        section = flag.split("=")[0]
        if section.startswith("--") and section[2:] in SECTIONS:
            raise ConfigError(f"command line: {section} is a section; give its keys: {_inside(section[2:])}")
    try:
        given = parser.parse_args(list(argv), defaults=False, env=False).as_dict()
    except ArgumentError as error:
        raise _explain(error, "command line", own) from error
    flat = flatten(given)
    keys = {key: value for key, value in flat.items() if key in KEYS}
    return keys, {key: value for key, value in flat.items() if key not in KEYS}


def resolve(
    experiment: str | None,
    flags: Mapping[str, Any],
    parser: ArgumentParser | None = None,
    base: Mapping[str, Any] | None = None,
) -> tuple[Experiment, list[str]]:
    """Resolve an experiment: defaults, catalog, file, study, flags; then check it.

    Args:
        experiment: name or path; None starts from the defaults.
        flags: dotted keys that go before everything else.
        parser: as `build_parser` makes it.
        base: the complete config of a run (dotted keys) to start from instead of a file, as `--resume` does. What it holds of things
            that it does not use are the defaults of its day, and those of today take their place.

    Returns:
        The experiment, and notes to print (which study values apply, a size that was raised).

    Raises:
        ConfigError: anything wrong that can be known without torch.
    """
    path = find_experiment(experiment) if experiment else None
    parser = parser or build_parser("skincancer", "")
    content = load_yaml(path) if path else unflatten(_without_unused(base or {}, parser))
    return resolve_content(path.stem if path else None, content, flags, parser, str(path) if path else "config")


def _without_unused(base: Mapping[str, Any], parser: ArgumentParser) -> dict[str, Any]:
    left = dict(base)
    while True:
        try:
            resolve_content(None, unflatten(left), {}, parser)
        except UnusedKey as error:
            if error.key in left:
                del left[error.key]
                continue
        except ConfigError:  # told when all of it is resolved
            pass
        return left


def resolve_content(
    name: str | None,
    content: Mapping[str, Any],
    flags: Mapping[str, Any],
    parser: ArgumentParser | None = None,
    source: str = "config",
) -> tuple[Experiment, list[str]]:
    """Resolve what an experiment file holds, as `resolve` does.

    Args:
        name: the experiment's, where the content gives none.
        content: of the file.
        flags: dotted keys that go before everything else.
        parser: as `build_parser` makes it.
        source: what errors call the content.
    """
    parser = parser or build_parser("skincancer", "")
    content = dict(content)
    study = content.pop("study", None) or {}
    if not isinstance(study, Mapping):
        raise ConfigError(f"{source}: study is {study!r}; it must be a section of keys")
    from_file, from_study = flatten(content), flatten(study)
    if name and "name" not in from_file:
        from_file["name"] = name
    _parse_layer(parser, from_file, source)
    _parse_layer(parser, from_study, f"{source}, study")

    dataset = flags.get("data.dataset", from_file.get("data.dataset", Experiment().data.dataset))
    entry = catalog_entry(dataset)
    notes = []
    if from_study and not entry.synthetic:
        applied = {key: value for key, value in from_study.items() if key not in flags}
        if applied:
            notes.append("study values apply: " + ", ".join(f"{key} {value}" for key, value in applied.items()))
    else:
        from_study = {}
    given = {**from_file, **from_study, **flags}
    defaults = dict(entry.defaults)
    if given.get("model.classifier", "network") != "network":  # what nobody chose is nothing to refuse
        defaults = {key: value for key, value in defaults.items() if not is_of_network(key, hand_made=False)}
    merged = {**defaults, **given}

    backbone = merged.get("model.backbone", Experiment().model.backbone)
    smallest = SMALLEST_SIZE.get(str(backbone).split(".")[0], 1)
    size = merged.get("data.size", Experiment().data.size)
    if isinstance(size, int) and 0 < size < smallest:
        if "data.size" in {**from_file, **from_study, **flags}:
            raise ConfigError(
                f"data.size is {size}; {backbone} takes images of at least {smallest} px. Give --data.size {smallest} or more."
            )
        merged["data.size"] = smallest
        notes.append(f"data.size raised from {size} to {smallest}: the smallest that {backbone} takes")

    try:
        result = parser.instantiate(parser.parse_object(unflatten({"experiment": None, **merged}), env=False))
    except ArgumentError as error:
        raise _explain(error, source) from error
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(Experiment)}
    resolved = Experiment(**values)
    resolved = dataclasses.replace(
        resolved,
        augment=policies.resolve(resolved.augment),
        data=dataclasses.replace(
            resolved.data,
            root=_absolute(resolved.data.root),
            groups=_absolute(resolved.data.groups),
            masks=absolute_run(resolved.data.masks),
        ),
        trainer=dataclasses.replace(resolved.trainer, precision=str(resolved.trainer.precision)),
        model=dataclasses.replace(resolved.model, freeze=str(resolved.model.freeze)),
    )
    if resolved.training.monitor == "auto":
        training = dataclasses.replace(resolved.training, monitor=MONITORS[resolved.task])
        resolved = dataclasses.replace(resolved, training=training)
    if resolved.model.is_hand_made and "data.size" in flags:
        notes.append(
            f"data.size {resolved.data.size} is of pictures to look at: hand-made features have a size of their own"
        )
    try:
        check_experiment(resolved, TYPES)
    except ConfigError as error:
        layers = (
            ("command line", flags),
            (f"{source}, study", from_study),
            (source, from_file),
            (dataset, entry.defaults),
        )
        text = f"{_origin(str(error), layers)}{error}"
        raise (UnusedKey(error.key, text) if isinstance(error, UnusedKey) else ConfigError(text)) from error
    return resolved, notes


def _origin(message: str, layers: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Say which layer set the key that a message is about; "" where it is a default."""
    key = next((word.strip(":") for word in message.split() if word.strip(":") in KEYS), None)
    return next((f"{source}: " for source, values in layers if key in values), "")


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def absolute_run(masks: str) -> str:
    """Make the folder of `run:FOLDER` absolute; an id, or another source of masks, stays."""
    run = masks.removeprefix("run:")
    folder = Path(run).expanduser()
    return f"run:{folder.absolute()}" if run and run != masks and folder.is_dir() else masks
