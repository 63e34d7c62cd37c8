"""Test that training batches of one image are refused exactly where torch refuses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from skincancer import fit
from skincancer.data.balance import distribute_batches
from skincancer.data.datamodule import check_shares
from skincancer.errors import ConfigError
from skincancer.models.backbones import build_backbone
from skincancer.models.compatibility import check_network, check_single_image
from skincancer.models.segmenters import build_segmenter
from skincancer.schema.data import DataConfig
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import ModelConfig
from skincancer.schema.training import TrainerConfig


def experiment(size: int, batch_size: int = 1, **model: Any) -> Experiment:
    task = "segmentation" if "architecture" in model else "classification"
    return Experiment(task=task, model=ModelConfig(**model), data=DataConfig(size=size, batch_size=batch_size))


def is_refused(checked: Experiment) -> bool:
    try:
        check_single_image(checked)
    except ConfigError:
        return True
    return False


def fails_in_torch(network: torch.nn.Module, size: int) -> bool:
    try:
        network.train()(torch.zeros(1, 3, size, size))
    except ValueError as error:
        return "more than 1 value per channel" in str(error)
    return False


@pytest.mark.parametrize("size", [32, 33, 64])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_classifiers_are_refused_where_torch_fails(name: str, size: int) -> None:
    fails = fails_in_torch(build_backbone(name, size), size)
    assert fails == (size == 32 and name != "test_convnext")
    assert is_refused(experiment(size, backbone=name)) == fails


@pytest.mark.parametrize("architecture", ["unet", "deeplabv3plus", "pspnet", "upernet", "fcn"])
def test_segmenters_are_refused_where_torch_fails(architecture: str) -> None:
    fails = fails_in_torch(build_segmenter(architecture, "resnet18", 64), 64)
    assert is_refused(experiment(64, architecture=architecture, backbone="resnet18")) == fails


def test_frozen_and_synchronised_layers_take_one_image() -> None:
    frozen = experiment(32, backbone="test_resnet", freeze="all")
    assert not is_refused(frozen)
    assert is_refused(replace(frozen, model=replace(frozen.model, unfreeze_epoch=2)))
    assert is_refused(replace(frozen, model=replace(frozen.model, freeze="1")))
    synchronised = replace(
        frozen, model=replace(frozen.model, freeze="none"), trainer=TrainerConfig(sync_batchnorm=True)
    )
    assert not is_refused(synchronised)


def test_a_batch_size_of_one_is_refused_before_data_are_read() -> None:
    message = (
        r"data\.batch_size is 1, .* test_resnet expects two or more at 32 px: .* layer4.* Use --data\.batch_size 3"
    )
    with pytest.raises(ConfigError, match=message):
        check_network(experiment(32, backbone="test_resnet"))
    check_network(experiment(32, backbone="test_resnet", batch_size=2))
    check_network(experiment(32, backbone="test_vit"))


@pytest.mark.parametrize(
    ("images", "batch_size", "ranks"),
    [
        (9, 1, 1),
        (9, 2, 1),
        (10, 2, 1),
        (10, 3, 1),
        (9, 8, 1),
        (12, 1, 3),
        (11, 2, 2),
        (12, 2, 2),
        (17, 8, 2),
        (5, 8, 3),
    ],
)
def test_the_smallest_training_batch_is_known(images: int, batch_size: int, ranks: int) -> None:
    sizes = [
        len(batch) for rank in range(ranks) for batch in distribute_batches(np.arange(images), batch_size, rank, ranks)
    ]
    data = SimpleNamespace(rows=lambda role: pd.DataFrame({"label": np.zeros(images, np.int64)}))
    assert check_shares(data, batch_size, "none", ranks) == min(sizes)


def test_a_last_batch_of_one_is_refused_before_the_run(
    tiny_demo: Path, session_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--data.root={tiny_demo}", "--model.backbone=test_resnet", "--model.weights=none", "--data.size=32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skincancer.training.session.check_shares", lambda *_: 1)
        assert fit.main(["--experiment=efficientnet_lite0", *flags, "--data.batch_size=2"]) == 2
    assert "data.batch_size is 2, which makes a training batch of one image" in capsys.readouterr().err
