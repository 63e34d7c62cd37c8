from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from segmentation_models_pytorch import losses as smp
from torch import Tensor

from skincancer.errors import ConfigError
from skincancer.models.losses import MASK_LOSSES, SMOOTHING, mask_loss

OPTIONS = {"gamma": 2.0, "alpha": 0.3, "beta": 0.7}
OVERLAPS = ["dice", "jaccard", "tversky"]
ALL = torch.ones(1, dtype=torch.bool)
LN3 = math.log(3.0)


def draw(images: int = 3, side: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, masks with lesion and skin in each, and a mask for every image."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, 1, side, side, generator=generator, dtype=dtype) * 3
    mask = (torch.rand(images, 1, side, side, generator=generator) < 0.3).to(dtype)
    assert 0 < mask.flatten(1).sum(1).min() < side * side
    return logits, mask, torch.ones(images, dtype=torch.bool)


def value(name: str, logits: Tensor, mask: Tensor, has_mask: Tensor, **options: float) -> Tensor:
    return MASK_LOSSES[name](OPTIONS | options)(logits, mask, has_mask)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # p = 1/2, 3/4, 1/4 where there is lesion, 1/2 where there is none: of four pixels TP 3/8, FP 1/8, FN 3/8
        ("bce", (math.log(2) + math.log(4 / 3) + math.log(4) + math.log(2)) / 4),
        ("focal", (math.log(2) / 4 + math.log(4 / 3) / 16 + math.log(4) * 9 / 16 + math.log(2) / 4) / 4),
        ("dice", 0.25 / (0.625 + SMOOTHING)),
        ("jaccard", 0.5 / (0.875 + SMOOTHING)),
        ("tversky", 0.3 / (0.675 + SMOOTHING)),
        # errors 1 + ln 3 and 1 of lesion, 1 of skin, 1 - ln 3 of lesion (below 0); Jaccard loss 1/3, 2/3, 3/4, 1
        ("lovasz", (1 + LN3) / 3 + 1 / 3 + 1 / 12),
    ],
)
def test_values_worked_out_on_paper(name: str, expected: float) -> None:
    logits = torch.tensor([0.0, LN3, -LN3, 0.0]).reshape(1, 1, 2, 2)
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    assert float(value(name, logits, mask, ALL)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("bce", smp.SoftBCEWithLogitsLoss()),
        ("focal", smp.FocalLoss("binary", gamma=2.0)),
        ("dice", smp.DiceLoss("binary", smooth=SMOOTHING * 64)),
        ("jaccard", smp.JaccardLoss("binary", smooth=SMOOTHING * 64)),
        ("tversky", smp.TverskyLoss("binary", alpha=0.3, beta=0.7, smooth=SMOOTHING * 64)),
        ("lovasz", smp.LovaszLoss("binary", per_image=True)),
    ],
)
def test_smps_losses_of_each_image(name: str, theirs: torch.nn.Module) -> None:
    logits, mask, has_mask = draw(images=4, side=8)
    each = [float(theirs(logits[i : i + 1], mask[i : i + 1])) for i in range(4)]
    assert float(value(name, logits, mask, has_mask)) == pytest.approx(sum(each) / 4, rel=1e-5)


