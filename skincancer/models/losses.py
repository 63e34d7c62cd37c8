"""Training losses on logits, of classes and of masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from skincancer.models.names import LOSSES as LOSSES
from skincancer.models.names import MASK_LOSSES as MASK_LOSSES
from skincancer.models.names import check_mask_losses

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
MaskLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

# Share of an image's pixels that is added to intersection and union. The loss of an empty mask then grows with the predicted
# area and has a gradient. It is a share, because a number of pixels would depend on the image size, and as small as the
# smallest lesions.
SMOOTHING = 1e-3


def _total_weight(label: Tensor, weight: Tensor | None) -> Tensor:
    """Return the summed weights of labelled images, 1 without labels."""
    present = label >= 0
    each = present.float() if weight is None else weight.float()[label.clamp_min(0)] * present
    # torch.where does not wait for the device, an `if` would.
    return torch.where(present.any(), each.sum(), torch.ones((), device=label.device))


def _focal(log_p: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p)^gamma log p of each probability of the true class."""
    # 1 - p is never 0, because its power has no gradient there for gamma below 1.
    return -((-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma) * log_p


def cross_entropy(options: Mapping[str, Any]) -> Loss:
    """Return cross-entropy with label smoothing (Szegedy et al. 2016, section 7).

    Args:
        options: `label_smoothing` in [0, 1).

    Returns:
        f(logits float (B, C), label int64 (B,) with -1 for absent, class weights float (C,) or None) -> scalar. The loss is the
        mean over labelled images, weighted by their class weights as in torch. Without labelled images the loss and its
        gradient are 0. With the two logits (0, z) of a sigmoid head the loss equals binary cross-entropy.
    """
    smoothing = float(options["label_smoothing"])

    def loss(logits: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
        # torch's own mean is 0/0 without labelled images.
        total = functional.cross_entropy(
            logits.float(), label, weight=weight, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
        )
        return total / _total_weight(label, weight)

    return loss


def focal(options: Mapping[str, Any]) -> Loss:
    """Return the focal loss (Lin et al. 2017, equation 5).

    Args:
        options: `gamma` >= 0; 0 is cross-entropy.

    Returns:
        As `cross_entropy`, with each image's term times (1 - p_true)^gamma. Class weights are alpha.
    """
    gamma = float(options["gamma"])

    def loss(logits: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
        present = label >= 0
        log_p = functional.log_softmax(logits.float()[present], dim=1)
        true = label[present]
        each = _focal(log_p.gather(1, true[:, None])[:, 0], gamma)
        return (each if weight is None else weight[true] * each).sum() / _total_weight(label, weight)

    return loss


def _pixels(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as (B, N), float32 or float64."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.flatten(1).to(dtype), mask.flatten(1).to(dtype)


def _mean(each: Tensor, has_mask: Tensor) -> Tensor:
    """Average over images with a mask, without waiting for the device."""
    return each.where(has_mask, each * 0.0).sum() / has_mask.sum().clamp_min(1)


def bce(options: Mapping[str, Any]) -> MaskLoss:
    """Return binary cross-entropy, averaged over the pixels of an image."""

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        z, truth = _pixels(logits, mask)
        return _mean(functional.binary_cross_entropy_with_logits(z, truth, reduction="none").mean(1), has_mask)

    return loss


def mask_focal(options: Mapping[str, Any]) -> MaskLoss:
    """Return the focal loss (Lin et al. 2017, equation 4), averaged over the pixels.

    Args:
        options: `gamma` >= 0; 0 is binary cross-entropy.
    """
    gamma = float(options["gamma"])

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        z, truth = _pixels(logits, mask)
        return _mean(_focal(functional.logsigmoid(z * (2 * truth - 1)), gamma).mean(1), has_mask)

    return loss


def _overlap(alpha: float, beta: float) -> MaskLoss:
    """Return the Tversky loss of soft counts.

    1 - (TP + s) / (TP + alpha FP + beta FN + s), with s = `SMOOTHING` of the pixels.
    """

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        z, truth = _pixels(logits, mask)
        p = z.sigmoid()
        # Means instead of sums, so that the numbers do not grow with the image.
        hit, false, missed = (p * truth).mean(1), (p * (1 - truth)).mean(1), ((1 - p) * truth).mean(1)
        wrong = alpha * false + beta * missed
        return _mean(wrong / (hit + wrong + SMOOTHING), has_mask)

    return loss


def dice(options: Mapping[str, Any]) -> MaskLoss:
    """Return the soft Dice loss: Tversky with both weights ½.

    Milletari et al. 2016, with p instead of p² in the denominator.
    """
    return _overlap(0.5, 0.5)


def jaccard(options: Mapping[str, Any]) -> MaskLoss:
    """Return the soft Jaccard loss (Rahman and Wang 2016): Tversky with both weights 1."""
    return _overlap(1.0, 1.0)


def tversky(options: Mapping[str, Any]) -> MaskLoss:
    """Return the Tversky loss (Salehi et al. 2017).

    Args:
        options: `alpha`, weight of false positives, and `beta`, of false negatives, checked by `check_mask_losses`.
    """
    return _overlap(float(options["alpha"]), float(options["beta"]))


def lovasz(options: Mapping[str, Any]) -> MaskLoss:
    """Return the Lovász hinge of the Jaccard index, for each image.

    Berman, Triki and Blaschko 2018, algorithm 1. SMP's version needs float32, so that its gradient cannot be checked.
    The loss of an empty mask is the hinge of the most certain pixel, the only pixel with a gradient.
    """

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        z, truth = _pixels(logits, mask)
        errors, order = (1 - z * (2 * truth - 1)).sort(dim=1, descending=True)
        truth = truth.gather(1, order)
        total = truth.sum(1, keepdim=True)
        jaccard_loss = 1 - (total - truth.cumsum(1)) / (total + (1 - truth).cumsum(1))
        steps = torch.diff(jaccard_loss, dim=1, prepend=torch.zeros_like(total))
        return _mean((errors.relu() * steps).sum(1), has_mask)

    return loss


LOSSES.update(cross_entropy=cross_entropy, focal=focal)
MASK_LOSSES.update(bce=bce, dice=dice, jaccard=jaccard, focal=mask_focal, tversky=tversky, lovasz=lovasz)


def mask_loss(weights: Mapping[str, float], options: Mapping[str, Any]) -> MaskLoss:
    """Build a weighted sum of losses.

    Args:
        weights: name in `MASK_LOSSES` to a weight above 0, such as {"dice": 1, "bce": 1}.
        options: `gamma`, `alpha` and `beta` of the losses.

    Raises:
        ConfigError: a name, weight or option that `check_mask_losses` rejects.
    """
    check_mask_losses(weights, options)
    terms = [(float(weight), MASK_LOSSES[name](options)) for name, weight in weights.items()]

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        return torch.stack([weight * term(logits, mask, has_mask) for weight, term in terms]).sum()

    return loss
