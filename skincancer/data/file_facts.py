"""Cached facts about image files: digests, thumbnails, encoding, image quality.

The audit and `data.quality` use the facts. The cache key contains ids, paths, sizes and times of the files, as the key of a store.
"""

from __future__ import annotations

import hashlib
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
from skincancer.imaging.decode import BadImage, open_image, read_image, read_truth
from skincancer.imaging.quality import COLUMNS as QUALITY_COLUMNS
from skincancer.imaging.quality import flags, measure
from skincancer.imaging.similarity import thumbnail
from skincancer.imaging.types import RGB, Mask

FORMAT = 4  # Increase whenever the cached facts change.
SIDE = 96  # Side of a thumbnail, px.
CHUNK = 32  # Images per task of a worker process.
FRAME = 0.06  # Width of the frame for the mean edge colour, as a share of the shorter side.
_TEXTS = dict.fromkeys(("image_id", "error", "file_digest", "pixel_digest", "mask_error", "mask_digest"), str)


@dataclass(frozen=True)
class Examination:
    """File facts of an index, in the order of the index.

    Attributes:
        key: cache key of the files.
        table: one row per image:

            - image_id, and error (reason why the image is unreadable, with all other values empty or NaN, or "").
            - file_digest, pixel_digest: 32 hex digits.
            - width, height (px), bytes_per_pixel.
            - jpeg_table: mean entry of the JPEG quantisation tables (larger means coarser), 0 for other formats.
            - frame_red, frame_green, frame_blue: mean of the outermost pixels (0–255) outside the mask, or of all outermost pixels if
              the mask covers them.
            - mask_error (reason why the mask is unusable, or ""), mask_digest ("" without a mask), mask_share (0–1, NaN without a mask).
            - the columns of `skincancer.imaging.quality`.
        thumbnails: grey copies, uint8 (N, SIDE, SIDE), black for unreadable images.
    """

    key: str
    table: pd.DataFrame
    thumbnails: npt.NDArray[np.uint8]


def examine(
    index: pd.DataFrame, root: Path, cache: Path, progress: Progress | None = None, jobs: int = -1
) -> Examination:
    """Return the file facts of an index. Compute them if not cached.

    Args:
        index: columns image_id, image, mask (paths relative to `root`).

    Raises:
        DataError: files are missing, or the cache cannot be written.
    """
    key = examination_key(index, root)
    folder = cache / "examinations" / key
    needs = f"the facts about {len(index)} files take {len(index) * SIDE * SIDE / 1e9:.2f} GB"
    build_once(folder, root, lambda building: _build(index, root, building, progress, jobs), needs)
    return _open(key, folder)


def kept_examination(index: pd.DataFrame, root: Path, cache: Path) -> Examination | None:
    """Return the file facts of an index if cached.

    Raises:
        DataError: files are missing.
    """
    key = examination_key(index, root)
    folder = cache / "examinations" / key
    return _open(key, folder) if folder.is_dir() else None


def _open(key: str, folder: Path) -> Examination:
    table = pd.read_csv(folder / "images.csv", dtype=_TEXTS, keep_default_na=False, na_values=_no_number())
    return Examination(key, table, np.load(folder / "thumbnails.npy"))


def examination_key(index: pd.DataFrame, root: Path) -> str:
    """Return the cache key of the current files of an index.

    Raises:
        DataError: files are missing.
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
        for facts, grey in chunk:
            thumbnails[len(rows)] = grey
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
    """Return the facts and the thumbnail of an image."""
    try:
        content = path.read_bytes()
        image = read_image(content)
    except BadImage as error:
        return _unreadable(f"{path} {error}"), np.zeros((SIDE, SIDE), np.uint8)
    lesion, mask_facts = _examine_mask(path, mask, image)
    pixels = np.asarray(image)
    return _examine_image(content, pixels, lesion) | mask_facts, thumbnail(pixels, SIDE)


def _examine_image(content: bytes, pixels: RGB, lesion: Mask | None) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    digest = hashlib.blake2b(f"{width}×{height}".encode(), digest_size=16)
    digest.update(pixels.tobytes())
    file_digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    facts = {
        "error": "",
        "file_digest": file_digest,
        "pixel_digest": digest.hexdigest(),
        "width": width,
        "height": height,
    }
    facts |= {"bytes_per_pixel": len(content) / (width * height), "jpeg_table": _jpeg_table(content)}
    return (
        facts
        | dict(zip(("frame_red", "frame_green", "frame_blue"), _frame(pixels, lesion), strict=True))
        | measure(pixels)
    )


def _frame(pixels: RGB, lesion: Mask | None) -> list[float]:
    depth = max(1, round(FRAME * min(pixels.shape[:2])))
    edge = np.zeros(pixels.shape[:2], dtype=bool)
    edge[:depth] = edge[-depth:] = edge[:, :depth] = edge[:, -depth:] = True
    around = edge if lesion is None else edge & ~lesion
    return [float(value) for value in pixels[around if around.any() else edge].mean(axis=0)]


def _jpeg_table(content: bytes) -> float:
    """Return the mean JPEG quantisation entry, 0 for other formats."""
    with open_image(content) as image:
        tables: Mapping[int, list[int]] = getattr(image, "quantization", None) or {}
        entries = [entry for table in tables.values() for entry in table]
    return float(np.mean(entries)) if entries else 0.0


def _examine_mask(path: Path, mask: Path | None, image: Image.Image) -> tuple[Mask | None, dict[str, Any]]:
    """Return the usable mask of an image or None, and its facts."""
    none: dict[str, Any] = {"mask_error": "", "mask_digest": "", "mask_share": float("nan")}
    if mask is None:
        return None, none
    try:
        lesion: Mask = np.asarray(read_truth(mask, image)) > 0
    except BadImage as error:
        return None, none | {"mask_error": f"{path} {error}"}
    digest = hashlib.blake2b(f"{lesion.shape}".encode(), digest_size=16)
    digest.update(np.packbits(lesion).tobytes())
    return lesion, {"mask_error": "", "mask_digest": digest.hexdigest(), "mask_share": float(lesion.mean())}


def find_flagged(examination: Examination, rules: Mapping[str, float]) -> pd.DataFrame:
    """Return the readable images that violate a quality rule.

    Args:
        rules: threshold of each rule (`data.quality_rules`).

    Returns:
        Columns image_id, flags (names of rules, separated by "; ") and reason.
    """
    readable = examination.table[examination.table["error"] == ""]
    rows = []
    for facts in readable.to_dict("records"):
        if reasons := flags({str(name): value for name, value in facts.items()}, rules):
            rows.append((str(facts["image_id"]), "; ".join(reasons), "; ".join(reasons.values())))
    return pd.DataFrame(rows, columns=["image_id", "flags", "reason"])
