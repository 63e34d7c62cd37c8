"""Data module: batches from the store for each rank, and augmentation on the device.

The order of an epoch is a function of (seed, epoch). Ranks get disjoint shares, also in evaluation, without padding.
Loader processes use no random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import disk_usage
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from skincancer.data.balance import distribute_batches, epoch_order
from skincancer.data.prepare import ROLES, PreparedData
from skincancer.data.seeding import AUGMENT_STREAM, step_seed
from skincancer.data.store import Store
from skincancer.errors import ConfigError
from skincancer.imaging.augmentation import Augment
from skincancer.schema.data import AugmentConfig, DataConfig
from skincancer.system.files import show_size
from skincancer.system.hardware import most_processes

# Loader processes pass their batches to the training process through this folder.
SHARED_MEMORY = Path("/dev/shm")


class BatchIndices(NamedTuple):
    """Epoch, number in the epoch, and index rows of one batch."""

    epoch: int
    number: int
    rows: npt.NDArray[np.int64]


class StoreDataset(Dataset[dict[str, Any]]):
    """Whole batches from the store, by index rows.

    A batch contains `image` uint8 (B, 3, H, W) (a channels_last view), `label` int64 (B,), `index` int64 (B,), and `draw` (epoch,
    number), the seed of all random steps of the batch. With masks, also `mask` float32 (B, 1, H, W) and `has_mask` bool (B,).
    """

    def __init__(self, store: Store, label: npt.NDArray[np.int64], has_mask: npt.NDArray[np.bool_]) -> None:
        self.store, self.label, self.has_mask = store, label, has_mask

    def __getitem__(self, draw: BatchIndices) -> dict[str, Any]:
        """Gather one batch."""
        rows = draw.rows
        batch: dict[str, Any] = {
            "image": torch.from_numpy(self.store.images[rows]).permute(0, 3, 1, 2),
            "label": torch.from_numpy(self.label[rows]),
            "index": torch.from_numpy(rows),
            "draw": (draw.epoch, draw.number),
        }
        if self.store.masks is not None:
            batch["mask"] = torch.from_numpy(self.store.masks[rows])[:, None].float()
            batch["has_mask"] = torch.from_numpy(self.has_mask[rows])
        return batch


def check_shares(data: PreparedData, batch_size: int, balance: str, ranks: int) -> int:
    """Check that every subset has images for each rank in every step.

    Returns:
        Number of images of the smallest training batch of any rank.

    Raises:
        ConfigError: A subset is too small; with its role, its number of images and the number of ranks.
    """
    smallest = batch_size
    for role in ROLES:
        labels = data.rows(role)["label"].to_numpy(np.int64)
        images = len(epoch_order(labels, balance, seed=0, epoch=0)) if role == "train" else len(labels)
        try:
            # The last rank has the fewest images, and its last batch is the smallest.
            batches = distribute_batches(np.arange(images), batch_size, rank=ranks - 1, world_size=ranks)
        except ConfigError as error:
            raise ConfigError(f"the {role} set: {error}") from error
        if role == "train":
            smallest = len(batches[-1])
    return smallest


def check_workers(workers: int) -> None:
    """Check that this machine can run the loader processes.

    Raises:
        ConfigError: there are far more processes than CPU cores.
    """
    if workers > (most := most_processes()):
        raise ConfigError(
            f"data.workers is {workers}; this machine runs at most {most} loader processes. Use fewer, or 0 for none."
        )


def check_shared_memory(data: PreparedData, config: DataConfig, ranks: int) -> None:
    """Check that the batches of the loader processes fit into shared memory.

    A process that finds the shared memory full loses its batch, for which training would wait without end.

    Args:
        data: Result of `prepare_data`.
        config: Batch size and number of loader processes.
        ranks: Number of training processes on this machine.

    Raises:
        ConfigError: Less shared memory is free.
    """
    if not config.workers or not SHARED_MEMORY.is_dir():
        return
    height, width = data.store.images.shape[1:3]
    # The image is uint8 in three channels, and the mask float32.
    image = height * width * (3 if data.store.masks is None else 7)
    # Each process prepares two batches ahead, and training holds one.
    batches = ranks * (2 * config.workers + 1)
    needed, free = batches * min(config.batch_size, len(data.index)) * image, disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise ConfigError(
            f"data.workers is {config.workers}; their batches need {show_size(needed)} of shared memory, and {SHARED_MEMORY} has "
            f"{show_size(free)} free. Use fewer --data.workers (0 needs none) or a smaller --data.batch_size, or enlarge "
            f"{SHARED_MEMORY} (docker run --shm-size 8g)."
        )


class TrainSampler(Sampler[BatchIndices]):
    """Balanced share of this rank in an epoch.

    Lightning calls `set_epoch` before each epoch, also after a resume.
    """

    def __init__(
        self, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], *, balance: str, fixed: bool,
        batch_size: int, seed: int, rank: int, world_size: int,
    ) -> None:  # fmt: skip
        self.rows, self.labels = rows, labels
        self.balance, self.fixed, self.batch_size, self.seed = balance, fixed, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        # The number of images over all ranks is the same in every epoch.
        self.images = len(self._order(0))
        self.batches = len(self._deal(0))

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        return epoch_order(self.labels, self.balance, self.seed, epoch, self.fixed)

    def _deal(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        return distribute_batches(self._order(epoch), self.batch_size, self.rank, self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[BatchIndices]:
        for number, positions in enumerate(self._deal(self.epoch)):
            yield BatchIndices(self.epoch, number, self.rows[positions])


class EvaluationSampler(Sampler[BatchIndices]):
    """Share of this rank in a subset, in order.

    Every image is used once over all ranks, and every rank has the same number of batches.
    """

    def __init__(self, rows: npt.NDArray[np.int64], batch_size: int, rank: int, world_size: int) -> None:
        self.batches = distribute_batches(rows, batch_size, rank, world_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[BatchIndices]:
        for number, rows in enumerate(self.batches):
            yield BatchIndices(0, number, rows)


class LesionDataModule(pl.LightningDataModule):
    """Loaders of prepared data, and random augmentation of training batches on the device.

    Args:
        data: Result of `prepare_data`.
        batch_size: Images per step and device.
        balance: Key of `BALANCES`, for the training set.
        balance_fixed: Undersampling uses the same images in every epoch.
        augment: Resolved augmentation.
        seed: Seed of order, balance and augmentation.
        workers: Number of loader processes.
    """

    def __init__(
        self, data: PreparedData, *, batch_size: int, balance: str, balance_fixed: bool, augment: AugmentConfig, seed: int,
        workers: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.data, self.batch_size, self.seed, self.workers = data, batch_size, seed, workers
        self.balance, self.balance_fixed = balance, balance_fixed
        self.augment = Augment(augment)
        self.labels = data.index["label"].to_numpy(np.int64)
        self.dataset = StoreDataset(data.store, self.labels, data.index["mask"].notna().to_numpy())

    def _rows(self, role: str) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.data.index["role"].to_numpy() == role).astype(np.int64)

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(self, sampler: Sampler[BatchIndices]) -> DataLoader[Any]:
        return DataLoader(
            self.dataset, sampler=sampler, batch_size=None, num_workers=self.workers,
            persistent_workers=self.workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def train_sampler(self) -> TrainSampler:
        """Return the sampler of the training set on this rank."""
        rows = self._rows("train")
        rank, world_size = self._ranks()
        return TrainSampler(
            rows, self.labels[rows], balance=self.balance, fixed=self.balance_fixed, batch_size=self.batch_size,
            seed=self.seed, rank=rank, world_size=world_size,
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the training set."""
        return self._loader(self.train_sampler())

    def _evaluation_loader(self, role: str) -> DataLoader[Any]:
        return self._loader(EvaluationSampler(self._rows(role), self.batch_size, *self._ranks()))

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the validation set."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the test set."""
        return self._evaluation_loader("test")

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Convert images to float32 in [0, 1], and augment them in training.

        Augmentation is seeded by (seed, rank, epoch, batch): it differs between ranks and is repeated after a resume.
        """
        batch["image"] = batch["image"].float().div_(255)
        if self.trainer is not None and self.trainer.training:
            epoch, number = batch["draw"]
            seed = step_seed(self.seed, AUGMENT_STREAM, self.trainer.global_rank, epoch, number)
            batch["image"], mask = self.augment(batch["image"], batch.get("mask"), seed)
            if mask is not None:
                batch["mask"] = mask
        return batch
