"""Which images a run has seen: by the pixels that it was given, by id, and by lesion; for what must be new to it.

A digest is of an image as the store holds it, after resizing: a renamed copy of a file has the same one, at the same size, resizing,
cleaning and crop. A copy that was encoded or cut anew has another; it is found by small grey copies of the images (`data.duplicates`),
which a run keeps of those that it used, so that no training image is needed where it is evaluated. They are of whole images: parts of
two copies that different masks cut out are too unlike.
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
from skincancer.imaging.similarity import thumbnail
from skincancer.schema import DataConfig
from skincancer.system.paths import cache_folder

FINGERPRINT_SIDE = 36
THUMBNAIL_SIDE = 96  # of the images that are compared with them
USED = ("train", "val")  # what a run learned from, and what chose its best epoch
SHARED_IDS = "ISIC_"  # an image of the ISIC archive has the same id in every data set that took it
SHARED_LESIONS = "HAM_"  # and a lesion of HAM10000
REASONS = {
    "pixels": "the same pixels as an image that the run was trained or chosen on",
    "image": "the run was trained or chosen on this image",
    "lesion": "the run was trained or chosen on another image of this lesion",
    "near": "nearly the same picture as an image that the run was trained or chosen on",
}


@dataclass(frozen=True)
class Fingerprints:
    """Small grey copies of the whole images of a run: `image_id` (M,), `thumbnails` uint8 (M, 36, 36)."""

    image_id: npt.NDArray[np.str_]
    thumbnails: npt.NDArray[np.uint8]


def open_whole(
    index: pd.DataFrame,
    root: Path,
    store: Store,
    config: DataConfig,
    progress: Callable[[str], Progress] | None = None,
    jobs: int = -1,
) -> tuple[Store, str]:
    """Return a store that shows whole images, and how they came to its squares: a run's own, or else a small one beside it.

    Args:
        index: row i belongs to image i.
        root: what the paths of the index are relative to.
        store: the run's own.
        config: that it was built by.
        progress: makes progress callbacks by title.
        jobs: worker processes; -1 for one a core.

    Raises:
        DataError: files are gone, or the disk is full.
    """
    # Cleaning keeps whole images: what the step `frame` removes is black.
    if not config.crop and config.resize != "crop":
        return store, config.resize
    report = progress("looking at whole images") if progress else None
    small = Preprocessing(THUMBNAIL_SIDE, "stretch")
    whole = open_store(index, root, cache_folder(), small, progress=report, jobs=jobs)
    return whole, "stretch"


def write_fingerprints(path: Path, index: pd.DataFrame, store: Store, resize: str) -> None:
    """Write small grey copies of the images that a run learns from or is chosen on.

    Args:
        path: the file.
        index: with roles; row i belongs to image i.
        store: of the images, whole (`open_whole`).
        resize: how they came to its squares.
    """
    rows = np.flatnonzero(index["role"].isin(USED).to_numpy())
    ids = index["image_id"].to_numpy()[rows].astype(str)
    np.savez_compressed(path, image_id=ids, thumbnails=_thumbnails(store, rows, resize, FINGERPRINT_SIDE))


def read_fingerprints(path: Path) -> Fingerprints:
    """Read what `write_fingerprints` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            found = Fingerprints(content["image_id"], content["thumbnails"])
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name} holds no fingerprints: {error}") from error
    if found.thumbnails.ndim != 3 or found.thumbnails.dtype != np.uint8 or len(found.image_id) != len(found.thumbnails):
        raise ValueError(f"{path.name} holds thumbnails {found.thumbnails.dtype} {found.thumbnails.shape}")
    return found


def find_similar(
    store: Store, rows: npt.NDArray[np.int64], resize: str, used: Fingerprints, progress: Progress | None = None
) -> pd.DataFrame:
    """Find the near-duplicates of images that a run used.

    Args:
        store: of the images, whole, by the run's recipe (`open_whole`).
        rows: int64 (M,) of the images asked about.
        resize: how they came to its squares.
        used: by the run.
        progress: called with (done, total).

    Returns:
        A row an image of which there are any: row, like (image_id of the most similar), correlation.
    """
    near = find_near(_thumbnails(store, rows, resize, THUMBNAIL_SIDE), used.thumbnails, progress=progress)
    best = near.sort_values("correlation", ascending=False, kind="stable").drop_duplicates("first").sort_values("first")
    return pd.DataFrame(
        {
            "row": rows[best["first"].to_numpy()],
            "like": used.image_id[best["second"].to_numpy()],
            "correlation": best["correlation"].to_numpy(),
        }
    )


def _thumbnails(store: Store, rows: npt.NDArray[np.int64], resize: str, side: int) -> npt.NDArray[np.uint8]:
    """Return grey copies (M, side, side) without the bars of `pad`, by which any two pictures would look alike."""
    thumbnails, views = np.zeros((len(rows), side, side), np.uint8), store.views
    for number, row in enumerate(rows):
        left, top, right, bottom = views[row].box
        left, top, right, bottom = mapping(right - left, bottom - top, store.images.shape[1], resize).target
        thumbnails[number] = thumbnail(store.images[row, top:bottom, left:right], side)
    return thumbnails


def pixel_digests(images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> list[str]:
    """Return 32 hex digits of blake2b of the pixels of some images.

    Args:
        images: uint8 (N, S, S, 3), of a store.
        rows: int64 (M,).
    """
    return [hashlib.blake2b(images[row].tobytes(), digest_size=16).hexdigest() for row in rows]


def digest_table(index: pd.DataFrame, images: npt.NDArray[np.uint8]) -> pd.DataFrame:
    """Return image_id and pixels (the digest) of every image that has a role.

    Args:
        index: with roles; row i belongs to image i.
        images: uint8 (N, S, S, 3), of the store.
    """
    rows = np.flatnonzero(index["role"].to_numpy() != "")
    return pd.DataFrame({"image_id": index["image_id"].to_numpy()[rows], "pixels": pixel_digests(images, rows)})


def find_seen(images: pd.DataFrame, split: pd.DataFrame, same_dataset: bool) -> npt.NDArray[np.object_]:
    """Say of images whether a run has seen them.

    Args:
        images: image_id, lesion_id, and pixels where digests are known.
        split: of the run: image_id, lesion_id, role, and pixels where digests are known.
        same_dataset: the run was on the same data set, so that ids and lesions can be compared; otherwise images of the ISIC archive,
            and lesions of HAM10000, are, by their ids.

    Returns:
        (N,) a key of `REASONS` each, the first that holds, or "".
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
    found = np.full(len(images), "", dtype=object)
    for reason, seen in (("lesion", lesion), ("image", image), ("pixels", pixels)):
        found[seen.to_numpy()] = reason
    return found


def count_seen(index: pd.DataFrame, split: pd.DataFrame, same_dataset: bool) -> int:
    """Count the test images that a segmenter learned from, or was chosen on, or whose lesion it did.

    Args:
        index: with roles.
        split: of the segmenter's run: image_id, lesion_id, role.
        same_dataset: as of `find_seen`.
    """
    test = index[index["role"] == "test"]
    return int((find_seen(test, split, same_dataset) != "").sum())
