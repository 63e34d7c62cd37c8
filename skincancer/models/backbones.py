"""timm backbones as feature extractors: images (B, 3, H, W) to features (B, F)."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import timm
import torch
from timm.models import get_deprecated_models, group_parameters
from timm.models.vgg import ConvMlp
from torch import Tensor, nn

from skincancer.errors import ConfigError, nearest
from skincancer.models.names import BACKBONES
from skincancer.plugins import describe_error


def current_name(name: str) -> str:
    """Return the name and weights tag by which timm has replaced an old name."""
    return get_deprecated_models().get(name) or name


def check_backbone(name: str, size: int, freeze: str = "none") -> None:
    """Check a backbone, its image size and frozen stages, without loading weights.

    Raises:
        ConfigError: unknown (with the nearest names), the backbone fails at this size, or it has fewer stages than `freeze`.
    """
    if name in BACKBONES:
        frozen_parameters(_check_own(name, size), freeze)
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
            backbone = build_backbone(name, size).eval()
            backbone(torch.zeros(1, 3, size, size))
    except Exception as error:  # backbones raise many types for a size that they do not take
        raise ConfigError(
            f"model.backbone {name} does not take images of {size} px ({type(error).__name__}: {error}). Use another --data.size."
        ) from error
    frozen_parameters(backbone, freeze)


def _check_own(name: str, size: int) -> nn.Module:
    """Return the backbone of a plugin after a check of its features (B, F)."""
    try:
        with torch.no_grad():
            backbone: nn.Module = BACKBONES[name](size).eval()
            shape = tuple(backbone(torch.zeros(2, 3, size, size)).shape)
    except Exception as error:  # the code of a user may raise anything
        raise ConfigError(
            f"model.backbone {name} of a plugin fails on images of {size} px: {describe_error(error)}. Fix it."
        ) from error
    if len(shape) != 2 or shape[0] != 2:
        raise ConfigError(
            f"model.backbone {name} of a plugin turns images (2, 3, {size}, {size}) into {shape}; expected features (2, F). Fix it."
        )
    return backbone


def build_backbone(name: str, size: int, **options: Any) -> nn.Module:
    """Build a timm model without its classifier.

    VGG loses its two layers of 4,096 units too, because they belong to ImageNet's classifier. The new head follows the pooled
    convolutions.

    Args:
        name: timm's name, with or without a weights tag, or the name of a plugin's backbone.
        size: image side in px, for backbones of fixed input size (ViT, Swin …).
        options: further options of `timm.create_model`.
    """
    if name in BACKBONES:
        return BACKBONES[name](size)
    if timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        options["img_size"] = size
    backbone = timm.create_model(name, num_classes=0, **options)
    if isinstance(getattr(backbone, "pre_logits", None), ConvMlp):
        backbone.pre_logits = nn.Identity()
    return backbone


def convert_weights(name: str, size: int, state: Mapping[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a timm model, and convert weights as timm does on loading.

    timm renames tensors of published layouts, resamples position embeddings and tables of relative positions to the image size, and
    drops ImageNet's classifier.

    Args:
        name: timm's name.
        size: image side, px.
        state: weights in a layout that timm knows, not empty.

    Returns:
        The model with random weights, and the converted weights.
    """
    converted: dict[str, Tensor] = {}

    def keep(_: nn.Module, tensors: Mapping[str, Tensor], *args: Any, **options: Any) -> SimpleNamespace:
        converted.update(tensors)
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])

    # timm converts weights only while it creates a model. Its loading refuses all weights for one tensor of another shape, and does
    # not report tensors that are missing.
    with mock.patch.object(nn.Module, "load_state_dict", keep):
        backbone = build_backbone(
            name, size, pretrained=True, pretrained_cfg_overlay={"state_dict": dict(state), "custom_load": False}
        )
    # timm keeps a copy of the weights.
    config: Any = backbone.pretrained_cfg
    config.pop("state_dict")
    return backbone, converted


def count_features(backbone: nn.Module, size: int) -> int:
    """Return F, the number of features of an image of `size` px."""
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        features = int(backbone(torch.zeros(1, 3, size, size)).shape[1])
    backbone.train(was_training)
    return features


def normalisation(name: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the ImageNet weights, RGB in [0, 1]."""
    config = None if name in BACKBONES else timm.get_pretrained_cfg(name)
    if config is None:
        return [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return list(config.mean), list(config.std)


def stages(backbone: nn.Module) -> list[list[str]]:
    """Return the parameter names of each stage, the stem first.

    timm groups the parameters. In a timm model without groups, and in the backbone of a plugin, every child module is a stage. In a
    timm model, the children of a container are stages, too.
    """
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        return _children(backbone)
    try:
        groups = matcher(coarse=True)
    except AssertionError:  # RDNet has only fine groups, which are its stages
        groups = matcher(coarse=False)
    return [names for _, names in sorted(group_parameters(backbone, groups).items())]


def _children(backbone: nn.Module) -> list[list[str]]:
    groups = []
    for name, child in backbone.named_children():
        split = isinstance(child, nn.Sequential) and hasattr(backbone, "pretrained_cfg")
        parts = child.named_children() if split else [("", child)]
        groups += [[f"{name}.{key}" for key, _ in part.named_parameters(prefix)] for prefix, part in parts]
    # Parameters without a module, such as position embeddings, belong to the stem.
    own = [name for name, _ in backbone.named_parameters(recurse=False)]
    stem, *others = [names for names in groups if names] or [[]]
    return [own + stem, *others]


def frozen_parameters(backbone: nn.Module, freeze: str) -> set[str]:
    """Return the names of the frozen parameters.

    Args:
        backbone: module of `build_backbone`.
        freeze: none, all, or the number of first stages.

    Raises:
        ConfigError: more stages than the backbone has.
    """
    if freeze == "none":
        return set()
    if freeze == "all":
        return {name for name, _ in backbone.named_parameters()}
    groups = stages(backbone)
    if int(freeze) > len(groups):
        raise ConfigError(
            f"model.freeze is {freeze}, but the backbone has {len(groups)} stages; use 1 to {len(groups)}, or all."
        )
    return {name for group in groups[: int(freeze)] for name in group}
