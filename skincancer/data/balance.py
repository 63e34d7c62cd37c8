"""Class balancing, order of the training images, and their distribution over ranks.

Only the training set is balanced, after the split; validation and test set keep their natural prevalence. All functions
are pure, so that an epoch can be repeated and every rank computes the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from skincancer.errors import ConfigError, DataError, nearest

Positions = npt.NDArray[np.int64]


def take_all(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Positions:
    """Take every image once."""
    return np.arange(len(labels), dtype=np.int64)


def undersample(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Positions:
    """Sample every class to the size of the smallest class, without replacement."""
    classes = _by_class(labels, "undersample")
    size = min(len(members) for members in classes)
    return np.concatenate([rng.choice(members, size, replace=False) for members in classes])


def oversample(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Positions:
    """Repeat every class to the size of the largest class.

    The images of a class are copied as a whole; the remainder is sampled without replacement.
    """
    classes = _by_class(labels, "oversample")
    size = max(len(members) for members in classes)
    taken = []
    for members in classes:
        copies, rest = divmod(size, len(members))
        taken += [np.tile(members, copies), rng.choice(members, rest, replace=False)]
    return np.concatenate(taken)


# class_weights acts in the loss (see the function of that name), so its epochs contain every image once.
BALANCES: dict[str, Callable[[npt.NDArray[np.int64], np.random.Generator], Positions]] = {
    "none": take_all,
    "undersample": undersample,
    "oversample": oversample,
    "class_weights": take_all,
}


def _by_class(labels: npt.NDArray[np.int64], balance: str) -> list[Positions]:
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise DataError(
            f"data.balance is {balance}, but {unlabelled} training images have no label; use data.balance none, or label them"
        )
    return [np.flatnonzero(labels == label).astype(np.int64) for label in np.unique(labels)]


def epoch_order(labels: npt.NDArray[np.int64], balance: str, seed: int, epoch: int, fixed: bool = False) -> Positions:
    """Return the order of the training images in one epoch.

    Args:
        labels: (N,) labels of the training images, −1 for unlabelled images.
        balance: Key of `BALANCES`.
        seed: Seed of the run, at least 0.
        epoch: Epoch, from 0.
        fixed: Use the images sampled for epoch 0 in every epoch; the order still changes.

    Returns:
        int64 positions in `labels`, shuffled.

    Raises:
        ConfigError: The balance is unknown.
        DataError: There are no training images, or unlabelled ones although classes are sampled.
    """
    if balance not in BALANCES:
        raise ConfigError(
            f"data.balance is {balance!r}; expected one of {', '.join(BALANCES)}.{nearest(balance, BALANCES)}"
        )
    if len(labels) == 0:
        raise DataError("there are no training images")
    choosing, _ = np.random.SeedSequence([seed, 0 if fixed else epoch]).spawn(2)
    _, shuffling = np.random.SeedSequence([seed, epoch]).spawn(2)
    taken = BALANCES[balance](np.asarray(labels), np.random.default_rng(choosing))
    return np.random.default_rng(shuffling).permutation(taken)


def distribute_batches(order: Positions, batch_size: int, rank: int, world_size: int) -> list[Positions]:
    """Return the batches of one rank in an epoch.

    Every rank gets the same number of batches and every position is used exactly once, without padding or dropping. The
    batch sizes of a rank differ by at most one, because a small last batch would distort the batch statistics.

    Args:
        order: (M,) positions from `epoch_order`.
        batch_size: Maximum batch size of one rank.
        rank: This rank, from 0.
        world_size: Number of ranks.

    Raises:
        ConfigError: A rank would get an empty batch.
    """
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"cannot distribute batches of {batch_size} to rank {rank} of {world_size}")
    largest = -(-len(order) // world_size)
    batches = -(-largest // batch_size)
    # The smallest share decides and not the share of this rank, so that all ranks raise the same error.
    if batches == 0 or len(order) // world_size < batches:
        raise ConfigError(
            f"{len(order)} images in batches of {batch_size} are too few for {world_size} devices in every step; "
            "use a larger data.batch_size or fewer trainer.devices"
        )
    return np.array_split(order[rank::world_size], batches)


def class_weights(labels: npt.NDArray[np.int64], n_classes: int, power: float = 1.0) -> npt.NDArray[np.float64]:
    """Compute the class weights of the loss: n_c ** −power, scaled.

    The mean weight over the training images is 1.

    Args:
        labels: (N,) labels of the training images in [0, n_classes), −1 for unlabelled images (not counted).
        n_classes: Number of classes.
        power: 1 is the inverse frequency, 0 gives equal weights.

    Returns:
        (n_classes,) float64, positive.

    Raises:
        DataError: A class has no training image.
    """
    labels = np.asarray(labels)
    counts = np.bincount(labels[labels >= 0], minlength=n_classes).astype(np.float64)
    if (counts == 0).any():
        empty = ", ".join(str(label) for label in np.flatnonzero(counts == 0))
        raise DataError(f"class weights need a training image of every class; no training image has the label {empty}")
    weights: npt.NDArray[np.float64] = counts**-power
    weights *= counts.sum() / (counts * weights).sum()
    return weights
