"""timm backbones as feature extractors (B, 3, H, W) -> (B, F). torch and timm are imported inside: config needs the table alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer.errors import ConfigError, nearest
from skincancer.plugins import describe_error

if TYPE_CHECKING:
    from torch import nn


# Builders f(size) -> module that plugins register.
BACKBONES: dict[str, Callable[[int], nn.Module]] = {}
# backbones that cannot take smaller images (px)
SMALLEST_SIZE: dict[str, int] = {"inception_v3": 75}


def check_backbone(name: str, size: int) -> None:
    """Check that timm knows a backbone and that it takes square images of `size`, without spending memory on weights.

    Raises:
        ConfigError: unknown (with the nearest names), or it fails at this size (with its own words).
    """
    import timm
    import torch

    if name in BACKBONES:
        _check_own(name, size)
        return
    if not timm.is_model(name.split(".")[0]):
        raise ConfigError(
            f"model.backbone is {name!r}, which timm {timm.__version__} does not know.{nearest(name, [*BACKBONES, *timm.list_models()])} "
            f"`python -c 'import timm; print(timm.list_models(\"*resnet*\"))'` lists names."
        )
    tags = timm.list_pretrained(name.split(".")[0] + ".*")
    if "." in name and name not in tags:
        raise ConfigError(
            f"model.backbone is {name!r}: unknown weights tag.{nearest(name, tags)} Known: {', '.join(tags)}."
        )
    try:
        with torch.device("meta"), torch.no_grad():
            build_backbone(name, size).eval()(torch.zeros(1, 3, size, size))
    except ConfigError:
        raise
    except Exception as error:  # whatever a backbone raises on a size that it cannot take
        raise ConfigError(
            f"model.backbone {name} does not take images of {size} px ({type(error).__name__}: {error}). Choose another --data.size."
        ) from error


def _check_own(name: str, size: int) -> None:
    """Check that the backbone of a plugin gives features (B, F)."""
    import torch

    try:
        with torch.no_grad():
            features = BACKBONES[name](size).eval()(torch.zeros(2, 3, size, size))
        shape = tuple(features.shape)
    # A user's code may raise anything.
    except Exception as error:
        raise ConfigError(
            f"model.backbone {name} of a plugin fails on images of {size} px: {describe_error(error)}. Fix it."
        ) from error
    if len(shape) != 2 or shape[0] != 2:
        raise ConfigError(
            f"model.backbone {name} of a plugin turns images (2, 3, {size}, {size}) into {shape}; expected features (2, F). Fix it."
        )


def build_backbone(name: str, size: int, file: Path | None = None) -> nn.Module:
    """Build a timm model without its classifying layer.

    VGG loses its two 4,096-unit layers too: they belong to ImageNet's classifier, and "convolutions frozen, last layers
    new" means a new head on the pooled convolutions.

    Args:
        name: timm's name, with or without a weights tag.
        size: image side in px, given to backbones of fixed input size (ViT, Swin …).
        file: weights in timm's own layout; None for random ones.
    """
    if name in BACKBONES:
        return BACKBONES[name](size)
    import timm
    from timm.models.vgg import ConvMlp
    from torch import nn

    options: dict[str, Any] = {}
    if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        options["img_size"] = size
    if file is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    backbone = timm.create_model(name, num_classes=0, **options)
    if isinstance(getattr(backbone, "pre_logits", None), ConvMlp):
        backbone.pre_logits = nn.Identity()
    return backbone


def count_features(backbone: nn.Module, size: int) -> int:
    """Return F, the number of features that a backbone gives for an image of `size`."""
    import torch

    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        features = int(backbone(torch.zeros(1, 3, size, size)).shape[1])
    backbone.train(was_training)
    return features


def normalisation(name: str) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation (RGB in [0, 1]) that a backbone's ImageNet weights were trained with."""
    import timm

    config = None if name in BACKBONES else timm.get_pretrained_cfg(name)
    if config is None:
        return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return list(config.mean), list(config.std)


def stages(backbone: nn.Module) -> list[list[str]]:
    """Return a backbone's parameter names by stage, from the input on, as timm groups them (the stem is the first)."""
    # Backbones of plugins have no groups, so each child module is a stage.
    if not hasattr(backbone, "group_matcher"):
        children = [
            [f"{name}.{key}" for key, _ in child.named_parameters()] for name, child in backbone.named_children()
        ]
        return [names for names in children if names]
    from timm.models import group_parameters

    matcher: Any = backbone.group_matcher
    groups = group_parameters(backbone, matcher(coarse=True))
    return [groups[number] for number in sorted(groups)]


def frozen_parameters(backbone: nn.Module, freeze: str) -> set[str]:
    """Return the names of the parameters that `freeze` holds still.

    Args:
        backbone: as `build_backbone` makes it.
        freeze: none, all, or the number of first stages.

    Raises:
        ConfigError: more stages than there are.
    """
    if freeze == "none":
        return set()
    if freeze == "all":
        return {name for name, _ in backbone.named_parameters()}
    found = stages(backbone)
    if int(freeze) > len(found):
        raise ConfigError(
            f"model.freeze is {freeze}, but the backbone has {len(found)} stages; give 1 to {len(found)}, or all."
        )
    return {name for stage in found[: int(freeze)] for name in stage}
