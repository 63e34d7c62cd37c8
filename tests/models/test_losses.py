from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from skincancer.models.losses import LOSSES, cross_entropy, focal

OPTIONS = {"label_smoothing": 0.0, "gamma": 2.0}
WEIGHT = torch.tensor([0.5, 2.0, 1.5])


def draw(n: int = 40, classes: int = 3, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=generator) * scale
    return logits, torch.randint(classes, (n,), generator=generator)


def by_hand(logits: Tensor, label: Tensor, weight: Tensor | None, gamma: float) -> float:
    """Lin et al. 2017, equation 5, in numpy and float64; the mean is weighted as cross-entropy's."""
    log_p = log_softmax(logits.double().numpy(), axis=1)[np.arange(len(label)), label.numpy()]
    alpha = np.ones(len(label)) if weight is None else weight.double().numpy()[label.numpy()]
    return float(-(alpha * (1 - np.exp(log_p)) ** gamma * log_p).sum() / alpha.sum())


def test_values_worked_out_on_paper() -> None:
    # p = 1/2 and p = 1/4 for the true class
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    label = torch.tensor([0, 1])
    assert float(cross_entropy(OPTIONS)(logits, label, None)) == pytest.approx((math.log(2) + math.log(4)) / 2)
    # (1/4 ln 2 + 9/16 ln 4) / 2
    assert float(focal(OPTIONS)(logits, label, None)) == pytest.approx((math.log(2) / 4 + math.log(4) * 9 / 16) / 2)
    # weights 1 and 3: (ln 2 + 3 ln 4) / 4
    weighted = cross_entropy(OPTIONS)(logits, label, torch.tensor([1.0, 3.0]))
    assert float(weighted) == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)


def test_label_smoothing_on_paper() -> None:
    # smoothing 0.3 over three classes: the true one gets 0.8, the others 0.1 each; p = 1/2, 1/4, 1/4
    logits = torch.tensor([[math.log(2.0), 0.0, 0.0]])
    loss = cross_entropy({"label_smoothing": 0.3})(logits, torch.tensor([0]), None)
    assert float(loss) == pytest.approx(0.8 * math.log(2) + 0.2 * math.log(4))


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_in_numpy(weight: Tensor | None) -> None:
    logits, label = draw()
    loss = cross_entropy(OPTIONS)(logits, label, weight)
    assert float(loss) == pytest.approx(by_hand(logits, label, weight, 0.0), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_in_numpy(gamma: float, weight: Tensor | None) -> None:
    logits, label = draw()
    loss = focal({"gamma": gamma})(logits, label, weight)
    assert float(loss) == pytest.approx(by_hand(logits, label, weight, gamma), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_of_two_logits_is_torchvisions_sigmoid_focal_loss(gamma: float) -> None:
    z, _ = draw(30, 1)
    label = torch.arange(30) % 2
    logits = torch.cat([torch.zeros_like(z), z], dim=1)
    expected = sigmoid_focal_loss(z[:, 0], label.float(), alpha=-1, gamma=gamma, reduction="mean")
    assert float(focal({"gamma": gamma})(logits, label, None)) == pytest.approx(float(expected), rel=1e-5)


def test_focal_of_gamma_0_is_cross_entropy_in_value_and_gradient() -> None:
    logits, label = draw()
    label[::7] = -1
    gradients = []
    for loss in (focal({"gamma": 0.0}), cross_entropy(OPTIONS)):
        leaf = logits.clone().requires_grad_()
        loss(leaf, label, WEIGHT).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_two_logits_of_a_sigmoid_head_are_binary_cross_entropy() -> None:
    z, _ = draw(30, 1)
    label = torch.arange(30) % 2
    logits = torch.cat([torch.zeros_like(z), z], dim=1)
    loss = cross_entropy(OPTIONS)(logits, label, None)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(z[:, 0], label.float()))
    # torch's pos_weight divides by the number of images and not by the sum of weights
    weighted = cross_entropy(OPTIONS)(logits, label, torch.tensor([1.0, 4.0]))
    expected = F.binary_cross_entropy_with_logits(
        z[:, 0], label.float(), pos_weight=torch.tensor(4.0), reduction="sum"
    ) / (15 + 4 * 15)
    torch.testing.assert_close(weighted, expected)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_unlabelled_images_count_nothing(name: str, weight: Tensor | None) -> None:
    logits, label = draw()
    loss = LOSSES[name](OPTIONS)
    with_absent = label.clone()
    with_absent[[0, 5, 39]] = -1
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, with_absent, weight)
    value.backward()
    kept = with_absent >= 0
    torch.testing.assert_close(value.detach(), loss(logits[kept], label[kept], weight))
    assert leaf.grad is not None
    assert not leaf.grad[~kept].any()
    assert leaf.grad[kept].all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_stay_finite_where_the_model_is_sure(name: str, gamma: float) -> None:
    # sure and right, sure and wrong, undecided
    logits = torch.tensor([[60.0, 0.0, -60.0], [-60.0, 0.0, 60.0], [0.0, 0.0, 0.0]], requires_grad=True)
    value = LOSSES[name]({"label_smoothing": 0.1, "gamma": gamma})(logits, torch.tensor([0, 0, 1]), WEIGHT)
    value.backward()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[1, 0] < 0 < logits.grad[1, 2]  # the wrong one is pushed the right way


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_value(name: str) -> None:
    logits, label = draw(6)
    loss = LOSSES[name]({"label_smoothing": 0.1, "gamma": 1.5})
    leaf = logits.clone().requires_grad_()
    loss(leaf, label, WEIGHT).backward()
    assert leaf.grad is not None
    step = 1e-2
    for row, column in ((0, 0), (3, 1), (5, 2)):
        moved = [logits.clone(), logits.clone()]
        moved[0][row, column] += step
        moved[1][row, column] -= step
        slope = (loss(moved[0], label, WEIGHT) - loss(moved[1], label, WEIGHT)) / (2 * step)
        assert float(leaf.grad[row, column]) == pytest.approx(float(slope), abs=2e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_taken_in_float32(name: str) -> None:
    logits, label = draw()
    half = logits.bfloat16()
    loss = LOSSES[name](OPTIONS)(half, label, WEIGHT)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](OPTIONS)(half.float(), label, WEIGHT))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_where_nothing_is_labelled_loss_and_gradient_are_0(name: str, weight: Tensor | None) -> None:
    logits = draw(6)[0].requires_grad_()
    value = LOSSES[name]({"label_smoothing": 0.1, "gamma": 2.0})(logits, torch.full((6,), -1), weight)
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_is_torchs_mean(weight: Tensor | None) -> None:
    logits, label = draw()
    label[::7] = -1
    expected = F.cross_entropy(logits, label, weight=weight, ignore_index=-1, label_smoothing=0.3)
    torch.testing.assert_close(cross_entropy({"label_smoothing": 0.3})(logits, label, weight), expected)
