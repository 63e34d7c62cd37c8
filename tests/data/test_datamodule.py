from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from skincancer.data.balance import epoch_order
from skincancer.data.datamodule import BatchIndices, EvaluationSampler, LesionDataModule, StoreDataset, TrainSampler
from skincancer.data.prepare import ROLES, PreparedData, prepare_data
from skincancer.data.store import Store
from skincancer.schema.data import AugmentConfig, DataConfig

Batch = dict[str, Any]
SIZE = 32

# 29 training images at scattered rows: 16, 8 and 5 of a class
ROWS = np.flatnonzero(np.arange(60) % 7 > 2)[:29].astype(np.int64)
LABELS = np.repeat([0, 1, 2], [16, 8, 5]).astype(np.int64)


def make_sampler(balance: str = "none", *, rank: int = 0, world_size: int = 1, **changes: Any) -> TrainSampler:
    options = {"fixed": False, "batch_size": 4, "seed": 3, **changes}
    return TrainSampler(ROWS, LABELS, balance=balance, rank=rank, world_size=world_size, **options)


def draw_epoch(sampler: TrainSampler, epoch: int) -> list[BatchIndices]:
    sampler.set_epoch(epoch)
    return list(sampler)


def shown(draws: list[BatchIndices]) -> list[int]:
    return [int(row) for draw in draws for row in draw.rows]


@pytest.mark.parametrize("balance", ["none", "class_weights"])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_shows_each_training_image_once(balance: str, epoch: int) -> None:
    sampler = make_sampler(balance)
    draws = draw_epoch(sampler, epoch)
    assert sorted(shown(draws)) == ROWS.tolist()
    assert [(draw.epoch, draw.number) for draw in draws] == [(epoch, number) for number in range(8)]
    assert len(sampler) == 8
    assert sampler.images == 29
    assert max(len(draw.rows) for draw in draws) == 4


