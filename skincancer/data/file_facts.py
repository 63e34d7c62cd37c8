"""What is found out about every file of a data set once: digests, a small grey copy, how it was written, how good a photograph it is.

Kept under the cache by the same key as a store (ids, paths, sizes and times of the files), for the audit and for `data.quality`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from skincancer.data.cache import Progress, build_once, files_key, in_processes
from skincancer.data.mask_sources import mask_files
from skincancer.imaging.decode import BadImage, read_image, read_truth
from skincancer.imaging.quality import COLUMNS as QUALITY_COLUMNS
from skincancer.imaging.quality import flags, measure
from skincancer.imaging.similarity import thumbnail

FORMAT = 4  # raised whenever other facts are kept, or found in another way
SIDE = 96  # of the small grey copies, px
CHUNK = 32  # images per task of a worker
FRAME = 0.06  # share of a side whose outermost pixels tell the colour around a lesion
_TEXTS = dict.fromkeys(("image_id", "error", "file_digest", "pixel_digest", "mask_error", "mask_digest"), str)
Lesion = npt.NDArray[np.bool_]  # (H, W): inside the mask


@dataclass(frozen=True)
class Examination:
    """The facts about each image of an index, in its order.

    Attributes:
        key: of the files; what else is kept about them is named by it.
        table: image_id, error ("" or why the image cannot be read; then all else is empty or NaN), file_digest, pixel_digest (32 hex
            digits), width, height (px), bytes_per_pixel, jpeg_table (mean entry of the quantisation tables: the larger the coarser;
            0 of other formats), frame_red, frame_green, frame_blue (mean of the outermost pixels, 0–255; without those of the mask,
            unless it takes them all), mask_error ("" or why the image's mask cannot be used), mask_digest, mask_share (0–1; empty and
            NaN without a mask), and the columns of `skincancer.imaging.quality`.
        thumbnails: uint8 (N, SIDE, SIDE), black where the image cannot be read.
    """

    key: str
    table: pd.DataFrame
    thumbnails: npt.NDArray[np.uint8]


def examine(
    index: pd.DataFrame, root: Path, cache: Path, progress: Progress | None = None, jobs: int = -1
) -> Examination:
    """Examine the files of an index, or take what is kept of an earlier time.

    Args:
        index: columns image_id, image, mask (paths relative to `root`).
        root: the data set's folder.
        cache: where the facts are kept.
        progress: called with (done, total).
        jobs: worker processes; -1 for one a core.

    Raises:
        DataError: files are gone, or the cache cannot be written.
    """
    key = examination_key(index, root)
    folder = cache / "examinations" / key
    needs = f"the facts about {len(index)} files take {len(index) * SIDE * SIDE / 1e9:.2f} GB"
    build_once(folder, root, lambda building: _build(index, root, building, progress, jobs), needs)
    return _open(key, folder)


def kept_examination(index: pd.DataFrame, root: Path, cache: Path) -> Examination | None:
    """Return the facts about an index's files where they are kept of an earlier time.

    Raises:
        DataError: files are gone.
    """
    key = examination_key(index, root)
    folder = cache / "examinations" / key
    return _open(key, folder) if folder.is_dir() else None


def _open(key: str, folder: Path) -> Examination:
    table = pd.read_csv(folder / "images.csv", dtype=_TEXTS, keep_default_na=False, na_values=_no_number())
    return Examination(key, table, np.load(folder / "thumbnails.npy"))


def examination_key(index: pd.DataFrame, root: Path) -> str:
    """Return the key of an index's files as they are now.

    Raises:
        DataError: files are gone.
    """
    masks = bool(index["mask"].notna().any())
    return files_key(index, root, {"examination": FORMAT, "masks": masks}, masks)


def _no_number() -> dict[str, list[str]]:
    return {column: [""] for column in (*_unreadable(""), *QUALITY_COLUMNS) if column not in _TEXTS}


def _unreadable(error: str) -> dict[str, Any]:
    numbers = ("bytes_per_pixel", "jpeg_table", "frame_red", "frame_green", "frame_blue", "mask_share")
    texts = dict.fromkeys(_TEXTS.keys() - {"image_id"}, "") | {"error": error, "width": 0, "height": 0}
    return texts | dict.fromkeys((*numbers, *QUALITY_COLUMNS), float("nan"))


def _build(index: pd.DataFrame, root: Path, building: Path, progress: Progress | None, jobs: int) -> None:
    pairs = list(zip([root / image for image in index["image"]], mask_files(index, root), strict=True))
    tasks = [(pairs[start : start + CHUNK],) for start in range(0, len(pairs), CHUNK)]
    rows: list[dict[str, Any]] = []
    thumbnails = np.zeros((len(pairs), SIDE, SIDE), np.uint8)
    for chunk in in_processes(_examine_chunk, tasks, jobs):
        for facts, small in chunk:
            thumbnails[len(rows)] = small
            rows.append(facts)
        if progress:
            progress(len(rows), len(pairs))
    table = pd.DataFrame(rows)
    table.insert(0, "image_id", index["image_id"].to_numpy())
    table.to_csv(building / "images.csv", index=False)
    np.save(building / "thumbnails.npy", thumbnails)


def _examine_chunk(pairs: list[tuple[Path, Path | None]]) -> list[tuple[dict[str, Any], npt.NDArray[np.uint8]]]:
    cv2.setNumThreads(1)
    return [_examine_file(path, mask) for path, mask in pairs]


def _examine_file(path: Path, mask: Path | None) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    """Return the facts about an image and its small grey copy, black if the image cannot be read."""
    try:
        content = path.read_bytes()
        image = read_image(content)
    except BadImage as error:
        return _unreadable(f"{path} {error}"), np.zeros((SIDE, SIDE), np.uint8)
    lesion, mask_facts = _examine_mask(path, mask, image)
    pixels = np.asarray(image)
    return _examine_image(content, pixels, lesion) | mask_facts, thumbnail(pixels, SIDE)


def _examine_image(content: bytes, pixels: npt.NDArray[np.uint8], lesion: Lesion | None) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(f"{width}×{height}".encode(), digest_size=16)
    digest.update(pixels.tobytes())
    red, green, blue = _frame(pixels, lesion)
    return {
        "error": "",
        "file_digest": hashlib.blake2b(content, digest_size=16).hexdigest(),
        "pixel_digest": digest.hexdigest(),
        "width": width,
        "height": height,
        "bytes_per_pixel": len(content) / (width * height),
        "jpeg_table": _jpeg_table(content),
        "frame_red": red,
        "frame_green": green,
        "frame_blue": blue,
        **measure(pixels),
    }


def _frame(pixels: npt.NDArray[np.uint8], lesion: Lesion | None) -> list[float]:
    depth = max(1, round(FRAME * min(pixels.shape[:2])))
    edge = np.zeros(pixels.shape[:2], dtype=bool)
    edge[:depth] = edge[-depth:] = edge[:, :depth] = edge[:, -depth:] = True
    around = edge if lesion is None else edge & ~lesion
    return [float(value) for value in pixels[around if around.any() else edge].mean(axis=0)]


def _jpeg_table(content: bytes) -> float:
    """Return the mean entry of a JPEG file's quantisation tables; 0 of other formats."""
    with Image.open(io.BytesIO(content)) as image:
        tables: Mapping[int, list[int]] = getattr(image, "quantization", None) or {}
        entries = [entry for table in tables.values() for entry in table]
    return float(np.mean(entries)) if entries else 0.0


