"""Augmentation policies and checks of `--augment.*`, without importing torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from skincancer.errors import ConfigError, nearest
from skincancer.schema.data import AugmentConfig

POLICIES: dict[str, dict[str, float]] = {
    "none": {},
    # A lesion has no orientation, so all flips are plausible. The other magnitudes are small enough for a second image of the lesion.
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
    # First study (HAM10000, DenseNet169 and ResNet50). The study lists the transforms; the magnitudes are our choice.
    "study1": {
        "rotation": 30.0,
        "horizontal_flip": 0.5,
        "vertical_flip": 0.5,
        "translation": 0.1,
        "scaling": 0.1,
        "shear": 10.0,
        "brightness": 0.2,
    },
    # Second study (Keras ImageDataGenerator): rotation 0–30°, shifts of 10 %, horizontal flips, shear and zoom. The study gives no
    # magnitudes for shear and zoom; these are our choice.
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

# Highest value, and factor and format of the value in `describe`. The lowest value is always 0.
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
# The warp is sampled on a grid of 32 cells. The smoothing can range from one cell to about ten cells.
_SIGMA_LIMITS = (0.03, 0.3)


def resolve(config: AugmentConfig) -> AugmentConfig:
    """Replace each None in `config` by the policy value or 0.

    Raises:
        ConfigError: the policy is unknown.
    """
    if config.policy not in POLICIES:
        raise ConfigError(
            f"augment.policy is {config.policy!r}; expected {', '.join(POLICIES)}.{nearest(config.policy, POLICIES)}"
        )
    values = POLICIES[config.policy]
    missing = [field.name for field in dataclasses.fields(config) if getattr(config, field.name) is None]
    fill: dict[str, Any] = {name: values.get(name, 0.0) for name in missing}
    filled = dataclasses.replace(config, **fill)
    if config.rotation_low is None and "rotation_low" not in values:
        # A subtraction, because a negated 0.0 would be printed as -0.
        filled = dataclasses.replace(filled, rotation_low=0.0 - _value(filled, "rotation"))
    return filled


def check(config: AugmentConfig) -> None:
    """Check names and magnitudes, including the values of the policy.

    Raises:
        ConfigError: a policy or an augmentation is unknown, or a magnitude is NaN or out of range.
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
            f"augment.elastic is {resolved.elastic:g} with augment.elastic_sigma {resolved.elastic_sigma:g}; expected "
            "at most half of elastic_sigma, since a larger warp folds the image over itself. Change one of the two."
        )


def describe(config: AugmentConfig) -> str:
    """Return policy and active magnitudes: "light: rotation -15 to 15°, …"."""
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
    # The negated comparison is also true for NaN.
    if not lowest <= value <= highest:
        raise ConfigError(f"augment.{name} is {value:g}; expected {lowest:g} to {highest:g}.")
