"""The prepared store: every image decoded and resized once, into a memory-mapped array.

A store is a folder under the cache, named by its key: `images.npy` uint8 (N, S, S, 3), `masks.npy` uint8 (N, S, S) in {0, 1}
where asked for, `images.csv` (image_id, width, height, error; of what was cut also left, top, right, bottom; of crops masks),
`recipe.json`.
It is built in a temporary folder, under a lock, and renamed when complete: a killed build leaves nothing that looks finished,
and two at once build one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.cache import Progress, build_once, files_key, in_processes
from skincancer.data.mask_sources import mask_files
from skincancer.imaging.cleaning import steps
from skincancer.imaging.crop import FROM_FILES, Crop, decode_crop
from skincancer.imaging.decode import BadImage, decode
from skincancer.imaging.types import Box

FORMAT = 1  # raised whenever decoding or resizing gives other pixels
CHUNK = 64  # images per task of a worker
BOX_COLUMNS = ["left", "top", "right", "bottom"]
CROP_COLUMNS = [*BOX_COLUMNS, "masks"]
FindMasks = Callable[[], Sequence[Path | Box | None]]


@dataclass(frozen=True)
class Store:
    """An opened store; row i of every array belongs to row i of the index table it was built for."""

    folder: Path
    images: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.uint8] | None
    table: pd.DataFrame

    @property
    def bad(self) -> pd.DataFrame:
        """Images that could not be read: image_id, error."""
        return self.table.loc[self.table["error"] != "", ["image_id", "error"]]

    @property
    def boxes(self) -> list[Box] | None:
        """What each image shows of its original, px; None where all show the whole."""
        if "left" not in self.table:
            return None
        return [(left, top, right, bottom) for left, top, right, bottom in self.table[BOX_COLUMNS].to_numpy().tolist()]

    def shown_sizes(self, rows: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """Return width and height (px) of what some images show of their originals."""
        if self.boxes is None:
            sizes = self.table[["width", "height"]].to_numpy()[rows]
        else:
            boxes = self.table[BOX_COLUMNS].to_numpy()[rows]
            sizes = boxes[:, 2:] - boxes[:, :2]
        return [(width, height) for width, height in sizes.tolist()]


def open_store(
    index: pd.DataFrame,
    root: Path,
    cache: Path,
    *,
    size: int,
    resize: str,
    masks: bool = False,
    crop: Crop | None = None,
    find_masks: FindMasks | None = None,
    clean: Sequence[str] = (),
    progress: Progress | None = None,
    jobs: int = -1,
) -> Store:
    """Open the store of an index, building it first where it does not exist.

    Args:
        index: columns image_id, image, mask (paths relative to `root`).
        root: the data set's folder.
        cache: where stores lie.
        size: side of the square, px.
        resize: stretch, pad or crop.
        masks: store masks too; an image without one gets an empty one. Not of crops.
        crop: cut images to their lesions first.
        find_masks: called once while building a store of crops. Returns the file or the extent of each mask, None for an empty one.
        clean: steps of `cleaning.STEPS`, done on the decoded original.
        progress: called with (done, total) while building.
        jobs: worker processes; -1 for one a core.

    Raises:
        DataError: files are gone, or the disk is full.
    """
    recipe: dict[str, Any] = {"format": FORMAT, "size": size, "resize": resize, "masks": masks}
    if crop is not None:
        recipe["crop"] = asdict(crop)
    if clean:
        recipe |= {"clean": list(clean), "clean_format": steps.FORMAT}
    folder = cache / "stores" / files_key(index, root, recipe, _reads_masks(recipe))
    build_once(
        folder, root, lambda building: _build(index, root, building, recipe, find_masks, progress, jobs),
        f"the store of {len(index)} images at {size} px takes {len(index) * size * size * (4 if masks else 3) / 1e9:.2f} GB",
    )  # fmt: skip
    table = pd.read_csv(folder / "images.csv", dtype={"image_id": str, "error": str}, keep_default_na=False)
    images = np.load(folder / "images.npy", mmap_mode="r")
    return Store(folder, images, np.load(folder / "masks.npy", mmap_mode="r") if masks else None, table)


def _reads_masks(recipe: dict[str, Any]) -> bool:
    return bool(recipe["masks"]) or recipe.get("crop", {}).get("masks") in FROM_FILES


def _cut_columns(recipe: dict[str, Any]) -> list[str]:
    """Return the columns that say what an image shows of its original."""
    return CROP_COLUMNS if "crop" in recipe else BOX_COLUMNS if steps.cuts(recipe.get("clean", ())) else []


def _build(
    index: pd.DataFrame, root: Path, building: Path, recipe: dict[str, Any], find_masks: FindMasks | None,
    progress: Progress | None, jobs: int,
) -> None:  # fmt: skip
    masks: Sequence[Path | Box | None] = [None] * len(index)
    if find_masks:
        masks = find_masks()
    elif _reads_masks(recipe):
        masks = mask_files(index, root)
    size, total = recipe["size"], len(index)
    offsets = {"images": _allocate(building / "images.npy", (total, size, size, 3))}
    if recipe["masks"]:
        offsets["masks"] = _allocate(building / "masks.npy", (total, size, size))
    files = [root / image for image in index["image"]]
    tasks = [
        (building, start, files[start : start + CHUNK], masks[start : start + CHUNK], offsets, recipe)
        for start in range(0, total, CHUNK)
    ]
    rows: list[tuple[Any, ...]] = []
    for chunk in in_processes(_write_chunk, tasks, jobs):
        rows += chunk
        if progress:
            progress(len(rows), total)
    table = pd.DataFrame(rows, columns=["width", "height", "error", *_cut_columns(recipe)])
    table.insert(0, "image_id", index["image_id"].to_numpy())
    table.to_csv(building / "images.csv", index=False)
    (building / "recipe.json").write_text(json.dumps(recipe, indent=1))


def _allocate(path: Path, shape: tuple[int, ...]) -> int:
    """Make an .npy file of zeros of the full size, so that a full disk shows at once; return where its data start."""
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        file.flush()
        offset = file.tell()
        os.posix_fallocate(file.fileno(), 0, offset + int(np.prod(shape)))
    return offset


def _write(file: int, content: bytes, offset: int) -> None:
    """Write all of it: a single call may write less where the disk is nearly full."""
    view = memoryview(content)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


def _write_chunk(
    building: Path, start: int, images: list[Path], masks: Sequence[Path | Box | None],
    offsets: dict[str, int], recipe: dict[str, Any],
) -> list[tuple[Any, ...]]:  # fmt: skip
    """Decode some images into their rows; return (width, height, error) of each, and what `_cut_columns` names."""
    size, resize = recipe["size"], recipe["resize"]
    crop = Crop(**recipe["crop"]) if "crop" in recipe else None
    steps, cut = recipe.get("clean", ()), _cut_columns(recipe)
    rows: list[tuple[Any, ...]] = []
    files = {name: os.open(building / f"{name}.npy", os.O_WRONLY) for name in offsets}
    try:
        for row, (image, mask) in enumerate(zip(images, masks, strict=True), start):
            truth = None
            try:
                if crop is None:
                    assert mask is None or isinstance(mask, Path)
                    pixels, truth, width, height, shown = decode(image, mask, size, resize, steps)
                    rows.append((width, height, "", *(shown if cut else ())))
                else:
                    found = decode_crop(image, mask, size, resize, crop, steps)
                    pixels = found.pixels
                    rows.append((found.width, found.height, "", *found.box, found.masks))
            except BadImage as error:
                rows.append((0, 0, f"{image} {error}", *(0, 0, 0, 0, "")[: len(cut)]))
                continue
            # plain writes, since writing through a map kills the process when the disk is full
            _write(files["images"], pixels.tobytes(), offsets["images"] + row * pixels.nbytes)
            if truth is not None:
                _write(files["masks"], truth.tobytes(), offsets["masks"] + row * truth.nbytes)
    finally:
        for file in files.values():
            os.close(file)
    return rows