def test_dice_and_jaccard_are_of_each_image_and_not_of_the_batch() -> None:
    logits, mask, has_mask = draw(images=2)
    mask[0, 0, :6] = 1  # a large lesion would outweigh a small one
    whole = smp.DiceLoss("binary", smooth=SMOOTHING * 64)(logits, mask)
    assert abs(float(value("dice", logits, mask, has_mask)) - float(whole)) > 1e-3


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_a_perfect_mask_costs_nothing_and_its_opposite_most(name: str) -> None:
    _, mask, has_mask = draw()
    sure = (mask * 2 - 1) * 40
    assert float(value(name, sure, mask, has_mask)) == pytest.approx(0, abs=1e-6)
    wrong = float(value(name, -sure, mask, has_mask))
    assert wrong > 10 if name in ("bce", "focal", "lovasz") else wrong == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_an_empty_mask_asks_for_an_empty_prediction(name: str) -> None:
    mask = torch.zeros(1, 1, 8, 8)
    assert float(value(name, torch.full_like(mask, -20.0), mask, ALL)) == pytest.approx(0, abs=1e-5)
    logits = torch.full_like(mask, -2.0)
    logits[0, 0, 2:5, 2:5] = 1.0
    less, more = logits.clone(), logits.clone()
    less[0, 0, 2, 2:5] = -2.0
    more[0, 0, 5, 2:5] = 1.5
    leaf = logits.clone().requires_grad_()
    loss = value(name, leaf, mask, ALL)
    loss.backward()
    assert leaf.grad is not None
    assert float(loss.detach()) > 0.01
    assert (leaf.grad >= 0).all()
    assert leaf.grad[0, 0, 2:5, 2:5].sum() > 0
    if name != "lovasz":  # of an empty mask it sees the most certain pixel alone
        assert (leaf.grad > 0).all()
        assert value(name, less, mask, ALL) < loss.detach() < value(name, more, mask, ALL)


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_a_full_mask_asks_for_all(name: str) -> None:
    mask = torch.ones(1, 1, 8, 8)
    assert float(value(name, torch.full_like(mask, 20.0), mask, ALL)) == pytest.approx(0, abs=1e-5)
    leaf = torch.full_like(mask, -1.0).requires_grad_()
    loss = value(name, leaf, mask, ALL)
    loss.backward()
    assert leaf.grad is not None
    assert float(loss.detach()) > 0.3
    assert leaf.grad.sum() < 0
    assert (leaf.grad <= 0).all()


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_images_without_a_mask_count_nothing(name: str) -> None:
    logits, mask, has_mask = draw(images=4)
    has_mask[1] = has_mask[3] = False
    mask[3] = 0
    leaf = logits.clone().requires_grad_()
    loss = value(name, leaf, mask, has_mask)
    loss.backward()
    kept = torch.tensor([0, 2])
    torch.testing.assert_close(loss.detach(), value(name, logits[kept], mask[kept], has_mask[kept]))
    assert leaf.grad is not None
    assert not leaf.grad[~has_mask].any()
    assert leaf.grad[has_mask].flatten(1).any(1).all()


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_without_any_mask_it_is_0_with_a_gradient(name: str) -> None:
    logits, mask, has_mask = draw()
    leaf = logits.clone().requires_grad_()
    loss = value(name, leaf, mask, ~has_mask)
    loss.backward()
    assert float(loss.detach()) == 0
    assert leaf.grad is not None
    assert not leaf.grad.any()


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    logits, mask, has_mask = draw(images=2, side=4, dtype=torch.float64)
    mask[1] = 0
    loss = MASK_LOSSES[name](OPTIONS)
    assert torch.autograd.gradcheck(lambda z: loss(z, mask, has_mask), logits.requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_where_the_model_is_sure(gamma: float) -> None:
    logits = torch.tensor([200.0, -200.0, 200.0, 0.0]).reshape(1, 1, 2, 2).requires_grad_()
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
    loss = value("focal", logits, mask, ALL, gamma=gamma)
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0, 0, 1] < 0 < logits.grad[0, 0, 1, 0]  # the wrong ones are pushed the right way


def test_focal_of_gamma_0_is_bce() -> None:
    logits, mask, has_mask = draw()
    torch.testing.assert_close(value("focal", logits, mask, has_mask, gamma=0.0), value("bce", logits, mask, has_mask))


@pytest.mark.parametrize("name", MASK_LOSSES)
def test_half_precision_logits_are_taken_in_float32(name: str) -> None:
    logits, mask, has_mask = draw(side=64)
    half = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = value(name, half, mask, has_mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, value(name, half.float(), mask, has_mask))


@pytest.mark.parametrize("name", OVERLAPS)
def test_the_size_of_an_image_does_not_matter(name: str) -> None:
    logits, mask, has_mask = draw()
    large = [tensor.repeat_interleave(4, 2).repeat_interleave(4, 3) for tensor in (logits, mask)]
    torch.testing.assert_close(value(name, *large, has_mask), value(name, logits, mask, has_mask))


def test_a_weighted_sum() -> None:
    batch = draw()
    weighted = mask_loss({"dice": 0.5, "bce": 1, "lovasz": 2.0}, OPTIONS)(*batch)
    expected = 0.5 * value("dice", *batch) + value("bce", *batch) + 2 * value("lovasz", *batch)
    torch.testing.assert_close(weighted, expected)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({}, "empty; give losses with their weights: bce, dice"),
        ({"dise": 1.0}, r"'dise' is no loss\. Did you mean 'dice'\? Allowed: bce, dice, jaccard"),
        ({"dice": 1.0, "bce": 0.0}, r"bce has the weight 0\.0"),
        ({"dice": -1.0}, r"dice has the weight -1\.0"),
        ({"dice": math.nan}, "dice has the weight nan"),
        ({"dice": math.inf}, "dice has the weight inf"),
    ],
)
def test_a_sum_that_makes_no_sense(weights: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        mask_loss(weights, OPTIONS)


@pytest.mark.parametrize(("alpha", "beta"), [(-0.1, 0.5), (0.5, -1.0), (0.0, 0.0)])
def test_tversky_weights_that_make_no_sense(alpha: float, beta: float) -> None:
    with pytest.raises(ConfigError, match=rf"alpha is {alpha} and beta is {beta}"):
        mask_loss({"tversky": 1.0}, {"alpha": alpha, "beta": beta})


def test_names_are_known_without_torch() -> None:
    code = (
        "import sys; from skincancer.models.names import ARCHITECTURES, MASK_LOSSES; assert MASK_LOSSES and ARCHITECTURES; "
        "print({'torch', 'timm', 'segmentation_models_pytorch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
