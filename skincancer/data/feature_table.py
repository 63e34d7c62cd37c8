"""Table of hand-crafted features: one row per image of a data set.

A table is a folder of the cache, named by its key: `features.csv` (image_id, width and height of the original in px, masks with the mask
source, error, mask_empty, and one column per feature) and `recipe.json`.
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

FORMAT = 4  # Increase whenever the values of a feature change.
TINY, WHOLE = 0.1, 1.2  # Range of plausible lesion diameters, divided by the longer side of the image.
CHUNK = 16  # Images per task of a worker process.
DIGITS = "%.9g"  # Enough digits to read back the same float32.
FEATURES_FILE = "features.csv"


@dataclass(frozen=True)
class FeatureTable:
    """Open feature table with one row per image of an index."""

    folder: Path
    table: pd.DataFrame

    @property
    def file(self) -> Path:
        """Path of features.csv."""
        return self.folder / FEATURES_FILE

    @property
    def bad(self) -> pd.DataFrame:
        """Images with an unusable image or mask: image_id, error."""
        return self.table.loc[self.table["error"] != "", ["image_id", "error"]]

    def describe_empty(self, role: pd.Series) -> str:
        """Count the images with an empty mask, as text, "" if none.

        Args:
            role: role of each image. Images with the role "" do not count.
        """
        counts = role[(self.table["masks"] == EMPTY).to_numpy() & (role != "").to_numpy()].value_counts()
        if counts.empty:
            return ""
        by_role = ", ".join(f"{count} {name}" for name, count in counts.items())
        return (
            f"{counts.sum()} images ({by_role}) have a mask without any lesion, so no features can be measured. They are kept: the "
            f"classifier gets {MASK_EMPTY} for these images, and the medians of the training images for all other features."
        )

    def describe_unlikely(self) -> str:
        """Count masks of implausible lesion size, as text, "" if none."""
        extent = self.table["abcd_diameter_by_longer_side"]
        tiny, whole = self.table["image_id"][extent < TINY], self.table["image_id"][extent > WHOLE]
        narrow = f"are narrower than {TINY:.0%} of the longer side of the image"
        kinds = (tiny, narrow), (whole, "reach nearly from corner to corner")
        counts = [f"{len(ids)} {kind} (such as {ids.iloc[0]})" for ids, kind in kinds if len(ids)]
        if not counts:
            return ""
        return (
            f"of the lesions in the masks, {', and '.join(counts)}: the features may describe something other than a lesion. "
            "Use --show structures to check examples."
        )

    def columns(self, families: Sequence[str]) -> pd.DataFrame:
        """Return the columns `learned_names` of feature families, float32 with NaN."""
        return self.table[learned_names(families)]


def open_features(
    index: pd.DataFrame, root: Path, entry: Dataset, masks: MaskSource, clean: Sequence[str] = (),
    progress: ProgressBar | None = None, jobs: int = -1,
) -> FeatureTable:  # fmt: skip
    """Open the feature table of a data set. Build a missing one.

    Args:
        index: index as in `PreparedData`. With a known `mm_per_px`, the diameter is also measured in mm.
        masks: source of the masks in which features are measured.
        clean: names of the cleaning steps applied first.

    Raises:
        DataError: images have no true mask, files are missing, or the disk is full.
    """
    masks, images = masks.resolve(index, entry), image_root(root)
    recipe: dict[str, Any] = {"format": FORMAT, "working_side": WORKING_SIDE, "families": list(FAMILIES)}
    recipe |= {"masks": masks.name, **clean_recipe(clean)}
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
        for chunk_rows in in_processes(_measure_chunk, tasks, jobs):
            rows += chunk_rows
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
    file: ImageFile, mask: Path | Mask | None, source: str, families: Sequence[str] = tuple(FAMILIES),
    steps: Sequence[str] = (), mm_per_px: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return one row of the feature table for an image file.

    Arguments are as in `read_lesion`. `families` are the families of features to measure.

    Raises:
        BadImage: the image or the mask cannot be used, or a cleaning step failed.
    """
    original = read_image(file)
    lesion, source = read_lesion(original, mask, source, steps, mm_per_px)
    features = image_features(lesion, families)
    masks = EMPTY if features[MASK_EMPTY] else source
    return {"width": original.width, "height": original.height, "masks": masks, "error": "", **features}


def read_lesion(
    original: Image.Image, mask: Path | Mask | None, source: str, steps: Sequence[str] = (), mm_per_px: float | None = None
) -> tuple[Lesion, str]:  # fmt: skip
    """Return the lesion of an image, and its mask source.

    Args:
        mask: file of the true mask, or the segmenter's mask of the original, bool (H, W).
        source: truth, otsu, auto, or the name of a segmenter.
        steps: cleaning steps applied first. Pixels that the step `frame` removes are not measured.
        mm_per_px: size of a pixel of the original in mm, None if unknown.

    Raises:
        BadImage: the mask cannot be used, or a cleaning step failed.
    """
    cleaned, box = clean_image(original, steps)
    lesion, source = find_mask(original, cleaned, box, mask, source)
    return bring_to_working_size(cleaned, lesion, mm_per_px), source


def _measure_chunk(
    files: list[Path], lesions: list[Path | bytes | None], scales: list[float | None], source: str, steps: Sequence[str]
) -> list[dict[str, Any]]:  # fmt: skip
    rows = []
    unknown = {"width": 0, "height": 0, "masks": "", "error": ""} | dict.fromkeys(
        [MASK_EMPTY, *feature_names()], math.nan
    )
    for image, lesion, scale in zip(files, lesions, scales, strict=True):
        mask = _unpack(lesion) if isinstance(lesion, bytes) else lesion
        try:
            rows.append(measure(image, mask, source, steps=steps, mm_per_px=scale))
        except BadImage as error:
            rows.append({**unknown, "error": f"{image} {error}"})
    return rows


def _pack(mask: Mask) -> bytes:
    """Encode a mask as PNG to save memory."""
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "png")
    return stream.getvalue()


def _unpack(packed: bytes) -> Mask:
    with Image.open(io.BytesIO(packed)) as image:
        return np.asarray(image.convert("L")) > 0
