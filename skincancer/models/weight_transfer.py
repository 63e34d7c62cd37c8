"""Transfer weights between classifiers and segmenters of the same backbone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from skincancer.errors import WeightsError
from skincancer.models.segmenters import TIMM_PREFIX

# Smallest share of the parameters that a file or another run must contain.
SHARE_NEEDED = 0.9


class Transfer(NamedTuple):
    """Result of `transfer_encoder`.

    Attributes:
        filled: names of the target's tensors that were filled.
        unused: names of the source's tensors that were not used.
        missing: names of the target's tensors that keep their initial values, with the reason. Integer counters are not listed.
        converted: names of the filled tensors that the source has under other names or in other shapes.
    """

    filled: list[str]
    unused: list[str]
    missing: dict[str, str]
    converted: list[str]


def transfer_encoder(
    source_state_dict: Mapping[str, Tensor], target_module: nn.Module, source: str = "the source", target: str = "the model",
    needed: Collection[str] | None = None, convert: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> Transfer:  # fmt: skip
    """Copy tensors of the same name and shape into a backbone or encoder.

    Names are compared without the prefixes of wrappers (`backbone.`, `segmenter.model.encoder.model.` …), by the prefix that
    matches most parameters. `_` equals `.`, because timm's feature extractors flatten `features.conv0` to `features_conv0`.

    Args:
        source_state_dict: weights of an encoder or backbone, or of a model or task that contains one.
        target_module: filled in place.
        source: name of the source in the error.
        target: name of the target in the error.
        needed: names of the target's parameters that the share refers to; None for all.
        convert: converts weights without prefix to the names and shapes of the target. Called if tensors are missing otherwise.

    Raises:
        WeightsError: less than 90 % of the target's parameters are present in the right shape. Nothing is copied.
    """
    own = target_module.state_dict()
    sizes = {
        key: parameter.numel() for key, parameter in target_module.named_parameters() if needed is None or key in needed
    }
    named = _pairs(source_state_dict, own, sizes)
    present = {key: source_state_dict[name] for key, name in named.items()}
    fitting = {key: tensor for key, tensor in present.items() if own[key].shape == tensor.shape}
    unused = [name for name in source_state_dict if name not in set(named.values())]
    converted: list[str] = []
    if convert is not None and any(key not in fitting and own[key].is_floating_point() for key in own):
        plain = _without_prefix(source_state_dict, named)
        others = convert(plain)
        converted = [key for key in own if key not in fitting and key in others and own[key].shape == others[key].shape]
        fitting |= {key: others[key] for key in converted}
        if not plain.keys() >= set(converted):
            unused = [key for key in others if key not in fitting]
    missing = {
        key: f"{tuple(present[key].shape)} instead of {tuple(own[key].shape)}" if key in present else "not there"
        for key in own
        if key not in fitting and own[key].is_floating_point()
    }
    share = sum(sizes.get(key, 0) for key in fitting) / sum(sizes.values())
    if share < SHARE_NEEDED:
        absent = [key for key in sizes if key in missing]
        shapes = [f"{key} {missing[key]}" for key in present if key in missing]
        raise WeightsError(
            f"{source} does not fit {target}: {share:.0%} of its parameters are there (at least {SHARE_NEEDED:.0%} are needed). "
            f"Missing: {', '.join(absent[:3])}… ({len(absent)}). Other shape: {'; '.join(shapes[:3]) or 'none'}. "
            "Use weights of the same backbone."
        )
    with torch.no_grad():
        # A state dict shares memory with its module.
        for key, tensor in fitting.items():
            own[key].copy_(tensor)
    return Transfer(list(fitting), unused, missing, converted)


def count_fitting(state: Mapping[str, Tensor], module: nn.Module) -> int:
    """Count the parameters of a module that fitting weights have."""
    own = module.state_dict()
    sizes = {key: parameter.numel() for key, parameter in module.named_parameters()}
    named = _pairs(state, own, sizes)
    return sum(sizes.get(key, 0) for key, name in named.items() if own[key].shape == state[name].shape)


def holds_encoder(state: Iterable[str]) -> bool:
    """Return whether these are the names of a segmenter's weights."""
    return any("encoder" in name.split(".")[:-1] for name in state)


def encoder_names(backbone: nn.Module, name: str) -> set[str]:
    """Return the names of a timm backbone's tensors that its encoder has.

    Some backbones have layers after the last features of the encoder. In EfficientNet-Lite0, a 1 × 1 convolution to 1,280 channels
    has 12 % of the parameters.
    """
    own = backbone.state_dict()
    try:
        with torch.device("meta"):
            encoder = get_encoder(TIMM_PREFIX + name, weights=None)
    except Exception:  # timm and SMP raise many types for a model that is no encoder
        return set(own)
    sizes = {key: parameter.numel() for key, parameter in backbone.named_parameters()}
    return set(_pairs(encoder.state_dict(), own, sizes)) or set(own)


def _without_prefix(source: Mapping[str, Tensor], named: Mapping[str, str]) -> dict[str, Tensor]:
    """Return weights by own names.

    Names without a match lose the prefix of the matched names, or of all names.
    """
    if named:
        prefix = next(name[: max(len(name) - len(key), 0)] for key, name in named.items())
    else:
        names = [name.split(".") for name in source]
        prefix = "".join(f"{part}." for part in names[0][: _common_depth(names)])
    own_names = {name: key for key, name in named.items()}
    return {own_names.get(name, name.removeprefix(prefix)): tensor for name, tensor in source.items()}


def _common_depth(names: list[list[str]]) -> int:
    """Return the number of common parents of names, split at dots."""
    depth = 0
    while all(len(parts) > depth + 1 and parts[depth] == names[0][depth] for parts in names):
        depth += 1
    return depth


def _pairs(source: Mapping[str, Tensor], own: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, str]:
    """Match own names to source names, so that most parameters fit."""

    def fits(named: dict[str, str]) -> int:
        return sum(sizes.get(key, 0) for key, name in named.items() if own[key].shape == source[name].shape)

    return max(_same_names(source, own), key=fits, default={})


def _same_names(source: Iterable[str], own: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield equal own and source names, for each pair of prefixes."""
    names = [key.split(".") for key in own]
    for depth in range(_common_depth(names) + 1):
        targets = {"_".join(parts[depth:]): ".".join(parts) for parts in names}
        by_prefix: dict[str, dict[str, str]] = {}
        for key in source:
            parts = key.split(".")
            for start in range(len(parts)):
                target = targets.get("_".join(parts[start:]))
                if target is not None:
                    by_prefix.setdefault(".".join(parts[:start]), {})[target] = key
        yield from by_prefix.values()
