"""Overlap of new data with the images of a run.

Images overlap by pixels, image id, lesion id or similarity. Digests are of preprocessed images, so that a renamed copy of a file has the
same digest with the same preprocessing. Copies that were encoded or cropped again are found by thumbnails (`data.duplicates`). A run
saves thumbnails of its images, so that its evaluation elsewhere needs no training image. Thumbnails show whole images, because crops of
two copies by different masks are too dissimilar. Dark surroundings are cut off, except in the fingerprints of older runs. The fingerprints
are too small for the comparison of texture that an audit makes.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.duplicates import Progress, find_near
from skincancer.data.store import Store, open_store
from skincancer.imaging.geometry import mapping
from skincancer.imaging.preprocessing import Preprocessing
from skincancer.imaging.similarity import cut, thumbnail, trim
from skincancer.schema.data import DataConfig
from skincancer.system.paths import cache_folder

FINGERPRINT_SIDE = 36
THUMBNAIL_SIDE = 96  # Side of thumbnails of new images, which are compared with the fingerprints.
USED = ("train", "val")  # The validation images select the best epoch.
SHARED_IDS = "ISIC_"  # Images of the ISIC archive have the same id in every data set.
SHARED_LESIONS = "HAM_"  # Lesions of HAM10000 have the same id in every data set.
REASONS = {
    "pixels": "same pixels as a training or validation image of the run",
    "image": "training or validation image of the run",
    "lesion": "same lesion as a training or validation image of the run",
    "near": "nearly identical to a training or validation image of the run",
}


@dataclass(frozen=True)
class Fingerprints:
    """Grey thumbnails of the training and validation images of a run."""

    image_id: npt.NDArray[np.str_]  # (M,)
    thumbnails: npt.NDArray[np.uint8]  # (M, 36, 36)
    trimmed: bool  # Dark surroundings are cut off.


def open_whole(
    index: pd.DataFrame, root: Path, store: Store, config: DataConfig,
    progress: Callable[[str], Progress] | None = None, jobs: int = -1,
) -> tuple[Store, str]:  # fmt: skip
    """Return a store of whole images, and the value of its `resize`.

    The store is that of the run if its images are whole, otherwise a store of small images is opened.

    Args:
        root: folder to which paths of the index are relative.

    Raises:
        DataError: files are missing, or the disk is full.
    """
    # Cleaned images count as whole, because the step `frame` removes only black borders.
    if not config.crop and config.resize != "crop":
        return store, config.resize
    report = progress("reading whole images") if progress else None
    small = Preprocessing(THUMBNAIL_SIDE, "stretch")
    return open_store(index, root, cache_folder(), small, progress=report, jobs=jobs), small.resize


def write_fingerprints(path: Path, index: pd.DataFrame, store: Store, resize: str) -> None:
    """Write thumbnails of the training and validation images.

    Args:
        index: index with roles, in the order of the store.
        store: store of whole images (`open_whole`).
        resize: value of `resize` of the store.
    """
    rows = np.flatnonzero(index["role"].isin(USED).to_numpy())
    ids = index["image_id"].to_numpy()[rows].astype(str)
    thumbnails = _thumbnails(store, rows, resize, FINGERPRINT_SIDE, trimmed=True)
    np.savez_compressed(path, image_id=ids, thumbnails=thumbnails, trimmed=True)


def read_fingerprints(path: Path) -> Fingerprints:
    """Read a file of `write_fingerprints`.

    Raises:
        ValueError: the file has another content.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            fingerprints = Fingerprints(content["image_id"], content["thumbnails"], "trimmed" in content)
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} contains no fingerprints: {error}") from error
    grey = fingerprints.thumbnails
    if grey.ndim != 3 or grey.dtype != np.uint8 or len(fingerprints.image_id) != len(grey):
        raise ValueError(f"{path.name} contains thumbnails {grey.dtype} {grey.shape}; expected uint8 (M, S, S)")
    return fingerprints


