"""The table of hand-made features of a data set: a row an image, built once beside the store.

A table is a folder under the cache, named by its key: `features.csv` (image_id, width and height of the original in px, whose mask
it was, error, mask_empty, and a column a feature) and `recipe.json`. It is built as stores are (`data.store`).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from skincancer.data.cache import Progress, build_once, files_key, in_processes
from skincancer.data.catalog import Dataset
from skincancer.data.index import image_root
from skincancer.data.mask_sources import RUN, mask_source
from skincancer.data.store import file_pairs
from skincancer.imaging.cleaning import steps
from skincancer.imaging.crop import EMPTY, find_mask
from skincancer.imaging.decode import BadImage, ImageFile, clean_picture, read_image
from skincancer.imaging.features.families import (
    FAMILIES,
    MASK_EMPTY,
    WORKING_SIDE,
    Lesion,
    bring_to_working_size,
    feature_names,
    image_features,
    learned_names,
)
from skincancer.imaging.types import Mask
from skincancer.schema import DataConfig
from skincancer.system.paths import cache_folder

FORMAT = 4  # raised whenever a feature gives other numbers
TINY, WHOLE = 0.1, 1.2  # diameters by the picture's longer side beyond which a mask is hardly a lesion's
CHUNK = 16  # images per task of a worker
DIGITS = "%.9g"  # which float32 comes back from as it was
FEATURES_FILE = "features.csv"


@dataclass(frozen=True)
class FeatureTable:
    """An opened table: its folder, and a row an image in the order of the index."""

    folder: Path
    table: pd.DataFrame

    @property
    def file(self) -> Path:
        """Return where the table lies, to be used elsewhere."""
        return self.folder / FEATURES_FILE

    @property
    def bad(self) -> pd.DataFrame:
        """Images that could not be measured, as they or their masks cannot be used: image_id, error."""
        return self.table.loc[self.table["error"] != "", ["image_id", "error"]]

    def describe_empty(self, role: pd.Series) -> str:
        """Say of how many images with a role nothing could be measured, as their masks are empty, and what becomes of them; "" of none.

        Args:
            role: of each image; "" of those that take no part.
        """
        counts = role[(self.table["masks"] == EMPTY).to_numpy() & (role != "").to_numpy()].value_counts()
        if counts.empty:
            return ""
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        return (
            f"{counts.sum()} images ({shown}) have a mask without any lesion, in which nothing can be measured. They are kept: the "
            f"classifier knows them by {MASK_EMPTY}, and takes the medians of the training images for all else."
        )

    def describe_unlikely(self) -> str:
        """Say how many masks are hardly those of a lesion: tiny, or from corner to corner of the picture; "" of none."""
        extent = self.table["abcd_diameter_by_longer_side"]
        tiny, whole = self.table["image_id"][extent < TINY], self.table["image_id"][extent > WHOLE]
        told = [
            f"{len(ids)} {what} (such as {ids.iloc[0]})"
            for ids, what in (
                (tiny, f"are narrower than {TINY:.0%} of the picture's longer side"),
                (whole, "reach nearly from corner to corner"),
            )
            if len(ids)
        ]
        if not told:
            return ""
        return f"of the lesions in the masks, {', and '.join(told)}: their features are of whatever is there. --show structures draws some."

    def columns(self, families: Sequence[str]) -> pd.DataFrame:
        """Return what is learned from of some families, as `learned_names`: float32, NaN where it cannot be measured."""
        return self.table[learned_names(families)]


def open_features(
    index: pd.DataFrame, root: Path, entry: Dataset, config: DataConfig, uri: str | None = None,
    progress: Callable[[str], Progress] | None = None, jobs: int = -1,
) -> FeatureTable:  # fmt: skip
    """Open the table of features of a data set's images, measuring them first where that has not been done.

    Args:
        index: of the data set, as `PreparedData` has it; where its `mm_per_px` is known, the diameter is measured in mm too.
        root: the data set's folder.
        entry: of the catalog.
        config: its `masks` say whose masks they are measured in: those of `truth`, `otsu`, `auto`, or of a segmenter.
        uri: tracking store of that segmenter.
        progress: makes progress callbacks by title.
        jobs: worker processes; -1 for one a core.

    Raises:
        DataError: true masks are asked for where there are none, files are gone, or the disk is full.
        RunError: `data.masks` names a run that is no finished segmenter's.
    """
    from skincancer.inference.model import find_segmenter, predicted

    found = find_segmenter(config, uri)
    segmenter = found[0] if found else None
    source, images = mask_source(config, index, segmenter, entry), image_root(root)
    recipe = {"format": FORMAT, "working_side": WORKING_SIDE, "families": list(FAMILIES), "masks": source}
    if config.clean:
        recipe |= {"clean": config.clean, "clean_format": steps.FORMAT}
    scales = [None if math.isnan(value) else value for value in index["mm_per_px"].tolist()]
    if any(scales):
        recipe["mm_per_px"] = scales
    reads_masks = source in ("truth", "auto")
    folder = cache_folder() / "features" / files_key(index, images, recipe, reads_masks)

    def build(building: Path) -> None:
        given: list[bytes | None] = [None] * len(index)
        if segmenter:
            given = predicted(segmenter, index, images, _pack, progress, jobs)
        pairs = file_pairs(index, images, reads_masks)
        told = progress(f"measuring features of {entry.name}") if progress else None
        chunks = [slice(start, start + CHUNK) for start in range(0, len(pairs), CHUNK)]
        rows: list[dict[str, Any]] = []
        for chunk in in_processes(
            _measure_chunk, [(pairs[some], given[some], scales[some], source, config.clean) for some in chunks], jobs
        ):
            rows += chunk
            if told:
                told(len(rows), len(pairs))
        table = pd.DataFrame(rows)
        table.insert(0, "image_id", index["image_id"].to_numpy())
        names = [MASK_EMPTY, *feature_names()]
        table[names] = table[names].astype(np.float32)
        table.to_csv(building / FEATURES_FILE, index=False, float_format=DIGITS)
        (building / "recipe.json").write_text(json.dumps(recipe, indent=1))

    build_once(folder, images, build, f"the features of {len(index)} images take {len(index) * 2.5e-6:.2f} GB")
    texts = {"image_id": str, "masks": str, "error": str}
    numbers = dict.fromkeys([MASK_EMPTY, *feature_names()], np.float32)
    table = pd.read_csv(
        folder / FEATURES_FILE, dtype={**texts, **numbers}, keep_default_na=False, na_values=dict.fromkeys(numbers, "")
    )
    return FeatureTable(folder, table)


def measure(
    file: ImageFile,
    mask: Path | None,
    source: str,
    given: Mask | None = None,
    families: Sequence[str] = tuple(FAMILIES),
    steps: Sequence[str] = (),
    mm_per_px: float | None = None,
) -> dict[str, Any]:
    """Measure one image file: width and height (px), whose mask it was (`empty` of an empty one), `mask_empty`, and a number a feature.

    Args:
        file: of the image.
        mask: as all that follows but for `families`: of `read_lesion`.
        source: whose mask.
        given: mask of a segmenter.
        families: of features.
        steps: of cleaning.
        mm_per_px: the size of a px.

    Raises:
        BadImage: image or mask cannot be used, or a step of cleaning failed.
    """
    original = read_image(file)
    lesion, source = read_lesion(original, mask, source, given, steps, mm_per_px)
    measured = image_features(lesion, families)
    masks = EMPTY if measured[MASK_EMPTY] else source
    return {"width": original.width, "height": original.height, "masks": masks, "error": "", **measured}


def read_lesion(
    original: Image.Image,
    mask: Path | None,
    source: str,
    given: Mask | None = None,
    steps: Sequence[str] = (),
    mm_per_px: float | None = None,
) -> tuple[Lesion, str]:
    """Return the lesion of an image at the working size, and whose mask it is.

    Args:
        original: RGB.
        mask: file of its true mask, where there is one.
        source: truth, otsu, auto, or the segmenter's name whose mask is `given`.
        given: bool (H, W), of a segmenter.
        steps: of `cleaning.STEPS`, done first; what `frame` cuts away is not measured.
        mm_per_px: the size of a px of the image, where it is known.

    Raises:
        BadImage: the mask cannot be used, or a step of cleaning failed.
    """
    picture, shown = clean_picture(original, steps)
    if given is None and source.startswith(RUN):
        raise BadImage("cannot be cleaned as the segmenter's images were, so it has no mask")
    if given is None:
        found, source = find_mask(original, picture, shown, mask, source)
    else:
        left, top, right, bottom = shown
        found = given[top:bottom, left:right]
    return bring_to_working_size(picture, found, mm_per_px), source


def _measure_chunk(
    pairs: list[tuple[Path, Path | None]],
    given: list[bytes | None],
    scales: list[float | None],
    source: str,
    steps: Sequence[str],
) -> list[dict[str, Any]]:
    rows = []
    unread = {
        "width": 0,
        "height": 0,
        "masks": "",
        "error": "",
        **dict.fromkeys([MASK_EMPTY, *feature_names()], math.nan),
    }
    for (image, mask), packed, scale in zip(pairs, given, scales, strict=True):
        lesion = None if packed is None else _unpack(packed)
        try:
            rows.append(measure(image, mask, source, lesion, steps=steps, mm_per_px=scale))
        except BadImage as error:
            rows.append({**unread, "error": f"{image} {error}"})
    return rows


def _pack(mask: Mask) -> bytes:
    """Return a mask as a small PNG: those of ten thousand photographs would fill the memory."""
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "png")
    return stream.getvalue()


def _unpack(packed: bytes) -> npt.NDArray[np.bool_]:
    with Image.open(io.BytesIO(packed)) as image:
        return np.asarray(image.convert("L")) > 0
