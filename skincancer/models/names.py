"""Names of backbones, architectures, losses, optimisers and schedules, for checks without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from skincancer.errors import ConfigError, nearest

# Backbones of plugins: f(size) -> module. timm knows all other backbones.
BACKBONES: dict[str, Callable[[int], Any]] = {}
# Smallest image side of a backbone, px.
SMALLEST_SIZE = {"inception_v3": 75}

# `losses` fills in its functions. Plugins add their own.
LOSSES: dict[str, Any] = dict.fromkeys(("cross_entropy", "focal"))
MASK_LOSSES: dict[str, Any] = dict.fromkeys(("bce", "dice", "jaccard", "focal", "tversky", "lovasz"))
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "one_cycle", "step")

# Architectures of segmentation_models_pytorch (SMP) take a class head, so the joint task can use them.
JOINT_ARCHITECTURES = (
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "upernet", "segformer", "dpt",
)  # fmt: skip
ARCHITECTURES = (*JOINT_ARCHITECTURES, "fcn", "segnet", "autoencoder", "maskrcnn")
# Global pooling before BatchNorm leaves one value per channel of a single image, which torch refuses in training.
SMALLEST_BATCH = {"deeplabv3": 2, "deeplabv3plus": 2, "pan": 2, "upernet": 2}
# Architectures with training losses of their own. `model.loss.masks` is then the validation loss alone.
OWN_LOSSES = ("maskrcnn",)


def check_architecture(architecture: str, joint: bool = False) -> None:
    """Check that an architecture exists, and has a class head for the joint task.

    Raises:
        ConfigError: unknown, or without a class head. The message lists the allowed names.
    """
    allowed = JOINT_ARCHITECTURES if joint else ARCHITECTURES
    if architecture not in allowed:
        reason = ", which has no class head for a joint task" if architecture in ARCHITECTURES else ""
        raise ConfigError(
            f"model.architecture is {architecture!r}{reason}; choose one of {', '.join(allowed)}.{nearest(architecture, allowed)}"
        )


def check_mask_losses(weights: Mapping[str, float], options: Mapping[str, Any]) -> None:
    """Check the names and weights of mask losses, and the options of tversky.

    Raises:
        ConfigError: no loss, an unknown loss, or a weight or option out of range.
    """
    if not weights:
        raise ConfigError(f"model.loss.masks is empty; give losses with their weights: {', '.join(MASK_LOSSES)}.")
    for name, weight in weights.items():
        if name not in MASK_LOSSES:
            raise ConfigError(
                f"model.loss.masks: {name!r} is no loss.{nearest(name, MASK_LOSSES)} Allowed: {', '.join(MASK_LOSSES)}."
            )
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(
                f"model.loss.masks: {name} has the weight {weight}; use one above 0, or leave {name} out."
            )
    if "tversky" in weights and (min(options["alpha"], options["beta"]) < 0 or options["alpha"] + options["beta"] == 0):
        raise ConfigError(
            f"model.loss.alpha is {options['alpha']} and beta is {options['beta']}; tversky expects weights of 0 or more, "
            "and not both 0. Use alpha for false positives, beta for false negatives."
        )
