from __future__ import annotations

import numpy as np
import pytest

from skincancer.metrics.bootstrap import bootstrap_weights


def test_lesions_are_drawn_whole():
    groups = ["a", "a", "b", "c", "c", "c", "d", "e"]
    weight = bootstrap_weights(groups, 500, seed=1)
    assert weight.shape == (500, 8)
    assert (weight[:, 0] == weight[:, 1]).all()
    assert (weight[:, [3]] == weight[:, 3:6]).all()
    assert (weight[:, [0, 2, 3, 6, 7]].sum(axis=1) == 5).all()
    np.testing.assert_allclose(weight.mean(axis=0), 1, atol=0.15)


def test_counts_of_a_class_vary_as_in_a_multinomial_sample():
    """Of 40 lesions, 10 are positive: the number of positives has the variance of 40 draws with probability 1/4."""
    weight = bootstrap_weights(np.arange(40).astype(str), 20_000, seed=0)
    positives = weight[:, :10].sum(axis=1)
    assert positives.mean() == pytest.approx(10, abs=0.1)
    assert positives.var() == pytest.approx(40 * 0.25 * 0.75, rel=0.05)


def test_draws_depend_on_seed_and_lesions_but_not_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    groups = np.array([f"L{i}" for i in rng.integers(40, size=100)])
    weight = bootstrap_weights(groups, 20, seed=7)
    assert (bootstrap_weights(groups, 20, seed=7) == weight).all()
    assert (bootstrap_weights(groups, 20, seed=8) != weight).any()
    order = rng.permutation(100)
    assert (bootstrap_weights(groups[order], 20, seed=7) == weight[:, order]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": []}, "N at least 1"),
        ({"groups": ["a", None]}, "1 images have no lesion"),
        ({"n_resamples": 0}, "n_resamples must be at least 1, got 0"),
    ],
)
def test_malformed_input_is_refused(change, message):
    good = {"groups": ["a", "b"], "n_resamples": 5, "seed": 0}
    with pytest.raises(ValueError, match=message):
        bootstrap_weights(**(good | change))
