"""Training losses on logits. torch is imported inside, so that config checks names against `LOSSES` in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def cross_entropy(options: Mapping[str, Any]) -> Loss:
    """Cross-entropy with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        options: `label_smoothing` in [0, 1).

    Returns:
        f(logits float (B, C), label int64 (B,) with -1 for absent, class weight float (C,) or None) -> scalar, the mean
        over labelled images, weighted by their class weights where there are any (as torch's). With the two logits
        (0, z) of a sigmoid head it equals binary cross-entropy.
    """
    smoothing = float(options["label_smoothing"])

    def loss(logits: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
        from torch.nn import functional

        return functional.cross_entropy(
            logits.float(), label, weight=weight, ignore_index=-1, label_smoothing=smoothing
        )

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
        alpha = torch.ones_like(each) if weight is None else weight[true]
        return (alpha * each).sum() / alpha.sum()

    return loss


LOSSES: dict[str, Callable[[Mapping[str, Any]], Loss]] = {"cross_entropy": cross_entropy, "focal": focal}
