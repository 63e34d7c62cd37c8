"""Transfer weights between classifiers and segmenters of the same backbone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from skincancer.errors import WeightsError
from skincancer.models.segmenters import TIMM_PREFIX

# Smallest share of the parameters that a file or another run must contain.
SHARE_NEEDED = 0.9


def transfer_encoder(
    source_state_dict: Mapping[str, Tensor], target_module: nn.Module, source: str = "the source", target: str = "the model",
    needed: Collection[str] | None = None,
) -> tuple[list[str], list[str]]:  # fmt: skip
    """Copy tensors of the same name and shape into a backbone or encoder.

    Names are compared without the prefixes of wrappers (`backbone.`, `segmenter.model.encoder.model.` …), by the prefix that
    matches most parameters. `_` equals `.`, because timm's feature extractors flatten `features.conv0` to `features_conv0`.

    Args:
        source_state_dict: weights of an encoder or backbone, or of a model or task that contains one.
        target_module: filled in place.
        source: name of the source in the error.
        target: name of the target in the error.
        needed: names of the target's parameters that the share refers to; None for all.

    Returns:
        Names of the target that were filled, and names of the source that were not used.

    Raises:
        WeightsError: less than 90 % of the target's parameters are present in the right shape. Nothing is copied.
    """
    own = target_module.state_dict()
    sizes = {
        key: parameter.numel() for key, parameter in target_module.named_parameters() if needed is None or key in needed
    }
    named = _pairs(source_state_dict, own, sizes)
    fitting = {key: name for key, name in named.items() if own[key].shape == source_state_dict[name].shape}
    share = sum(sizes.get(key, 0) for key in fitting) / sum(sizes.values())
    if share < SHARE_NEEDED:
        missing = [key for key in sizes if key not in fitting]
        other = [
            f"{key} {tuple(source_state_dict[name].shape)} instead of {tuple(own[key].shape)}"
            for key, name in named.items()
            if key not in fitting
        ]
        raise WeightsError(
            f"{source} does not fit {target}: {share:.0%} of its parameters are there (at least {SHARE_NEEDED:.0%} are needed). "
            f"Missing: {', '.join(missing[:3])}… ({len(missing)}). Other shape: {'; '.join(other[:3]) or 'none'}. "
            "Use weights of the same backbone."
        )
    with torch.no_grad():
        # A state dict shares memory with its module.
        for key, name in fitting.items():
            own[key].copy_(source_state_dict[name])
    used = set(fitting.values())
    return list(fitting), [key for key in source_state_dict if key not in used]


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


def _pairs(source: Mapping[str, Tensor], own: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, str]:
    """Match own names to source names, so that most parameters fit."""

    def fits(named: dict[str, str]) -> int:
        return sum(sizes.get(key, 0) for key, name in named.items() if own[key].shape == source[name].shape)

    return max(_same_names(source, own), key=fits, default={})


def _same_names(source: Iterable[str], own: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield equal own and source names, for each pair of prefixes."""
    names = [key.split(".") for key in own]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == names[0][shared] for parts in names):
        shared += 1
    for depth in range(shared + 1):
        targets = {"_".join(parts[depth:]): ".".join(parts) for parts in names}
        by_prefix: dict[str, dict[str, str]] = {}
        for key in source:
            parts = key.split(".")
            for start in range(len(parts)):
                target = targets.get("_".join(parts[start:]))
                if target is not None:
                    by_prefix.setdefault(".".join(parts[:start]), {})[target] = key
        yield from by_prefix.values()