def find_similar(
    store: Store, rows: npt.NDArray[np.int64], resize: str, used: Fingerprints, progress: Progress | None = None
) -> pd.DataFrame:
    """Find near-duplicates of training and validation images.

    Args:
        store: store of whole images, preprocessed as in the run (`open_whole`).
        rows: int64 (M,), rows of the images to check.
        resize: value of `resize` of the store.

    Returns:
        One row per near-duplicate: row, like (image_id of the most similar image), correlation.
    """
    thumbnails = _thumbnails(store, rows, resize, THUMBNAIL_SIDE, used.trimmed)
    near = find_near(thumbnails, used.thumbnails, progress=progress)
    best = near.sort_values("correlation", ascending=False, kind="stable").drop_duplicates("first").sort_values("first")
    row, like = rows[best["first"].to_numpy()], used.image_id[best["second"].to_numpy()]
    return pd.DataFrame({"row": row, "like": like, "correlation": best["correlation"].to_numpy()})


def _thumbnails(
    store: Store, rows: npt.NDArray[np.int64], resize: str, side: int, trimmed: bool
) -> npt.NDArray[np.uint8]:
    """Return grey thumbnails (M, side, side) of images of a store.

    The black bars of `resize: pad` are cut off, because they would make all images similar.
    """
    thumbnails, views = np.zeros((len(rows), side, side), np.uint8), store.views
    for number, row in enumerate(rows):
        left, top, right, bottom = views[row].box
        left, top, right, bottom = mapping(right - left, bottom - top, store.images.shape[1], resize).target
        grey = thumbnail(store.images[row, top:bottom, left:right], THUMBNAIL_SIDE if trimmed else side)
        thumbnails[number] = cut(trim(grey), 0, side) if trimmed else grey
    return thumbnails


def pixel_digests(images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> list[str]:
    """Return blake2b digests (32 hex digits) of rows (M,) of store images."""
    return [hashlib.blake2b(images[row].tobytes(), digest_size=16).hexdigest() for row in rows]


def digest_table(index: pd.DataFrame, images: npt.NDArray[np.uint8]) -> pd.DataFrame:
    """Return image_id and pixels (digest) of every image with a role.

    Args:
        index: index with roles, in the order of the store.
        images: images of the store, uint8 (N, S, S, 3).
    """
    rows = np.flatnonzero(index["role"].to_numpy() != "")
    return pd.DataFrame({"image_id": index["image_id"].to_numpy()[rows], "pixels": pixel_digests(images, rows)})


def find_overlap(images: pd.DataFrame, split: pd.DataFrame, same_dataset: bool) -> npt.NDArray[np.object_]:
    """Return why each image overlaps with training and validation images.

    Args:
        images: columns image_id, lesion_id, and optionally pixels (digests).
        split: split of the run: image_id, lesion_id, role, and optionally pixels (digests).
        same_dataset: both come from the same data set, so that all ids are comparable. Otherwise only ids of the ISIC archive and
            lesion ids of HAM10000 are compared.

    Returns:
        (N,), the first matching key of `REASONS`, or "" without overlap.
    """
    used = split[split["role"].isin(USED)]
    image = images["image_id"].isin(used["image_id"])
    lesion = images["lesion_id"].isin(used["lesion_id"])
    if not same_dataset:
        image &= images["image_id"].str.startswith(SHARED_IDS)
        lesion &= images["lesion_id"].str.startswith((SHARED_IDS, SHARED_LESIONS))
    pixels = pd.Series(False, index=images.index)
    if "pixels" in images and "pixels" in split:
        pixels = images["pixels"].isin(set(used["pixels"]) - {""})
    reasons = np.full(len(images), "", dtype=object)
    for reason, overlaps in (("lesion", lesion), ("image", image), ("pixels", pixels)):
        reasons[overlaps.to_numpy()] = reason
    return reasons


def count_overlap(index: pd.DataFrame, split: pd.DataFrame, same_dataset: bool) -> int:
    """Count the test images that overlap with a segmenter's run.

    Args:
        index: index with roles.
        split: split of the segmenter's run: image_id, lesion_id, role.
        same_dataset: as in `find_overlap`.
    """
    test = index[index["role"] == "test"]
    return int((find_overlap(test, split, same_dataset) != "").sum())
