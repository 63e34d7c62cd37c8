"""Which spaces are refused before the first trial: every value may be right by itself, and two of them not go together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from skincancer import sweep
from skincancer.config.experiments import find_experiment, list_experiments
from skincancer.errors import ConfigError
from skincancer.schema.dotted_keys import TYPES
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.space_check import MOST, Checked, check_space, corners
from skincancer.system.yaml_files import load_yaml

RATE = {"low": 0.1, "high": 0.3}
SMOOTHED = {
    "model.loss.name": {"choices": ["cross_entropy", "focal"]},
    "model.loss.label_smoothing": {"low": 0.0, "high": 0.2},
}
MOMENTUM = {
    "model.optimizer.name": {"choices": ["adamw", "sgd"]},
    "model.optimizer.momentum": {"low": 0.5, "high": 0.99},
}


def check(search: dict[str, Any], **content: Any) -> Checked:
    plan = Plan("x", {"task": "classification", **content}, {}, search, "tpe", "median", "", "")
    return check_space(plan, {})


def test_a_small_space_has_all_its_corners_and_a_large_one_a_balanced_draw():
    space = {"model.dropout": RATE, "augment.policy": {"choices": ["none", "light", "strong"]}}
    assert corners(space, TYPES) == [
        {"model.dropout": rate, "augment.policy": policy}
        for rate in (0.1, 0.3)
        for policy in ("none", "light", "strong")
    ]
    large = {**space, **{f"augment.{name}": RATE for name in ("scale", "shear", "blur", "noise", "erase")}}
    types = dict.fromkeys(large, float)
    drawn = corners(large, types)
    assert len(drawn) == MOST
    assert drawn == corners(large, types)
    assert sum(point["model.dropout"] == 0.1 for point in drawn) == MOST // 2
    assert {point["augment.policy"] for point in drawn} == {"none", "light", "strong"}
    many = {"model.dropout": {"choices": list(range(100))}, "augment.policy": space["augment.policy"]}
    assert {point["model.dropout"] for point in corners(many, types)} == set(range(100))


@pytest.mark.parametrize(
    ("search", "content", "said"),
    [
        (
            {"model.schedule.warmup_epochs": {"low": 0, "high": 5}, "trainer.max_epochs": {"choices": [5, 10]}},
            {"model": {"schedule": {"name": "cosine"}}},
            r"model.schedule.warmup_epochs may be 5.0 with trainer.max_epochs 5, which is not valid: .* below trainer.max_epochs "
            r"\(5\)\. Narrow one of the keys",
        ),
        (
            {"model.optimizer.name": MOMENTUM["model.optimizer.name"]},
            {"model": {"optimizer": {"name": "sgd", "momentum": 0.95}}},
            r"model.optimizer.name may be 'adamw', which is not valid: .*momentum is 0.95; it is for sgd",
        ),
        ({"model.optimizer.momentum": RATE}, {}, r"model.optimizer.momentum has no effect at any point .* it is for sgd"),
        ({"trainer.limit_train_batches": {"low": 0.5, "high": 10}}, {}, r"limit_train_batches may be 10.0, which is not valid"),
        ({"model.dropout": {"choices": [0.1, "much"]}}, {}, r"model.dropout may be 'much', which is not valid: .* number"),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together_are_reported(search, content, said):
    with pytest.raises(ConfigError, match=said):
        check(search, **content)


@pytest.mark.parametrize(
    ("search", "content"),
    [
        ({"trainer.limit_train_batches": {"low": 1, "high": 10}}, {}),
        (
            {"model.schedule.warmup_epochs": {"low": 0, "high": 25}, "trainer.max_epochs": {"choices": [30, 40]}},
            {"model": {"schedule": {"name": "cosine"}}},
        ),
    ],
)  # fmt: skip
def test_a_space_whose_points_are_all_experiments_is_taken(search, content):
    assert check(search, **content).unused == {}


@pytest.mark.parametrize(
    ("search", "content", "unused"),
    [
        (SMOOTHED, {}, {"model.loss.label_smoothing": "model.loss.name focal"}),
        (MOMENTUM, {}, {"model.optimizer.momentum": "model.optimizer.name adamw"}),
        (MOMENTUM, {"model": {"optimizer": {"name": "sgd", "momentum": 0.95}}}, {"model.optimizer.momentum": "model.optimizer.name adamw"}),
        (
            {"model.classifier": {"choices": ["svm", "network"]}, "model.classical.C": RATE},
            {},
            {"model.classical.C": "model.classifier network"},
        ),
    ],
)  # fmt: skip
def test_a_key_without_a_meaning_for_some_choices_is_left_out_there(search, content, unused):
    assert check(search, **content).unused == unused


def test_a_trial_keeps_the_default_of_a_key_without_a_meaning():
    content = {"task": "classification", "model": {"optimizer": {"name": "sgd", "momentum": 0.95}}}
    plan = Plan("x", content, {}, MOMENTUM, "tpe", "median", "", "")
    with_adam, unused = plan.at({"model.optimizer.name": "adamw", "model.optimizer.momentum": 0.7}, {})
    assert (with_adam.model.optimizer.momentum, unused) == (0.9, ["model.optimizer.momentum"])
    with_sgd, unused = plan.at({"model.optimizer.name": "sgd", "model.optimizer.momentum": 0.7}, {})
    assert (with_sgd.model.optimizer.momentum, unused) == (0.7, [])


def test_every_corner_is_judged_as_the_trial_that_it_would_be():
    search = {
        **SMOOTHED,
        **MOMENTUM,
        "augment.policy": {"choices": ["none", "light"]},
        "model.freeze": {"choices": ["none", 2]},
    }
    plan = Plan("x", {"task": "classification"}, {}, search, "tpe", "median", "", "")
    unused = {key for point in corners(search, TYPES)[::7] for key in plan.at(point, {})[1]}
    assert check_space(plan, {}).unused.keys() == unused


def test_the_shipped_spaces_fit():
    for name in list_experiments():
        content = load_yaml(find_experiment(name))
        if "search" in content:
            assert check_space(Plan(name, content, {}, content["search"], "tpe", "median", "", ""), {}).unused == {}


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        (
            {"search": MOMENTUM},
            ["--sampler=grid"],
            "--sampler grid: model.optimizer.momentum has no effect with model.optimizer.name adamw",
        ),
        (
            {"trainer": {"limit_val_batches": 2}, "search": {"data.batch_size": {"choices": [8, 16]}}},
            [],
            "data.batch_size cannot be searched with trainer.limit_val_batches 2",
        ),
    ],
)
def test_trials_that_would_be_alike_or_not_comparable_are_refused(content, flags, said, tmp_path: Path, capsys):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"task": "classification", **content}))
    assert sweep.main([f"--experiment={tmp_path / 'mine.yaml'}", "--trials=2", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_plan_keeps_no_mlflow_store_of_its_file():
    uri = "http://me:hunter2@host"
    for content in (
        {"tracking": {"uri": uri, "system_metrics": False}},
        {"study": {"tracking": {"uri": uri}}},
        {"tracking.uri": uri},
    ):
        plan = Plan("x", {"task": "classification", **content}, {}, {"model.dropout": RATE}, "tpe", "median", "", "")
        assert "hunter2" not in repr(plan)
        assert plan.resolve({}, {}).tracking.uri is None
    assert Plan("x", {"tracking": {"system_metrics": False}}, {}, {}, "tpe", "median", "", "").content["tracking"] == {
        "system_metrics": False
    }
