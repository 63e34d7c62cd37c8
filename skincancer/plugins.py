"""Plugins: user modules that register parts of experiments.

Parts are data set readers, backbones, losses, metrics, augmentations and callbacks. A plugin is imported by `--plugin MODULE`, by
`plugins: [MODULE]` in an experiment file, or as an entry point of an installed package.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from skincancer.errors import ConfigError

# Group of entry points of installed packages.
GROUP = "skincancer.plugins"
# `no:NAME` leaves the entry point NAME out.
EXCLUDED = "no:"
# Kind of part: module and name of its registry, and the arguments that its function takes.
# The modules are imported when a part is registered, so that this module imports nothing of the rooms above it.
_KINDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "reader": ("skincancer.data.catalog", "DATASETS", ("root",)),
    "backbone": ("skincancer.models.names", "BACKBONES", ("size",)),
    "loss": ("skincancer.models.names", "LOSSES", ("logits", "label", "weight")),
    "mask loss": ("skincancer.models.names", "MASK_LOSSES", ("logits", "mask", "has_mask")),
    "metric": ("skincancer.metrics.custom", "CUSTOM_METRICS", ("label", "probability", "weight")),
    "augmentation": ("skincancer.imaging.augmentation_policies", "AUGMENTATIONS", ("image", "mask", "generator")),
    "callback": ("skincancer.plugins", "CALLBACKS", ()),
}
CALLBACKS: dict[str, Callable[[], Any]] = {}

_Part = TypeVar("_Part", bound=Callable[..., Any])


@dataclass(frozen=True)
class Part:
    """Registered part of a plugin."""

    kind: str
    name: str
    plugin: str


_parts: list[Part] = []
_loaded: set[str] = set()
_loading: list[str] = []


def register_reader(
    name: str, *, title: str = "", tasks: Sequence[str] = ("classification",), classes: Sequence[str] = (),
    malignant: Sequence[str] = (), licence: str = "", citation: str = "", how_to_get: str = "Name its folder with --data.root.",
    layout: str = "as its reader expects", defaults: Mapping[str, Any] | None = None,
) -> Callable[[_Part], _Part]:  # fmt: skip
    """Register a reader `f(root) -> table` as a data set.

    The table has one row per image, as in `skincancer.data.readers`. Arguments are as in `skincancer.data.catalog.Dataset`.
    """
    catalog: Any = importlib.import_module(_KINDS["reader"][0])

    def make(reader: Callable[..., Any]) -> Any:
        return catalog.Dataset(
            name=name, title=title or name, reader=f"{reader.__module__}:{reader.__qualname__}", tasks=tuple(tasks),
            classes=tuple(classes), malignant=tuple(malignant), licence=licence, citation=citation, how_to_get=how_to_get,
            layout=layout, defaults=dict(defaults or {}),
        )  # fmt: skip

    return _register("reader", name, make)


def register_backbone(name: str) -> Callable[[_Part], _Part]:
    """Register a builder `f(size) -> module` of a classification backbone.

    The module maps images (B, 3, size, size) to features (B, F).
    """
    return _register("backbone", name, lambda builder: builder)


def register_loss(name: str, *, masks: bool = False) -> Callable[[_Part], _Part]:
    """Register a classification loss `f(logits, label, weight)`.

    With `masks`, register a segmentation loss `f(logits, mask, has_mask)`. Arguments of `f` are as in `skincancer.models.losses`.
    """
    return _register("mask loss" if masks else "loss", name, lambda loss: lambda options: loss)


def register_metric(name: str, *, higher_is_better: bool = True) -> Callable[[_Part], _Part]:
    """Register a classification metric `f(label, probability, weight) -> value`.

    `label` is int (N,), `probability` float (N, C). `weight`, float (N,), is the count of each image: 1 for the value, and the
    number of draws in a bootstrap resample for the interval.
    """
    names: Any = importlib.import_module("skincancer.metrics.names")
    custom: Any = importlib.import_module(_KINDS["metric"][0])
    taken = (*names.METRICS, *names.MASK_METRICS, "loss")
    return _register("metric", name, lambda metric: custom.CustomMetric(metric, higher_is_better), taken)


def register_augmentation(name: str) -> Callable[[_Part], _Part]:
    """Register an augmentation `f(image, mask, generator) -> (image, mask)` for `augment.extra`.

    Images of a training batch are float32 (B, 3, H, W) in [0, 1]. Masks are float32 (B, 1, H, W), or None. Sample every random number
    from the generator, which is on the CPU and depends on seed, rank, epoch and batch.
    """
    return _register("augmentation", name, lambda augmentation: augmentation)


def register_callback(name: str) -> Callable[[_Part], _Part]:
    """Register a Lightning callback class, or a function that returns a callback.

    Every fit of a network creates a new callback.
    """
    return _register("callback", name, lambda callback: callback)


def _register(kind: str, name: str, make: Callable[[Any], Any], taken: Sequence[str] = ()) -> Callable[[_Part], _Part]:
    def register(part: _Part) -> _Part:
        module, attribute, arguments = _KINDS[kind]
        plugin = _loading[-1] if _loading else part.__module__
        registry = getattr(importlib.import_module(module), attribute)
        where = f"plugin {plugin}: the {kind} {name!r}"
        if name in registry or name in taken:
            owner = [f"plugin {known.plugin}" for known in _parts if (known.kind, known.name) == (kind, name)]
            raise ConfigError(f"{where} exists already, in {(owner or ['skincancer'])[0]}. Choose another name.")
        try:
            inspect.signature(part).bind(*arguments)
        except TypeError as error:
            raise ConfigError(
                f"{where} takes {inspect.signature(part)}; expected ({', '.join(arguments)}). Fix its arguments."
            ) from error
        registry[name] = make(part)
        _parts.append(Part(kind, name, plugin))
        return part

    return register


def load_plugins(names: Iterable[str], installed: bool = False) -> None:
    """Import plugins.

    Args:
        names: modules, and entry points to leave out as `no:NAME`.
        installed: import the entry points of installed packages too. Runs name the modules of the parts in use.

    Raises:
        ConfigError: a module is missing or fails, or a part cannot be registered.
    """
    names = list(names)
    for name in names:
        if not name.startswith(EXCLUDED):
            _load(name)
    for entry in entry_points(group=GROUP) if installed else ():
        if (out := f"{EXCLUDED}{entry.name}") not in names:
            origin = f" It is the entry point {entry.name} of an installed package."
            _load(entry.module, f"{origin} Leave it out with --plugin {out}, or uninstall the package.")


def used_plugins(values: Iterable[Any]) -> list[str]:
    """Return the plugins of the parts that an experiment uses.

    A part is used if its name is one of the values. Callbacks are always used.
    """
    words = set(_words(list(values)))
    words |= {word.removeprefix("val/") for word in words}
    return list(dict.fromkeys(part.plugin for part in _parts if part.kind == "callback" or part.name in words))


def _words(value: Any) -> Iterator[str]:
    """Yield the texts of nested lists and mappings, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _words([*value, *value.values()])
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)


