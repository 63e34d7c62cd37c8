"""The table of hand-made features of a data set: a row an image, built once beside the store.

A table is a folder under the cache, named by its key: `features.csv` (image_id, width and height of the original in px, whose mask
it was, error, mask_empty, and a column a feature) and `recipe.json`. It is built as stores are (`data.store`).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from skincancer.data.cache import ProgressBar, build_once, files_key, in_processes
from skincancer.data.catalog import Dataset
from skincancer.data.index import image_root
from skincancer.data.mask_sources import MaskSource
from skincancer.imaging.crop import EMPTY, FROM_FILES, find_mask
from skincancer.imaging.decode import BadImage, ImageFile, read_image
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
from skincancer.imaging.preprocessing import clean_image, clean_recipe
from skincancer.imaging.types import Mask
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
    index: pd.DataFrame, root: Path, entry: Dataset, masks: MaskSource, clean: Sequence[str] = (),
    progress: ProgressBar | None = None, jobs: int = -1,
) -> FeatureTable:  # fmt: skip
    """Open the feature table of a data set, and measure the features first if the cache lacks the table.

    Args:
        index: of the data set, as in `PreparedData`. The diameter is measured in mm too where `mm_per_px` is known.
        root: the data set's folder.
        entry: of the catalog.
        masks: source of the masks in which features are measured.
        clean: cleaning steps that come first.
        progress: makes progress callbacks by title.
        jobs: worker processes, -1 for one per core.

    Raises:
        DataError: images lack true masks, files are missing, or the disk is full.
    """
    masks, images = masks.resolve(index, entry), image_root(root)
    own = {"format": FORMAT, "working_side": WORKING_SIDE, "families": list(FAMILIES), "masks": masks.name}
    recipe = own | clean_recipe(clean)
    scales = [None if math.isnan(value) else value for value in index["mm_per_px"].tolist()]
    if any(scales):
        recipe["mm_per_px"] = scales
    folder = cache_folder() / "features" / files_key(index, images, recipe, masks.name in FROM_FILES)

    def build(building: Path) -> None:
        lesions = masks.find(index, images, _pack, progress, jobs)
        files = [images / image for image in index["image"]]
        report = progress(f"measuring features of {entry.name}") if progress else None
        chunks = [slice(start, start + CHUNK) for start in range(0, len(files), CHUNK)]
        tasks = [(files[chunk], lesions[chunk], scales[chunk], masks.name, clean) for chunk in chunks]
        rows: list[dict[str, Any]] = []
        for measured in in_processes(_measure_chunk, tasks, jobs):
            rows += measured
            if report:
                report(len(rows), len(files))
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
    mask: Path | Mask | None,
    source: str,
    families: Sequence[str] = tuple(FAMILIES),
    steps: Sequence[str] = (),
    mm_per_px: float | None = None,
) -> dict[str, Any]:
    """Measure one image file: width and height (px), mask source (or `empty`), `mask_empty`, and one number per feature.

    Args:
        file: of the image.
        mask: as the arguments below, of `read_lesion`.
        source: name of the mask source.
        families: of features.
        steps: of cleaning.
        mm_per_px: size of a pixel.

    Raises:
        BadImage: image or mask cannot be used, or a cleaning step failed.
    """
    original = read_image(file)
    lesion, source = read_lesion(original, mask, source, steps, mm_per_px)
    measured = image_features(lesion, families)
    masks = EMPTY if measured[MASK_EMPTY] else source
    return {"width": original.width, "height": original.height, "masks": masks, "error": "", **measured}


def read_lesion(
    original: Image.Image,
    mask: Path | Mask | None,
    source: str,
    steps: Sequence[str] = (),
    mm_per_px: float | None = None,
) -> tuple[Lesion, str]:
    """Return the lesion of an image at the working size, and the name of its mask source.

    Args:
        original: RGB.
        mask: file of the true mask, or the segmenter's mask of the original, bool (H, W).
        source: truth, otsu, auto, or the name of a segmenter.
        steps: cleaning steps that come first. Pixels that `frame` cuts away are not measured.
        mm_per_px: size of a pixel of the image, None if unknown.

    Raises:
        BadImage: the mask cannot be used, or a cleaning step failed.
    """
    picture, shown = clean_image(original, steps)
    lesion, source = find_mask(original, picture, shown, mask, source)
    return bring_to_working_size(picture, lesion, mm_per_px), source


def _measure_chunk(
    files: list[Path],
    lesions: list[Path | bytes | None],
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
    for image, lesion, scale in zip(files, lesions, scales, strict=True):
        mask = _unpack(lesion) if isinstance(lesion, bytes) else lesion
        try:
            rows.append(measure(image, mask, source, steps=steps, mm_per_px=scale))
        except BadImage as error:
            rows.append({**unread, "error": f"{image} {error}"})
    return rows


def _pack(mask: Mask) -> bytes:
    """Encode a mask as PNG: the masks of ten thousand photographs would fill the memory."""
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "png")
    return stream.getvalue()


def _unpack(packed: bytes) -> npt.NDArray[np.bool_]:
    with Image.open(io.BytesIO(packed)) as image:
        return np.asarray(image.convert("L")) > 0
