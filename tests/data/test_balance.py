from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from skincancer.data.balance import BALANCES, class_weights, distribute_batches, epoch_order
from skincancer.errors import ConfigError, DataError

LABELS = np.repeat([0, 2, 3], [13, 5, 31])  # class 1 has no training image


@pytest.mark.parametrize("balance", BALANCES)
def test_an_order_is_a_function_of_its_arguments(balance: str) -> None:
    np.random.seed(1)
    first = epoch_order(LABELS, balance, 3, 4)
    np.random.seed(2)
    assert np.array_equal(first, epoch_order(LABELS, balance, 3, 4))
    assert first.dtype == np.int64
    for seed, epoch in ((3, 5), (4, 4), (4, 3)):
        assert not np.array_equal(first, epoch_order(LABELS, balance, seed, epoch))


@pytest.mark.parametrize("balance", ["none", "class_weights"])
def test_an_unsampled_epoch_shows_every_image_once(balance: str) -> None:
    order = epoch_order(LABELS, balance, 0, 0)
    assert sorted(order) == list(range(49))
    assert list(order) != list(range(49))


def test_undersampling_draws_every_class_down_to_the_smallest_anew_each_epoch() -> None:
    orders = [epoch_order(LABELS, "undersample", 0, epoch) for epoch in range(40)]
    for order in orders:
        assert len(set(order)) == len(order)
        assert np.bincount(LABELS[order]).tolist() == [5, 0, 5, 5]
    assert len({frozenset(order) for order in orders}) > 30
    # In 40 epochs each of the 31 images of the largest class is missed with probability (26/31)^40 < 0.1 %.
    assert len(set(np.concatenate(orders))) >= 48


def test_a_fixed_subset_stays_while_its_order_changes() -> None:
    orders = [epoch_order(LABELS, "undersample", 7, epoch, fixed=True) for epoch in range(5)]
    assert len({frozenset(order) for order in orders}) == 1
    assert len({tuple(order) for order in orders}) == 5
    assert set(orders[0]) != set(epoch_order(LABELS, "undersample", 8, 0, fixed=True))


def test_oversampling_repeats_whole_classes_and_draws_the_remainder_without_replacement() -> None:
    order = epoch_order(LABELS, "oversample", 0, 0)
    assert np.bincount(LABELS[order]).tolist() == [31, 0, 31, 31]
    shown = np.bincount(order, minlength=49)
    assert sorted(shown[:13]) == [2] * 8 + [3] * 5  # 31 = 2 · 13 + 5
    assert sorted(shown[13:18]) == [6] * 4 + [7]  # 31 = 6 · 5 + 1
    assert shown[18:].tolist() == [1] * 31


def test_orders_are_shuffled_across_classes() -> None:
    order = epoch_order(LABELS, "oversample", 0, 0)
    changes = np.count_nonzero(np.diff(LABELS[order]))
    assert changes > 40  # about 2/3 of 92; 2 if the classes stood one after the other


def test_bad_arguments_of_an_order() -> None:
    with pytest.raises(ConfigError, match=r"'undersampling'.*none, undersample.*Did you mean 'undersample'"):
        epoch_order(LABELS, "undersampling", 0, 0)
    with pytest.raises(DataError, match="no training images"):
        epoch_order(np.array([], dtype=np.int64), "none", 0, 0)
    with pytest.raises(DataError, match="2 training images have no label"):
        epoch_order(np.array([0, -1, 1, -1]), "oversample", 0, 0)
    assert sorted(epoch_order(np.array([0, -1, 1, -1]), "none", 0, 0)) == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 7, 32, 33, 49, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [2, 8, 16])
def test_dealing_uses_every_image_once_in_equally_many_batches(n: int, world_size: int, batch_size: int) -> None:
    order = np.random.default_rng(0).permutation(n)
    batches_expected = math.ceil(math.ceil(n / world_size) / batch_size)
    if n // world_size < batches_expected:
        for rank in range(world_size):
            with pytest.raises(ConfigError, match=r"larger data\.batch_size"):
                distribute_batches(order, batch_size, rank, world_size)
        return
    shares = [distribute_batches(order, batch_size, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate([batch for share in shares for batch in share])) == list(range(n))
    for share in shares:
        sizes = [len(batch) for batch in share]
        assert len(sizes) == batches_expected
        assert 1 <= min(sizes)
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1


def test_dealing_by_hand() -> None:
    order = np.array([5, 3, 8, 1, 0, 7, 2])
    assert [batch.tolist() for batch in distribute_batches(order, 2, 0, 2)] == [[5, 8], [0, 2]]
    assert [batch.tolist() for batch in distribute_batches(order, 2, 1, 2)] == [[3, 1], [7]]
    assert [len(batch) for batch in distribute_batches(np.arange(33), 16, 0, 1)] == [
        11,
        11,
        11,
    ]  # not 16, 16 and a single image


def test_dealing_refuses() -> None:
    with pytest.raises(ConfigError, match="3 images in batches of 1"):  # rank 1 would have one image for two batches
        distribute_batches(np.arange(3), 1, 0, 2)
    with pytest.raises(ConfigError, match="rank 2 of 2"):
        distribute_batches(np.arange(3), 1, 2, 2)
    with pytest.raises(ConfigError, match="0 images"):
        distribute_batches(np.arange(0), 1, 0, 1)


def test_class_weights_against_scikit_learn() -> None:
    labels = np.repeat([0, 1, 2], [13, 5, 31])
    weights = class_weights(labels, 3)
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=labels), rtol=1e-12)
    assert weights.dtype == np.float64


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_class_weights_have_mean_one_over_the_images(power: float) -> None:
    labels = np.repeat([0, 1], [4, 16])
    weights = class_weights(labels, 2, power)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[0] / weights[1] == pytest.approx(4**power)
    np.testing.assert_allclose(class_weights(np.append(labels, [-1, -1]), 2, power), weights)


def test_class_weights_need_every_class() -> None:
    with pytest.raises(DataError, match="label 1, 4"):
        class_weights(LABELS, 5)
