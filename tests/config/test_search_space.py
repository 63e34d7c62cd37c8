"""The space of a sweep: what a search block may hold, Optuna's distributions, the grid."""

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from skincancer.config.search_space import check_search, distributions, ends_of, grid
from skincancer.errors import ConfigError
from skincancer.schema.dotted_keys import TYPES

SPACE = {
    "model.optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "model.dropout": {"low": 0, "high": 0.5, "step": 0.25},
    "data.batch_size": {"low": 8, "high": 24, "step": 8},
    "augment.policy": {"choices": ["none", "light"]},
    "model.freeze": {"choices": ["none", "all"]},
}


def test_numbers_are_whole_where_the_key_is():
    check_search(SPACE, TYPES)
    found = distributions(SPACE, TYPES)
    assert found == {
        "model.optimizer.lr": FloatDistribution(1e-4, 1e-2, log=True),
        "model.dropout": FloatDistribution(0.0, 0.5, step=0.25),
        "data.batch_size": IntDistribution(8, 24, step=8),
        "augment.policy": CategoricalDistribution(("none", "light")),
        "model.freeze": CategoricalDistribution(("none", "all")),
    }
    assert [ends_of(space, TYPES[key]) for key, space in SPACE.items()][:3] == [[1e-4, 1e-2], [0.0, 0.5], [8, 24]]


@pytest.mark.parametrize(
    ("space", "drawn"),
    [
        ({"low": 1, "high": 10}, IntDistribution(1, 10)),
        ({"low": 2, "high": 10, "step": 4}, IntDistribution(2, 10, step=4)),
        ({"low": 0.1, "high": 1}, FloatDistribution(0.1, 1.0)),
    ],
)
def test_a_key_of_a_number_or_a_share_is_drawn_as_its_range_is_written(space, drawn):
    key = "trainer.limit_train_batches"
    assert distributions({key: space}, TYPES) == {key: drawn}
    assert [type(end) for end in ends_of(space, TYPES[key])] == [type(drawn.low)] * 2


def test_the_grid_has_every_point_once():
    points = grid({name: SPACE[name] for name in ("model.dropout", "data.batch_size", "augment.policy")}, TYPES)
    assert len(points) == 3 * 3 * 2
    assert len({tuple(point.items()) for point in points}) == len(points)
    assert sorted({point["model.dropout"] for point in points}) == [0, 0.25, 0.5]
    assert points[0] == {"model.dropout": 0, "data.batch_size": 8, "augment.policy": "none"}
    many = {name: {"choices": list(range(100))} for name in ("model.dropout", "data.batch_size", "data.size")}
    with pytest.raises(ConfigError, match="1,000,000 points"):
        grid(many, TYPES)
    with pytest.raises(ConfigError, match=r"grid: model.optimizer.lr .* has no steps"):
        grid(SPACE, TYPES)


@pytest.mark.parametrize(
    ("key", "space", "said"),
    [
        ("model.dropuot", {"low": 0, "high": 1}, "not a known key. Did you mean 'model.dropout'?"),
        ("data.split", {"choices": ["80:20", "70:30"]}, "cannot be searched"),
        ("data.root", {"choices": ["a", "b"]}, "cannot be searched"),
        ("data.quality", {"choices": ["keep", "drop_flagged"]}, "cannot be searched"),
        ("data.skip_bad", {"choices": [True, False]}, "cannot be searched"),
        ("model.dropout", {"low": 0.5, "high": 0.5}, "low below high"),
        ("model.dropout", {"low": 0.5, "high": 0.1}, "low below high"),
        ("model.dropout", {"low": 0.0, "high": float("inf")}, "finite numbers"),
        ("model.optimizer.lr", {"low": 0.0, "high": 1.0, "log": True}, "above 0 for log"),
        ("model.optimizer.lr", {"low": 0.1, "high": 1.0, "log": "yes"}, "log true or false"),
        ("model.optimizer.lr", {"low": 0.1, "high": 1.0, "log": True, "step": 0.1}, "not with both"),
        ("model.dropout", {"low": 0.0, "high": 0.5, "step": 0.0}, "a step above 0"),
        ("model.dropout", {"low": 0.0, "high": 0.5, "step": 0.3}, "leads from low to high"),
        ("model.dropout", {"low": 0.0, "high": 0.5, "step": 0.6}, "leads from low to high"),
        ("data.batch_size", {"low": 8, "high": 16.5}, "whole numbers"),
        ("augment.policy", {"low": 1, "high": 2}, "takes no numbers"),
        ("trainer.benchmark", {"low": 0, "high": 1}, "takes no numbers"),
        ("model.dropout", {"low": True, "high": 2}, "of numbers"),
        ("model.dropout", {"choices": []}, "a list of different"),
        ("model.dropout", {"choices": [0.1, 0.1]}, "a list of different"),
        ("model.loss.masks", {"choices": [{"dice": 1.0}]}, "a list of different texts"),
    ],
)
def test_a_bad_space_is_reported_with_key_and_value(key, space, said):
    with pytest.raises(ConfigError) as caught:
        check_search({key: space}, TYPES)
    assert said in str(caught.value)
    assert key in str(caught.value)
    assert (
        np.all([str(value) in str(caught.value) for value in space.values()]) or "known" in said or "searched" in said
    )
