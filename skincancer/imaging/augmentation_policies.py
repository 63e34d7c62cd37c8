"""Augmentation as configuration: the switches of `--augment.*`, the named policies, their checks; imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from skincancer.errors import ConfigError, nearest
from skincancer.schema import AugmentConfig

POLICIES: dict[str, dict[str, float]] = {
    "none": {},
    # A lesion has no upright, so flips are free; the rest stays within what another photograph of it would show.
    "light": {
        "rotation": 15.0,
        "horizontal_flip": 0.5,
        "vertical_flip": 0.5,
        "translation": 0.05,
        "scaling": 0.1,
        "brightness": 0.1,
        "contrast": 0.1,
        "saturation": 0.1,
        "hue": 0.01,
    },
    "strong": {
        "rotation": 180.0,
        "horizontal_flip": 0.5,
        "vertical_flip": 0.5,
        "translation": 0.1,
        "scaling": 0.25,
        "shear": 10.0,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
        "hue": 0.02,
        "noise": 0.02,
        "elastic": 0.03,
    },
    # First study (HAM10000, DenseNet169 and ResNet50): it names the kinds of augmentation; the magnitudes are ours.
    "study1": {
        "rotation": 30.0,
        "horizontal_flip": 0.5,
        "vertical_flip": 0.5,
        "translation": 0.1,
        "scaling": 0.1,
        "shear": 10.0,
        "brightness": 0.2,
    },
    # Second study (Keras ImageDataGenerator): rotation 0–30°, shifts of 10 % and horizontal flips are the study's;
    # shear and zoom it names without magnitudes, and those are ours.
    "study2": {
        "rotation": 30.0,
        "rotation_low": 0.0,
        "horizontal_flip": 0.5,
        "translation": 0.1,
        "scaling": 0.1,
        "shear": 10.0,
    },
}

# Augmentations of plugins: f(image, mask, generator) -> (image, mask).
AUGMENTATIONS: dict[str, Callable[..., Any]] = {}

# Highest value allowed, and how `describe` writes it: factor, format. Lowest is 0 for every one of them.
_LIMITS: dict[str, tuple[float, float, str]] = {
    "rotation": (180.0, 1, "{:g}°"),
    "horizontal_flip": (1.0, 100, "p {:g} %"),
    "vertical_flip": (1.0, 100, "p {:g} %"),
    "translation": (1.0, 100, "±{:g} %"),
    "scaling": (0.95, 100, "±{:g} %"),
    "shear": (60.0, 1, "±{:g}°"),
    "brightness": (1.0, 100, "±{:g} %"),
    "contrast": (1.0, 100, "±{:g} %"),
    "saturation": (1.0, 100, "±{:g} %"),
    "hue": (0.5, 360, "±{:g}°"),
    "noise": (1.0, 1, "sd {:g}"),
    "elastic": (0.3, 100, "{:g} %"),
}
# The warp is drawn on a grid of 32 cells: one cell is the finest smoothness, about ten the coarsest that it can hold.
_SIGMA_LIMITS = (0.03, 0.3)


def resolve(config: AugmentConfig) -> AugmentConfig:
    """Return `config` with every None replaced by its policy's value, or by 0 where the policy does not name it.

    Raises:
        ConfigError: the policy does not exist.
    """
    if config.policy not in POLICIES:
        raise ConfigError(
            f"augment.policy is {config.policy!r}; allowed: {', '.join(POLICIES)}.{nearest(config.policy, POLICIES)}"
        )
    values = POLICIES[config.policy]
    missing = [field.name for field in dataclasses.fields(config) if getattr(config, field.name) is None]
    fill: dict[str, Any] = {name: values.get(name, 0.0) for name in missing}
    filled = dataclasses.replace(config, **fill)
    if config.rotation_low is None and "rotation_low" not in values:
        filled = dataclasses.replace(filled, rotation_low=0.0 - _value(filled, "rotation"))  # never -0.0
    return filled


def check(config: AugmentConfig) -> None:
    """Check all names and every magnitude, after `resolve`.

    Raises:
        ConfigError: an unknown policy or augmentation, or a magnitude out of its range (not a number included).
    """
    resolved = resolve(config)
    for name in config.extra:
        if name not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS) or "none is registered; name its module with --plugin"
            raise ConfigError(
                f"augment.extra: {name!r} is no augmentation of a plugin.{nearest(name, AUGMENTATIONS)} Known: {known}."
            )
    for name, (highest, _, _) in _LIMITS.items():
        _within(name, _value(resolved, name), 0.0, highest)
    _within("rotation_low", _value(resolved, "rotation_low"), -180.0, _value(resolved, "rotation"))
    _within("elastic_sigma", resolved.elastic_sigma, *_SIGMA_LIMITS)
    if _value(resolved, "elastic") > resolved.elastic_sigma / 2:
        raise ConfigError(
            f"augment.elastic is {resolved.elastic:g} with augment.elastic_sigma {resolved.elastic_sigma:g}; allowed: "
            "at most half of elastic_sigma, beyond which the warp folds the image over itself. Change one of the two."
        )


def describe(config: AugmentConfig) -> str:
    """Return one line with the policy and every magnitude that is on, with units: "light: rotation -15 to 15°, …"."""
    resolved = resolve(config)
    parts = []
    for name, (_, factor, form) in _LIMITS.items():
        value, low = _value(resolved, name), _value(resolved, "rotation_low")
        if name == "rotation" and (value or low):
            parts.append(f"rotation {low:g} to {value:g}°")
        elif value:
            parts.append(f"{name.replace('_', ' ')} {form.format(value * factor)}")
            if name == "elastic":
                parts[-1] += f" (sigma {resolved.elastic_sigma * 100:g} %)"
    return f"{resolved.policy}: {', '.join([*parts, *resolved.extra]) or 'nothing on'}"


def _value(resolved: AugmentConfig, name: str) -> float:
    return float(getattr(resolved, name))


def _within(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:  # written so that not a number fails too
        raise ConfigError(f"augment.{name} is {value:g}; allowed: {lowest:g} to {highest:g}.")