def _load(name: str, remedy: str = "") -> None:
    if name in _loaded or any(part.plugin == name for part in _parts):
        return
    if name == "__main__":
        raise ConfigError(
            "plugin __main__: a script or a notebook registered parts of this run. Move them into a module, and name it with --plugin."
        )
    if name.endswith(".py"):
        raise ConfigError(f"plugin {name}: expected the name of a module. Use --plugin {name.removesuffix('.py')}.")
    if os.getcwd() not in sys.path and "" not in sys.path:
        # The console command does not do this by itself, and `python -m` does.
        sys.path.insert(0, os.getcwd())
    _loading.append(name)
    try:
        importlib.import_module(name)
    # A plugin that calls sys.exit would end the command without a message.
    except (Exception, SystemExit) as error:
        _forget(name)
        if isinstance(error, ConfigError):
            raise ConfigError(f"{error}{remedy}") from error
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            remedy = remedy or " Run the command in the folder of the module, or install its package."
            raise ConfigError(f"plugin {name}: there is no module {error.name}.{remedy}") from error
        raise ConfigError(
            f"plugin {name} cannot be imported: {describe_error(error)}.{remedy or ' Fix it.'}"
        ) from error
    finally:
        _loading.pop()
    _loaded.add(name)


def describe_error(error: BaseException) -> str:
    """Describe an error in a user's code with file and line."""
    file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else _place(error)
    message = error.msg if isinstance(error, SyntaxError) else error
    return f"{type(error).__name__}: {message} ({file}, line {line})"


def _place(error: BaseException) -> tuple[str, int | None]:
    frames = traceback.extract_tb(error.__traceback__)
    libraries = ("<", str(Path(__file__).parent), sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    return (own or frames)[-1].filename, (own or frames)[-1].lineno


def _forget(plugin: str) -> None:
    """Remove the parts that a plugin registered before it failed."""
    for part in [part for part in _parts if part.plugin == plugin]:
        module, attribute, _ = _KINDS[part.kind]
        getattr(importlib.import_module(module), attribute).pop(part.name, None)
        _parts.remove(part)
