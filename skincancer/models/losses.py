"""Training losses on logits. torch is imported inside, so that config checks names against `LOSSES` in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _weight_of(label: Tensor, weight: Tensor | None) -> Tensor:
    """Return the sum of the labelled images' weights (1 each without class weights), 1 where none is; does not wait for the device."""
    import torch

    present = label >= 0
    each = present.float() if weight is None else weight.float()[label.clamp_min(0)] * present
    return torch.where(present.any(), each.sum(), torch.ones((), device=label.device))


def cross_entropy(options: Mapping[str, Any]) -> Loss:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        options: `label_smoothing` in [0, 1).

    Returns:
        f(logits float (B, C), label int64 (B,) with -1 for absent, class weight float (C,) or None) -> scalar, the mean
        over labelled images, weighted by their class weights where there are any (as torch's); 0 with a gradient of 0
        where none is labelled. With the two logits (0, z) of a sigmoid head it equals binary cross-entropy.
    """
    smoothing = float(options["label_smoothing"])

    def loss(logits: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
        from torch.nn import functional

        # torch's own mean is 0/0 where nothing is labelled
        total = functional.cross_entropy(
            logits.float(), label, weight=weight, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
        )
        return total / _weight_of(label, weight)

    return loss


def focal(options: Mapping[str, Any]) -> Loss:
    """Focal loss (Lin et al. 2017, equation 5): cross-entropy times (1 - p_true)^gamma, class weights as alpha.

    Args:
        options: `gamma` >= 0; 0 is cross-entropy.

    Returns:
        As `cross_entropy`; the weighted mean is divided by the sum of the weights, as in cross-entropy.
    """
    gamma = float(options["gamma"])

    def loss(logits: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
        import torch
        from torch.nn import functional

        present = label >= 0
        log_p = functional.log_softmax(logits.float()[present], dim=1)
        true = label[present]
        log_p_true = log_p.gather(1, true[:, None])[:, 0]
        # 1 - p_true, never 0: the power has no gradient there for gamma below 1
        p_other = (-torch.expm1(log_p_true)).clamp_min(torch.finfo(log_p_true.dtype).tiny)
        each = -(p_other**gamma) * log_p_true
        return (each if weight is None else weight[true] * each).sum() / _weight_of(label, weight)

    return loss


LOSSES: dict[str, Callable[[Mapping[str, Any]], Loss]] = {"cross_entropy": cross_entropy, "focal": focal}
