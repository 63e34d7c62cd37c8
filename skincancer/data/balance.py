"""Balance of the classes in training: which training images an epoch shows, in which order, and to which rank.

Acts on the training part alone, after the split; validation and test keep their natural prevalence. Every function
here is a pure function of its arguments, so that an epoch can be repeated and every rank works out the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from skincancer.errors import ConfigError, DataError, nearest

Positions = npt.NDArray[np.int64]


def take_all(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Positions:
    """Every image once."""
    return np.arange(len(labels), dtype=np.int64)


def undersample(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Positions:
    """Every class down to the size of the smallest class present, drawn without replacement."""
    classes = _by_class(labels, "undersample")
    size = min(len(members) for members in classes)
    return np.concatenate([rng.choice(members, size, replace=False) for members in classes])


def oversample(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> Positions:
    """Every class up to the size of the largest: whole copies, and a remainder drawn without replacement."""
    classes = _by_class(labels, "oversample")
    size = max(len(members) for members in classes)
    taken = []
    for members in classes:
        copies, rest = divmod(size, len(members))
        taken += [np.tile(members, copies), rng.choice(members, rest, replace=False)]
    return np.concatenate(taken)


# class_weights acts in the loss (see the function of that name); its epochs show every image once.
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
            f"data.balance is {balance}, but {unlabelled} training images have no label; use none, or label them"
        )
    return [np.flatnonzero(labels == label).astype(np.int64) for label in np.unique(labels)]


def epoch_order(labels: npt.NDArray[np.int64], balance: str, seed: int, epoch: int, fixed: bool = False) -> Positions:
    """Return the order in which an epoch shows the training images.

    Args:
        labels: (N,) labels of the training images, −1 where absent.
        balance: A name in `BALANCES`.
        seed: The run's seed, at least 0.
        epoch: The epoch, from 0.
        fixed: Keep the images chosen for epoch 0 in every epoch; the order still changes.

    Returns:
        int64 positions into `labels`, shuffled; a function of the arguments alone.

    Raises:
        ConfigError: If the balance is unknown.
        DataError: If there are no training images, or unlabelled ones where classes are sampled.
    """
    if balance not in BALANCES:
        raise ConfigError(
            f"data.balance is {balance!r}; choose one of {', '.join(BALANCES)}.{nearest(balance, BALANCES)}"
        )
    if len(labels) == 0:
        raise DataError("there are no training images")
    choosing, _ = np.random.SeedSequence([seed, 0 if fixed else epoch]).spawn(2)
    _, shuffling = np.random.SeedSequence([seed, epoch]).spawn(2)
    taken = BALANCES[balance](np.asarray(labels), np.random.default_rng(choosing))
    return np.random.default_rng(shuffling).permutation(taken)


def deal(order: Positions, batch_size: int, rank: int, world_size: int) -> list[Positions]:
    """Deal an epoch's order out in disjoint shares to ranks, and cut this rank's share into batches.

    Every rank gets the same number of batches and every position is used exactly once, so nothing is padded or
    dropped. The batches of a rank differ by at most one in size: there is no small last batch to upset the batch
    statistics.

    Args:
        order: (M,) positions, as from `epoch_order`.
        batch_size: The most that a batch of one rank may hold.
        rank: This rank, from 0.
        world_size: Number of ranks.

    Raises:
        ConfigError: If some rank would get an empty batch.
    """
    if batch_size < 1 or not 0 <= rank < world_size:
        raise ConfigError(f"cannot deal batches of {batch_size} to rank {rank} of {world_size}")
    largest = -(-len(order) // world_size)
    batches = -(-largest // batch_size)
    # Judged by the smallest share, not by this rank's, so that all ranks stop together.
    if batches == 0 or len(order) // world_size < batches:
        raise ConfigError(
            f"{len(order)} images in batches of {batch_size} do not give each of {world_size} devices "
            "something in every step; use a larger data.batch_size or fewer trainer.devices"
        )
    return np.array_split(order[rank::world_size], batches)


def class_weights(labels: npt.NDArray[np.int64], n_classes: int, power: float = 1.0) -> npt.NDArray[np.float64]:
    """Weights of the classes in the loss: n_c ** −power, scaled so that their mean over the training images is 1.

    Args:
        labels: (N,) labels of the training images in [0, n_classes), −1 where absent (not counted).
        n_classes: Number of classes.
        power: 1 weighs classes inversely to their frequency, 0 all alike.

    Returns:
        (n_classes,) float64, positive.

    Raises:
        DataError: If a class has no training image.
    """
    labels = np.asarray(labels)
    counts = np.bincount(labels[labels >= 0], minlength=n_classes).astype(np.float64)
    if (counts == 0).any():
        empty = ", ".join(str(label) for label in np.flatnonzero(counts == 0))
        raise DataError(f"class weights need a training image of every class; there is none with label {empty}")
    weights: npt.NDArray[np.float64] = counts**-power
    weights *= counts.sum() / (counts * weights).sum()
    return weights
