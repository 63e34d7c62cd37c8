"""Store of preprocessed images in memory-mapped arrays.

A store is a folder of the cache, named by its key:

- `images.npy`: uint8 (N, S, S, 3).
- `masks.npy`: uint8 (N, S, S) in {0, 1}, if the task needs masks.
- `images.csv`: image_id, width, height, error; if cropping or cleaning removed pixels also left, top, right, bottom; for crops also masks.
- `recipe.json`: preprocessing of the images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.cache import Progress, build_once, files_key, in_processes
from skincancer.data.mask_sources import mask_files
from skincancer.imaging.crop import FROM_FILES
from skincancer.imaging.decode import BadImage
from skincancer.imaging.preprocessing import Preprocessing, View
from skincancer.imaging.types import Box

FORMAT = 1  # Increase whenever decoding or resizing changes pixels.
CHUNK = 64  # Images per task of a worker process.
BOX_COLUMNS = ["left", "top", "right", "bottom"]
CROP_COLUMNS = [*BOX_COLUMNS, "masks"]
FindMasks = Callable[[], Sequence[Path | Box | None]]


@dataclass(frozen=True)
class Store:
    """Open store. Rows of arrays and table match rows of the index."""

    folder: Path
    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8] | None
    table: pd.DataFrame

    @property
    def bad(self) -> pd.DataFrame:
        """Unreadable images: image_id, error."""
        return self.table.loc[self.table["error"] != "", ["image_id", "error"]]

    @property
    def views(self) -> list[View]:
        """Box of the original that each image shows."""
        sizes = self.table[["width", "height"]].to_numpy().tolist()
        if "left" not in self.table:
            return [View(width, height, (0, 0, width, height)) for width, height in sizes]
        boxes = self.table[BOX_COLUMNS].itertuples(index=False, name=None)
        return [View(width, height, box) for (width, height), box in zip(sizes, boxes, strict=True)]


def open_store(
    index: pd.DataFrame, root: Path, cache: Path, preprocessing: Preprocessing, *, masks: bool = False,
    find_masks: FindMasks | None = None, progress: Progress | None = None, jobs: int = -1,
) -> Store:  # fmt: skip
    """Open the store of an index. Build a missing one.

    Args:
        index: columns image_id, image, mask (paths relative to `root`).
        masks: store masks too (not for crops). An image without a mask gets an empty one.
        find_masks: function that returns the file or the box of each mask (None if empty). Only a new store of crops calls it.
        jobs: number of worker processes, -1 for one per core.

    Raises:
        DataError: files are missing, or the disk is full.
    """
    recipe = {"format": FORMAT, "masks": masks, **preprocessing.recipe()}
    reads_masks = masks or (preprocessing.crop is not None and preprocessing.crop.masks in FROM_FILES)
    folder = cache / "stores" / files_key(index, root, recipe, reads_masks)

    def build(building: Path) -> None:
        files: Sequence[Path | Box | None] = [None] * len(index)
        if find_masks:
            files = find_masks()
        elif reads_masks:
            files = mask_files(index, root)
        _build(index, root, building, preprocessing, files, masks, progress, jobs)
        (building / "recipe.json").write_text(json.dumps(recipe, indent=1))

    size = preprocessing.size
    needed = len(index) * size * size * (4 if masks else 3) / 1e9
    build_once(folder, root, build, f"the store of {len(index)} images at {size} px takes {needed:.2f} GB")
    table = pd.read_csv(folder / "images.csv", dtype={"image_id": str, "error": str}, keep_default_na=False)
    images = np.load(folder / "images.npy", mmap_mode="r")
    return Store(folder, images, np.load(folder / "masks.npy", mmap_mode="r") if masks else None, table)


def _build(
    index: pd.DataFrame, root: Path, building: Path, preprocessing: Preprocessing, masks: Sequence[Path | Box | None],
    store_masks: bool, progress: Progress | None, jobs: int,
) -> None:  # fmt: skip
    size, total = preprocessing.size, len(index)
    offsets = {"images": _allocate(building / "images.npy", (total, size, size, 3))}
    if store_masks:
        offsets["masks"] = _allocate(building / "masks.npy", (total, size, size))
    files = [root / image for image in index["image"]]
    tasks = [
        (building, start, files[start : start + CHUNK], masks[start : start + CHUNK], offsets, preprocessing)
        for start in range(0, total, CHUNK)
    ]
    rows: list[tuple[Any, ...]] = []
    for chunk in in_processes(_write_chunk, tasks, jobs):
        rows += chunk
        if progress:
            progress(len(rows), total)
    boxes = CROP_COLUMNS if preprocessing.crop else BOX_COLUMNS if preprocessing.shows_boxes else []
    table = pd.DataFrame(rows, columns=["width", "height", "error", *CROP_COLUMNS])
    table = table[["width", "height", "error", *boxes]]
    table.insert(0, "image_id", index["image_id"].to_numpy())
    table.to_csv(building / "images.csv", index=False)


def _allocate(path: Path, shape: tuple[int, ...]) -> int:
    """Create an .npy file of zeros. Return the offset of its data.

    The file gets its full size, so that a full disk raises an error before any work.
    """
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        file.flush()
        offset = file.tell()
        os.posix_fallocate(file.fileno(), 0, offset + int(np.prod(shape)))
    return offset


def _write(file: int, content: bytes, offset: int) -> None:
    """Write all bytes, although one call may write fewer."""
    view = memoryview(content)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def _write_chunk(
    building: Path, start: int, images: list[Path], masks: Sequence[Path | Box | None],
    offsets: dict[str, int], preprocessing: Preprocessing,
) -> list[tuple[Any, ...]]:  # fmt: skip
    """Preprocess images into their rows. Return width, height, error and `CROP_COLUMNS`."""
    rows: list[tuple[Any, ...]] = []
    files = {name: os.open(building / f"{name}.npy", os.O_WRONLY) for name in offsets}
    try:
        for row, (image, mask) in enumerate(zip(images, masks, strict=True), start):
            try:
                pixels, truth, view, source = preprocessing.apply(image, mask)
            except BadImage as error:
                rows.append((0, 0, f"{image} {error}", 0, 0, 0, 0, ""))
                continue
            rows.append((view.width, view.height, "", *view.box, source))
            # A write through a memory map would kill the process if the disk is full.
            _write(files["images"], pixels.tobytes(), offsets["images"] + row * pixels.nbytes)
            if truth is not None:
                _write(files["masks"], truth.tobytes(), offsets["masks"] + row * truth.nbytes)
    finally:
        for file in files.values():
            os.close(file)
    return rows
