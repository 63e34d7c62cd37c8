"""Mask sources: lesion masks for crops and for hand-crafted features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import pandas as pd

from skincancer.data.cache import ProgressBar
from skincancer.data.catalog import Dataset
from skincancer.errors import DataError
from skincancer.imaging.crop import EMPTY
from skincancer.imaging.types import Mask
from skincancer.schema.data import DataConfig

Made = TypeVar("Made")


class MaskSource(Protocol):
    """Source of one lesion mask per image.

    Attributes:
        name: truth, otsu, auto, or `run:` with the digest of a segmenter. Keys of stores and feature tables contain the name.
    """

    name: str

    def resolve(self, index: pd.DataFrame, entry: Dataset) -> MaskSource:
        """Return the mask source that all images of an index need.

        Raises:
            DataError: images have no mask file that the source reads.
        """

    def find(
        self, index: pd.DataFrame, root: Path, use: Callable[[Mask], Made | None], progress: ProgressBar | None, jobs: int
    ) -> Sequence[Path | Made | None]:  # fmt: skip
        """Return the input of preprocessing for the mask of each image.

        The input is the file of the true mask, or the result of `use` on a predicted mask, bool (H, W) of the original size. None
        means that preprocessing computes the mask from the image, or that the prediction failed.
        """

    def count_overlap(self, index: pd.DataFrame, entry: Dataset) -> int:
        """Count the test images that overlap with the images of a segmenter."""


class OtsuMasks:
    """Masks by Otsu's threshold, computed from each cleaned image."""

    name = "otsu"

    def resolve(self, index: pd.DataFrame, entry: Dataset) -> MaskSource:
        """Return this source."""
        return self

    def find(
        self, index: pd.DataFrame, root: Path, use: Callable[[Mask], Made | None], progress: ProgressBar | None, jobs: int
    ) -> Sequence[Path | Made | None]:  # fmt: skip
        """Return None for every image."""
        return [None] * len(index)

    def count_overlap(self, index: pd.DataFrame, entry: Dataset) -> int:
        """Return 0."""
        return 0


class TruthOrOtsu(OtsuMasks):
    """True masks, otherwise masks by Otsu's threshold."""

    name = "auto"

    def resolve(self, index: pd.DataFrame, entry: Dataset) -> MaskSource:
        """Return the source of true masks if every image has one."""
        return self if index["mask"].isna().any() else TruthMasks()

    def find(
        self, index: pd.DataFrame, root: Path, use: Callable[[Mask], Made | None], progress: ProgressBar | None, jobs: int
    ) -> Sequence[Path | Made | None]:  # fmt: skip
        """Return the file of each true mask."""
        return mask_files(index, root)


class TruthMasks(TruthOrOtsu):
    """True masks only."""

    name = "truth"

    def resolve(self, index: pd.DataFrame, entry: Dataset) -> MaskSource:
        """Return this source.

        Raises:
            DataError: images have no true mask.
        """
        missing = index.loc[index["mask"].isna(), "image_id"]
        if len(missing):
            raise DataError(
                f"data.masks is truth, but {len(missing)} of {len(index)} images of {entry.name} have no mask, such as "
                f"{', '.join(missing.head(3))}. Use --data.masks auto (Otsu's threshold for these), otsu, or run:RUN_ID of a segmenter."
            )
        return self


BY_NAME: dict[str, MaskSource] = {source.name: source for source in (TruthMasks(), OtsuMasks(), TruthOrOtsu())}


def mask_files(index: pd.DataFrame, root: Path) -> list[Path | None]:
    """Return the file of each true mask, None for images without one."""
    return [None if mask is None else root / mask for mask in index["mask"]]


def used_mask_source(named: str, sources: Iterable[str]) -> str:
    """Return the mask source that a run used.

    Args:
        named: `data.masks` of the run. `auto` becomes truth or otsu if all images used the same mask source.
        sources: column `masks` of the run's crops.csv.
    """
    used = set(sources) - {EMPTY}
    return used.pop() if named == "auto" and len(used) == 1 else named


def describe_masks(table: pd.DataFrame, config: DataConfig, empty: str) -> str:
    """Count the images of each mask source, as text.

    Args:
        table: table of a store with crops or of features, with the columns masks and error.
        config: data section. `masks` is the name of the segmenter.
        empty: consequence of an empty mask.
    """
    names = {"truth": "true masks", "otsu": "masks by Otsu's threshold", EMPTY: f"empty masks ({empty})"}
    counts = table.loc[table["error"] == "", "masks"].value_counts()
    return ", ".join(f"{count} by {names.get(str(name), config.masks)}" for name, count in counts.items())


def describe_crops(table: pd.DataFrame, config: DataConfig) -> str:
    """Count the crops by mask source, as text with the margin."""
    return f"{describe_masks(table, config, 'left whole')}; margin {config.crop_margin:.0%}"
