"""Training losses on logits. torch is imported inside, so that config checks names against `LOSSES` in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from skincancer.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
    MaskLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


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


def _focal(log_p: Tensor, gamma: float) -> Tensor:
    """Return -(1 - p)^gamma log p of each probability of the true class."""
    import torch

    # 1 - p is never 0, because its power has no gradient there for gamma below 1.
    return -((-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma) * log_p


def focal(options: Mapping[str, Any]) -> Loss:
    """Focal loss (Lin et al. 2017, equation 5): cross-entropy times (1 - p_true)^gamma, class weights as alpha.

    Args:
        options: `gamma` >= 0; 0 is cross-entropy.

    Returns:
        As `cross_entropy`; the weighted mean is divided by the sum of the weights, as in cross-entropy.
    """
    gamma = float(options["gamma"])

    def loss(logits: Tensor, label: Tensor, weight: Tensor | None) -> Tensor:
        from torch.nn import functional

        present = label >= 0
        log_p = functional.log_softmax(logits.float()[present], dim=1)
        true = label[present]
        each = _focal(log_p.gather(1, true[:, None])[:, 0], gamma)
        return (each if weight is None else weight[true] * each).sum() / _weight_of(label, weight)

    return loss


LOSSES: dict[str, Callable[[Mapping[str, Any]], Loss]] = {"cross_entropy": cross_entropy, "focal": focal}


# of an image's pixels, added to intersection and union: an empty mask then has a loss that grows with the predicted area, and
# a gradient. A share, since a number of pixels would mean something else at each size; as small as the smallest lesions.
SMOOTHING = 1e-3


def _pixels(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as (B, N), in float32 (or float64, if they were)."""
    import torch

    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.flatten(1).to(dtype), mask.flatten(1).to(dtype)


def _mean(each: Tensor, has_mask: Tensor) -> Tensor:
    """Return the mean of (B,) over images that have a mask, without waiting for the device."""
    return each.where(has_mask, each * 0.0).sum() / has_mask.sum().clamp_min(1)


def bce(options: Mapping[str, Any]) -> MaskLoss:
    """Binary cross-entropy, the mean over an image's pixels."""

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        from torch.nn import functional

        z, truth = _pixels(logits, mask)
        return _mean(functional.binary_cross_entropy_with_logits(z, truth, reduction="none").mean(1), has_mask)

    return loss


def mask_focal(options: Mapping[str, Any]) -> MaskLoss:
    """Focal loss (Lin et al. 2017, equation 4): binary cross-entropy times (1 - p_true)^gamma, the mean over an image's pixels.

    Args:
        options: `gamma` >= 0; 0 is binary cross-entropy.
    """
    gamma = float(options["gamma"])

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        from torch.nn import functional

        z, truth = _pixels(logits, mask)
        return _mean(_focal(functional.logsigmoid(z * (2 * truth - 1)), gamma).mean(1), has_mask)

    return loss


def _overlap(alpha: float, beta: float) -> MaskLoss:
    """1 - (TP + s) / (TP + alpha FP + beta FN + s) of soft counts, with s = `SMOOTHING` of the image's pixels."""

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        z, truth = _pixels(logits, mask)
        p = z.sigmoid()
        # means and not sums, so that the numbers do not grow with the image
        hit, false, missed = (p * truth).mean(1), (p * (1 - truth)).mean(1), ((1 - p) * truth).mean(1)
        wrong = alpha * false + beta * missed
        return _mean(wrong / (hit + wrong + SMOOTHING), has_mask)

    return loss


def dice(options: Mapping[str, Any]) -> MaskLoss:
    """Soft Dice loss (Milletari et al. 2016, with p instead of p² in the denominator): Tversky with both weights ½."""
    return _overlap(0.5, 0.5)


def jaccard(options: Mapping[str, Any]) -> MaskLoss:
    """Soft Jaccard loss (Rahman and Wang 2016): Tversky with both weights 1."""
    return _overlap(1.0, 1.0)


def tversky(options: Mapping[str, Any]) -> MaskLoss:
    """Tversky loss (Salehi et al. 2017).

    Args:
        options: `alpha` >= 0, weight of false positives, and `beta` >= 0, of false negatives; one of them above 0.

    Raises:
        ConfigError: other values.
    """
    alpha, beta = float(options["alpha"]), float(options["beta"])
    if min(alpha, beta) < 0 or alpha + beta == 0:
        raise ConfigError(
            f"model.loss.alpha is {alpha} and beta is {beta}; the weights of false positives and false negatives in tversky "
            "are 0 or more, and not both 0."
        )
    return _overlap(alpha, beta)


def lovasz(options: Mapping[str, Any]) -> MaskLoss:
    """Lovász hinge of the Jaccard index (Berman, Triki and Blaschko 2018, algorithm 1), for each image.

    SMP's goes image by image, and in float32 alone, so that its gradient could not be checked.
    Of an empty mask it is the hinge of the most certain pixel, the only one with a gradient.
    """

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        import torch

        z, truth = _pixels(logits, mask)
        errors, order = (1 - z * (2 * truth - 1)).sort(dim=1, descending=True)
        truth = truth.gather(1, order)
        total = truth.sum(1, keepdim=True)
        jaccard_loss = 1 - (total - truth.cumsum(1)) / (total + (1 - truth).cumsum(1))
        steps = torch.diff(jaccard_loss, dim=1, prepend=torch.zeros_like(total))
        return _mean((errors.relu() * steps).sum(1), has_mask)

    return loss


MASK_LOSSES: dict[str, Callable[[Mapping[str, Any]], MaskLoss]] = {
    "bce": bce, "dice": dice, "jaccard": jaccard, "focal": mask_focal, "tversky": tversky, "lovasz": lovasz,
}  # fmt: skip


def mask_loss(weights: Mapping[str, float], options: Mapping[str, Any]) -> MaskLoss:
    """Build a weighted sum of losses.

    Args:
        weights: name in `MASK_LOSSES` to a weight above 0, such as {"dice": 1, "bce": 1}.
        options: of all of them: `gamma`, `alpha`, `beta`.

    Raises:
        ConfigError: no loss, an unknown one (with the nearest), or a weight that is not above 0.
    """
    if not weights:
        raise ConfigError(f"model.loss.masks is empty; give losses with their weights: {', '.join(MASK_LOSSES)}.")
    parts: list[tuple[float, MaskLoss]] = []
    for name, weight in weights.items():
        if name not in MASK_LOSSES:
            raise ConfigError(
                f"model.loss.masks: {name!r} is no loss.{nearest(name, MASK_LOSSES)} Allowed: {', '.join(MASK_LOSSES)}."
            )
        if not (math.isfinite(weight) and weight > 0):
            raise ConfigError(f"model.loss.masks: {name} has the weight {weight}; give one above 0, or leave it out.")
        parts.append((float(weight), MASK_LOSSES[name](options)))

    def loss(logits: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        import torch

        return torch.stack([weight * part(logits, mask, has_mask) for weight, part in parts]).sum()

    return loss