def _examine_mask(path: Path, mask: Path | None, image: Image.Image) -> tuple[Lesion | None, dict[str, Any]]:
    """Return the mask of an image, and the facts about it; None where there is none, or none that can be used."""
    none: dict[str, Any] = {"mask_error": "", "mask_digest": "", "mask_share": float("nan")}
    if mask is None:
        return None, none
    try:
        lesion: Lesion = np.asarray(read_truth(mask, image)) > 0
    except BadImage as error:
        return None, none | {"mask_error": f"{path} {error}"}
    digest = hashlib.blake2b(f"{lesion.shape}".encode(), digest_size=16)
    digest.update(np.packbits(lesion).tobytes())
    return lesion, {"mask_error": "", "mask_digest": digest.hexdigest(), "mask_share": float(lesion.mean())}


def find_flagged(examination: Examination, rules: Mapping[str, float]) -> pd.DataFrame:
    """Return image_id, flags (names of rules, "; " between) and reason of the readable images that break a quality rule.

    Args:
        examination: of the index.
        rules: threshold of each rule that counts (`data.quality_rules`).
    """
    readable = examination.table[examination.table["error"] == ""]
    found = []
    for row in readable.to_dict("records"):
        if told := flags({str(name): value for name, value in row.items()}, rules):
            found.append((str(row["image_id"]), "; ".join(told), "; ".join(told.values())))
    return pd.DataFrame(found, columns=["image_id", "flags", "reason"])
