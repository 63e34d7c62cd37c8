"""Whose masks crops are cut by and hand-made features measured in: those asked for, a segmenter's where `data.masks` names its run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd

from skincancer.data.catalog import Dataset
from skincancer.data.store import Progress, open_store
from skincancer.errors import DataError
from skincancer.images.cleaning import Mask
from skincancer.images.crops import EMPTY
from skincancer.paths import cache_folder
from skincancer.schema import DataConfig

if TYPE_CHECKING:
    from skincancer.models.trained import TrainedModel

Made = TypeVar("Made")

RUN = "run:"


def find_segmenter(config: DataConfig, uri: str | None) -> tuple[TrainedModel, pd.DataFrame] | None:
    """Load the segmenter that gives masks, where `data.masks` names one, and the split that it was trained on.

    Raises:
        RunError: the run is unknown, not finished, of another task, or lacks one of `artifacts.SEGMENTER_FILES`.
    """
    if not config.masks.startswith(RUN):
        return None
    from skincancer.artifacts import SPLIT_FILE, fetch_run
    from skincancer.models.trained import load_segmenter

    run = config.masks.removeprefix(RUN)
    segmenter = load_segmenter(run, uri, f"data.masks {config.masks}")
    with tempfile.TemporaryDirectory() as folder:
        (file,) = fetch_run(run, Path(folder), uri, (SPLIT_FILE,))
        return segmenter, pd.read_csv(file, dtype=str, keep_default_na=False)


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


def predicted(
    segmenter: TrainedModel, index: pd.DataFrame, root: Path, use: Callable[[Mask], Made | None],
    progress: Callable[[str], Progress] | None, jobs: int,
) -> list[Made | None]:  # fmt: skip
    """Segment every image, prepared as the segmenter's own were, and return what `use` makes of each mask.

    A mask is bool (H, W), of the image's original size.

    Returns:
        An entry a row of the index; None where the image cannot be read.
    """
    store = open_store(
        index, root, cache_folder(), size=segmenter.size, resize=segmenter.resize, clean=segmenter.clean,
        progress=progress(f"preparing the images at {segmenter.size} px for the segmenter") if progress else None, jobs=jobs,
    )  # fmt: skip
    told = progress("segmenting") if progress else None
    sizes = list(zip(store.table["width"].astype(int), store.table["height"].astype(int), strict=True))
    shown = store.boxes
    made: list[Made | None] = [None] * len(index)
    good = np.flatnonzero(store.table["error"].to_numpy() == "")
    for start in range(0, len(good), segmenter.batch_size):
        rows = good[start : start + segmenter.batch_size]
        lesions = segmenter.answer(store.images[rows]).lesion
        assert lesions is not None
        for row, lesion in zip(rows, lesions, strict=True):
            width, height = sizes[row]
            made[row] = use(segmenter.mask(lesion, width, height, shown[row] if shown else None))
        if told:
            told(start + len(rows), len(good))
    return made