@pytest.mark.parametrize("balance", ["none", "undersample", "oversample"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_an_epoch_without_overlap_in_equally_many_batches(balance: str, world_size: int) -> None:
    whole = shown(draw_epoch(make_sampler(balance), 2))
    shares = [draw_epoch(make_sampler(balance, rank=rank, world_size=world_size), 2) for rank in range(world_size)]
    assert Counter(row for share in shares for row in shown(share)) == Counter(whole)
    assert len({len(share) for share in shares}) == 1
    if balance != "oversample":  # which repeats images
        rows = [set(shown(share)) for share in shares]
        assert sum(len(share) for share in rows) == len(set.union(*rows))


@pytest.mark.parametrize("balance", ["none", "undersample", "oversample"])
def test_the_order_is_a_function_of_seed_and_epoch(balance: str) -> None:
    sampler = make_sampler(balance)
    third = shown(draw_epoch(sampler, 2))
    assert shown(draw_epoch(sampler, 3)) != third
    np.random.seed(0)
    torch.manual_seed(0)
    assert shown(draw_epoch(make_sampler(balance), 2)) == third  # not of the epochs before
    assert shown(draw_epoch(make_sampler(balance, seed=4), 2)) != third


@pytest.mark.parametrize(("balance", "each"), [("undersample", 5), ("oversample", 16)])
def test_sampled_epochs_show_every_class_alike(balance: str, each: int) -> None:
    sampler, label = make_sampler(balance), dict(zip(ROWS.tolist(), LABELS.tolist(), strict=True))
    epochs = [shown(draw_epoch(sampler, epoch)) for epoch in range(4)]
    for rows in epochs:
        assert Counter(label[row] for row in rows) == {0: each, 1: each, 2: each}
    assert sampler.images == 3 * each
    assert len({frozenset(Counter(rows).items()) for rows in epochs}) > 2  # drawn anew
    if balance == "undersample":
        assert all(len(set(rows)) == len(rows) for rows in epochs)
    else:
        assert all(set(rows) == set(ROWS.tolist()) for rows in epochs)


def test_a_fixed_subset_stays() -> None:
    sampler = make_sampler("undersample", fixed=True)
    epochs = [shown(draw_epoch(sampler, epoch)) for epoch in range(3)]
    assert len({frozenset(rows) for rows in epochs}) == 1
    assert len({tuple(rows) for rows in epochs}) == 3


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [12, 29, 31])
def test_evaluation_deals_every_image_once_in_equally_many_batches(world_size: int, count: int) -> None:
    rows = np.arange(100, 100 + count)
    samplers = [EvaluationSampler(rows, 4, rank, world_size) for rank in range(world_size)]
    shares = [list(sampler) for sampler in samplers]
    assert sorted(row for share in shares for row in shown(share)) == rows.tolist()
    assert {len(share) for share in shares} == {len(sampler) for sampler in samplers}
    assert len({len(share) for share in shares}) == 1
    assert all(1 <= len(draw.rows) <= 4 for share in shares for draw in share)


@pytest.fixture(scope="module")
def data(tiny_demo: Path, session_cache: Path) -> PreparedData:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINCANCER_CACHE", str(session_cache))
        return prepare_data(DataConfig(dataset="demo", root=str(tiny_demo), size=SIZE))


def make_module(data: PreparedData, policy: str = "light", **changes: Any) -> LesionDataModule:
    options = {"batch_size": 4, "balance": "none", "balance_fixed": False, "seed": 0, **changes}
    return LesionDataModule(data, augment=AugmentConfig(policy=policy), **options)


def transferred(
    module: LesionDataModule, draw: tuple[int, int] = (0, 0), rank: int = 0, training: bool = True
) -> Tensor:
    """Return the images of one fixed batch as rank `rank` would train on them."""
    module.trainer = SimpleNamespace(training=training, global_rank=rank, world_size=4)  # type: ignore[assignment]
    batch = module.dataset[BatchIndices(*draw, np.arange(3, 9))]
    image: Tensor = module.on_after_batch_transfer(batch, 0)["image"]
    return image


def stored(data: PreparedData, rows: Any) -> Tensor:
    return torch.from_numpy(np.asarray(data.store.images)[rows].transpose(0, 3, 1, 2) / 255).float()


@pytest.mark.parametrize("role", ROLES)
def test_batches_hold_the_rows_of_their_role(data: PreparedData, role: str) -> None:
    module = make_module(data)
    batches = list(getattr(module, f"{role}_dataloader")())
    index = torch.cat([batch["index"] for batch in batches])
    assert sorted(index.tolist()) == np.flatnonzero(data.index["role"] == role).tolist()
    for batch in batches:
        assert batch["image"].dtype == torch.uint8
        rows = batch["index"].numpy()
        assert batch["label"].tolist() == [data.classes.index(name) for name in data.index["diagnosis"].iloc[rows]]
        after = module.on_after_batch_transfer(batch, 0)
        assert after["image"].dtype == torch.float32
        torch.testing.assert_close(after["image"], stored(data, rows))


def test_no_image_is_in_two_roles(data: PreparedData) -> None:
    module = make_module(data)
    loaders = (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    seen = [{int(row) for batch in loader for row in batch["index"]} for loader in loaders]
    assert all(seen)
    assert len(set.union(*seen)) == sum(len(rows) for rows in seen)


def test_images_are_scaled_to_one_where_nothing_is_augmented(data: PreparedData) -> None:
    image = transferred(make_module(data, "none"))
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, stored(data, np.arange(3, 9)))
    assert 0 <= image.min() < 0.5 < image.max() <= 1


def test_black_and_white_are_exact() -> None:
    pixels = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    pixels[1] = 255
    store = Store(Path(), pixels, None, pd.DataFrame())
    dataset = StoreDataset(store, np.array([0, -1]), np.zeros(2, dtype=bool))
    batch = LesionDataModule.on_after_batch_transfer(
        SimpleNamespace(trainer=None),  # type: ignore[arg-type]
        dataset[BatchIndices(0, 0, np.array([1, 0]))],
        0,
    )
    assert batch["image"][0].unique().tolist() == [1.0]
    assert batch["image"][1].unique().tolist() == [0.0]
    assert batch["label"].tolist() == [-1, 0]
    assert "mask" not in batch


def test_masks_come_with_their_images() -> None:
    pixels = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    masks = np.zeros((3, 4, 4), dtype=np.uint8)
    masks[2, 1, 3] = 1
    dataset = StoreDataset(
        Store(Path(), pixels, masks, pd.DataFrame()), np.zeros(3, np.int64), np.array([True, False, True])
    )
    batch = dataset[BatchIndices(0, 0, np.array([2, 1]))]
    assert batch["mask"].shape == (2, 1, 4, 4)
    assert batch["mask"].dtype == torch.float32
    assert batch["mask"].nonzero().tolist() == [[0, 0, 1, 3]]
    assert batch["has_mask"].tolist() == [True, False]


@pytest.mark.parametrize("policy", ["light", "strong", "study1", "study2"])
def test_augmentation_is_a_function_of_seed_rank_epoch_and_batch(data: PreparedData, policy: str) -> None:
    module = make_module(data, policy)
    first = transferred(module, (2, 5), rank=1)
    assert not torch.equal(first, stored(data, np.arange(3, 9)))
    assert 0 <= first.min()
    assert first.max() <= 1
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(transferred(make_module(data, policy), (2, 5), rank=1), first)
    assert torch.equal(torch.get_rng_state(), state)
    for draw, rank in (((3, 5), 1), ((2, 6), 1), ((2, 5), 0), ((5, 2), 1)):
        assert not torch.equal(transferred(module, draw, rank), first)
    assert not torch.equal(transferred(make_module(data, policy, seed=1), (2, 5), rank=1), first)


def test_images_of_a_batch_are_augmented_apart(data: PreparedData) -> None:
    module = make_module(data, "light")
    module.trainer = SimpleNamespace(training=True, global_rank=0, world_size=1)  # type: ignore[assignment]
    image = module.on_after_batch_transfer(module.dataset[BatchIndices(0, 0, np.array([3] * 8))], 0)["image"]
    assert len({one.numpy().tobytes() for one in image}) == 8


def test_evaluation_batches_are_never_augmented(data: PreparedData) -> None:
    image = transferred(make_module(data, "strong"), training=False)
    torch.testing.assert_close(image, stored(data, np.arange(3, 9)))


class Watcher(pl.LightningModule):
    """A model that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[Batch]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["train"].append(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_real_trainer_shows_epochs_in_their_order_and_augments_training_alone(
    data: PreparedData, workers: int
) -> None:
    module, model = make_module(data, "light", workers=workers, seed=6), Watcher()
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, module)
    trainer.test(model, module, verbose=False)
    rows = np.flatnonzero(data.index["role"] == "train")
    labels = data.index["label"].to_numpy()[rows]
    for epoch in range(3):
        batches = [batch for batch in model.seen["train"] if batch["draw"][0] == epoch]
        index = torch.cat([batch["index"] for batch in batches]).numpy()
        assert index.tolist() == rows[epoch_order(labels, "none", 6, epoch)].tolist()
        assert [int(batch["draw"][1]) for batch in batches] == list(range(len(module.train_sampler())))
        assert all(not torch.equal(batch["image"], stored(data, batch["index"].numpy())) for batch in batches)
    for role, times in (("val", 3), ("test", 1)):
        for batch in model.seen[role]:
            torch.testing.assert_close(batch["image"], stored(data, batch["index"].numpy()))
        index = torch.cat([batch["index"] for batch in model.seen[role]])
        assert sorted(index.tolist()) == sorted(np.flatnonzero(data.index["role"] == role).tolist() * times)
