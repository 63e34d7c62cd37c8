"""Resolve experiments: load by name or path, override by flags, and check.

Order of values, the last wins: schema, catalog entry, experiment file, its `study:` block (for real data only), flags. The module
does not import torch, pandas or MLflow, so that a wrong key is reported in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from skincancer.config.cli import build_parser
from skincancer.config.experiments import find_experiment
from skincancer.config.validation import OF_NETWORKS, check_experiment
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.errors import ConfigError, UnusedKey
from skincancer.imaging import augmentation_policies
from skincancer.metrics.names import default_monitor
from skincancer.models.names import SMALLEST_SIZE
from skincancer.plugins import load_plugins, used_plugins
from skincancer.schema.data import RUN, segmenter_run
from skincancer.schema.dotted_keys import KEYS, TYPES, flatten, unflatten
from skincancer.schema.experiment import Experiment
from skincancer.schema.parsing import explain_error, parse_layer
from skincancer.system.paths import user_path
from skincancer.system.yaml_files import load_yaml


def resolve(
    experiment: str | None,
    flags: Mapping[str, Any],
    parser: ArgumentParser | None = None,
    base: Mapping[str, Any] | None = None,
) -> tuple[Experiment, list[str]]:
    """Resolve and check an experiment.

    Args:
        experiment: name or path; None starts from the defaults.
        flags: values of dotted keys from the command line.
        parser: parser of `build_parser`.
        base: complete config of a run (dotted keys) that replaces the file, as for `--resume`. Today's defaults replace values of
            the config that have no effect.

    Returns:
        The experiment, and notes to print (applied study values, a raised image size).

    Raises:
        ConfigError: any error that can be detected without torch.
    """
    path = None if experiment is None else find_experiment(experiment)
    parser = parser or build_parser("skincancer", "")
    content = load_yaml(path) if path else unflatten(_without_unused(base or {}, parser))
    return resolve_content(path.stem if path else None, content, flags, parser, str(path) if path else "config")


def _without_unused(base: Mapping[str, Any], parser: ArgumentParser) -> dict[str, Any]:
    used = dict(base)
    while True:
        try:
            resolve_content(None, unflatten(used), {}, parser)
        except UnusedKey as error:
            if error.key in used:
                del used[error.key]
                continue
        except ConfigError:  # the caller resolves again, and reports the error
            pass
        return used


def resolve_content(
    name: str | None, content: Mapping[str, Any], flags: Mapping[str, Any], parser: ArgumentParser | None = None,
    source: str = "config",
) -> tuple[Experiment, list[str]]:  # fmt: skip
    """Resolve the content of an experiment file, as `resolve` does.

    Args:
        name: name of the experiment if the content has none.
        content: parsed YAML.
        flags: values of dotted keys from the command line.
        parser: parser of `build_parser`.
        source: name of the content in errors.
    """
    parser = parser or build_parser("skincancer", "")
    content = dict(content)
    study = content.pop("study", None) or {}
    if not isinstance(study, Mapping):
        raise ConfigError(f"{source}: study is {study!r}; it must be a section of keys")
    from_file, from_study = flatten(content), flatten(study)
    if name and "name" not in from_file:
        from_file["name"] = name
    parse_layer(parser, from_file, source)
    parse_layer(parser, from_study, f"{source}, study")

    named = [name for values in (from_file, from_study, flags) for name in values.get("plugins", [])]
    plugins = list(dict.fromkeys(named))
    load_plugins(plugins, installed=True)
    dataset = flags.get("data.dataset", from_file.get("data.dataset", Experiment().data.dataset))
    entry = catalog_entry(dataset)
    notes = []
    if from_study and not entry.synthetic:
        applied = {key: value for key, value in from_study.items() if key not in flags}
        if applied:
            notes.append("study values apply: " + ", ".join(f"{key} {value}" for key, value in applied.items()))
    else:
        from_study = {}
    chosen = {**from_file, **from_study, **flags, "plugins": plugins}
    defaults = dict(entry.defaults)
    # Defaults of a data set must not be rejected as unused keys.
    if chosen.get("model.classifier", "network") != "network":
        defaults = {key: value for key, value in defaults.items() if key not in OF_NETWORKS}
    merged = {**defaults, **chosen}

    backbone = merged.get("model.backbone", Experiment().model.backbone)
    smallest = SMALLEST_SIZE.get(str(backbone).split(".")[0], 1)
    size = merged.get("data.size", Experiment().data.size)
    if isinstance(size, int) and 0 < size < smallest:
        if "data.size" in chosen:
            raise ConfigError(
                f"data.size is {size}; {backbone} takes images of at least {smallest} px. Use --data.size {smallest} or more."
            )
        merged["data.size"] = smallest
        notes.append(f"data.size raised from {size} to {smallest}: the smallest that {backbone} takes")

    try:
        result = parser.instantiate(parser.parse_object(unflatten({"experiment": None, **merged}), env=False))
    except ArgumentError as error:
        raise explain_error(error, source) from error
    values = {field.name: getattr(result, field.name) for field in dataclasses.fields(Experiment)}
    resolved = Experiment(**values)
    resolved = dataclasses.replace(
        resolved,
        augment=augmentation_policies.resolve(resolved.augment),
        data=dataclasses.replace(
            resolved.data,
            root=_absolute(resolved.data.root, "data.root"),
            images=_absolute(resolved.data.images, "data.images"),
            groups=_absolute(resolved.data.groups, "data.groups"),
            masks=absolute_run(resolved.data.masks),
        ),
        trainer=dataclasses.replace(resolved.trainer, precision=str(resolved.trainer.precision)),
        model=dataclasses.replace(resolved.model, freeze=str(resolved.model.freeze)),
    )
    if used := used_plugins(flatten(resolved.to_dict()).values()):
        resolved = dataclasses.replace(resolved, plugins=list(dict.fromkeys([*plugins, *used])))
    if resolved.training.monitor == "auto":
        training = dataclasses.replace(resolved.training, monitor=default_monitor(resolved.task))
        resolved = dataclasses.replace(resolved, training=training)
    if resolved.model.is_hand_crafted and "data.size" in flags:
        notes.append(
            f"data.size {resolved.data.size} applies to previews only: hand-crafted features use a fixed image size"
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
    """Return the source of the key of a message, or "" for a default."""
    key = next((word.strip(":") for word in message.split() if word.strip(":") in KEYS), None)
    return next((f"{source}: " for source, values in layers if key in values), "")


def _absolute(path: str | None, key: str) -> str | None:
    return None if path is None else str(user_path(path, key).absolute())


def absolute_run(masks: str) -> str:
    """Make the folder of `run:FOLDER` absolute, and keep all other mask sources."""
    run = segmenter_run(masks)
    folder = user_path(run, "data.masks") if run else None
    return f"{RUN}{folder.absolute()}" if folder and folder.is_dir() else masks
