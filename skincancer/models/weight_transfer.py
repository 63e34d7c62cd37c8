"""Weights from one model into another of the same backbone: a classifier's into a segmenter's encoder, and back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from skincancer.errors import WeightsError
from skincancer.models.segmenters import TIMM_PREFIX

SHARE_NEEDED = 0.9  # of a backbone's parameters, from a file or another run


def transfer_encoder(
    source_state_dict: Mapping[str, Tensor],
    target_module: nn.Module,
    source: str = "the source",
    target: str = "the model",
    needed: Collection[str] | None = None,
) -> tuple[list[str], list[str]]:
    """Copy every tensor that has its like in another model: between a classifier's backbone and a segmenter's encoder, either way.

    Names are compared without the prefixes that wrap an encoder (`backbone.`, `segmenter.model.encoder.model.` …: those under
    which most parameters are found), and with `_` for `.`, since timm's feature extractors flatten `features.conv0` to
    `features_conv0`.

    Args:
        source_state_dict: of an encoder or backbone, or of a whole model or task that holds one.
        target_module: filled in place.
        source: its name, for the error.
        target: its name, for the error.
        needed: names of the target's parameters that the share is taken of; None for all.

    Returns:
        The target's names that were filled, and the source's names that were not used.

    Raises:
        WeightsError: less than 90 % of the target's parameters are there in the right shape; nothing is copied then.
    """
    own = target_module.state_dict()
    sizes = {
        key: parameter.numel() for key, parameter in target_module.named_parameters() if needed is None or key in needed
    }
    named = _pairs(source_state_dict, own, sizes)
    fitting = {mine: theirs for mine, theirs in named.items() if own[mine].shape == source_state_dict[theirs].shape}
    share = sum(sizes.get(key, 0) for key in fitting) / sum(sizes.values())
    if share < SHARE_NEEDED:
        missing = [key for key in sizes if key not in fitting]
        other = [
            f"{mine} {tuple(source_state_dict[theirs].shape)} instead of {tuple(own[mine].shape)}"
            for mine, theirs in named.items()
            if mine not in fitting
        ]
        raise WeightsError(
            f"{source} does not fit {target}: {share:.0%} of its parameters are there (at least {SHARE_NEEDED:.0%} are needed). "
            f"Missing: {', '.join(missing[:3])}… ({len(missing)}). Other shape: {'; '.join(other[:3]) or 'none'}. "
            "Give weights of the same backbone."
        )
    with torch.no_grad():
        for mine, theirs in fitting.items():
            own[mine].copy_(source_state_dict[theirs])  # a state dict shares memory with its module
    used = set(fitting.values())
    return list(fitting), [key for key in source_state_dict if key not in used]


def holds_encoder(state: Iterable[str]) -> bool:
    """Say whether these are the names of a segmenter's weights."""
    return any("encoder" in name.split(".")[:-1] for name in state)


def encoder_names(backbone: nn.Module, name: str) -> set[str]:
    """Return the names of a timm backbone's tensors that its use as an encoder keeps.

    Some backbones go on behind the last features: the 1 × 1 convolution to 1,280 channels holds 12 % of EfficientNet-Lite0.

    Args:
        backbone: as `build_backbone` makes it.
        name: timm's.
    """
    own = backbone.state_dict()
    try:
        with torch.device("meta"):
            encoder = get_encoder(TIMM_PREFIX + name, weights=None)
    except Exception:  # whatever timm and SMP raise over a model that is no encoder
        return set(own)
    sizes = {key: parameter.numel() for key, parameter in backbone.named_parameters()}
    return set(_pairs(encoder.state_dict(), own, sizes)) or set(own)


def _pairs(source: Mapping[str, Tensor], own: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, str]:
    """Return the own names that the source has, each with the source's name, as they match best: most parameters, shapes compared."""

    def fits(named: dict[str, str]) -> int:
        return sum(sizes.get(mine, 0) for mine, theirs in named.items() if own[mine].shape == source[theirs].shape)

    return max(_same_names(source, own), key=fits, default={})


def _same_names(source: Iterable[str], own: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield, for each prefix of the source's names and each that all own names share, the names that are the same behind it."""
    names = [key.split(".") for key in own]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == names[0][shared] for parts in names):
        shared += 1
    for depth in range(shared + 1):
        wanted = {"_".join(parts[depth:]): ".".join(parts) for parts in names}
        by_prefix: dict[str, dict[str, str]] = {}
        for key in source:
            parts = key.split(".")
            for start in range(len(parts)):
                mine = wanted.get("_".join(parts[start:]))
                if mine is not None:
                    by_prefix.setdefault(".".join(parts[:start]), {})[mine] = key
        yield from by_prefix.values()
