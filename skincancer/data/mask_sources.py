"""Whose masks crops are cut by and hand-made features measured in: those asked for, a segmenter's where `data.masks` names its run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import pandas as pd

from skincancer.data.catalog import Dataset
from skincancer.errors import DataError
from skincancer.imaging.crop import EMPTY
from skincancer.schema import DataConfig

if TYPE_CHECKING:
    from skincancer.inference.model import TrainedModel


Made = TypeVar("Made")

RUN = "run:"


def own_masks(named: str, sources: Iterable[str]) -> str:
    """Return whose masks cut a run's images: as its config names them, or, where that left it to the data, the one kind that did.

    Args:
        named: its `data.masks`.
        sources: the column `masks` of its crops.csv.
    """
    used = set(sources) - {EMPTY}
    return used.pop() if named == "auto" and len(used) == 1 else named


def mask_source(config: DataConfig, index: pd.DataFrame, segmenter: TrainedModel | None, entry: Dataset) -> str:
    """Return whose masks are taken: truth, otsu, auto (truth, and otsu where there is none), or the segmenter's digest after `run:`.

    Raises:
        DataError: true masks are asked for, and images have none.
    """
    missing = index.loc[index["mask"].isna(), "image_id"]
    if config.masks == "truth" and len(missing):
        raise DataError(
            f"data.masks is truth, but {len(missing)} of {len(index)} images of {entry.name} have no mask, such as "
            f"{', '.join(missing.head(3))}. Use --data.masks auto (Otsu's threshold for those), otsu, or run:RUN_ID of a segmenter."
        )
    masks = RUN + segmenter.digest if segmenter else config.masks
    return "truth" if masks == "auto" and not len(missing) else masks


def describe_masks(table: pd.DataFrame, config: DataConfig, empty: str) -> str:
    """Say whose masks were taken for how many images.

    Args:
        table: of a store with crops, or of features: columns masks and error.
        config: whose `masks` it was built for.
        empty: what became of images whose masks are empty.
    """
    names = {"truth": "true masks", "otsu": "masks by Otsu's threshold", EMPTY: f"empty masks ({empty})"}
    counts = table.loc[table["error"] == "", "masks"].value_counts()
    return ", ".join(f"{count} by {names.get(str(name), config.masks)}" for name, count in counts.items())


def describe_crops(table: pd.DataFrame, config: DataConfig) -> str:
    """Say by whose masks the images of a store with crops were cut.

    Args:
        table: the store's.
        config: whose `masks` the store was built for.
    """
    return f"{describe_masks(table, config, 'left whole')}; margin {config.crop_margin:.0%}"
