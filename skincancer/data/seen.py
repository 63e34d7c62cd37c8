"""Which images a run has seen: by the pixels that it was given, by id, and by lesion; for what must be new to it.

A digest is of an image as the store holds it, after resizing: a renamed copy of a file has the same one, at the same size, resizing,
cleaning and crop. A copy that was encoded or cut anew has another: that takes an audit of near-duplicates.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pandas as pd

DIGESTS_FILE = "digests.csv"
USED = ("train", "val")  # what a run learned from, and what chose its best epoch
SHARED_IDS = "ISIC_"  # an image of the ISIC archive has the same id in every data set that took it
SHARED_LESIONS = "HAM_"  # and a lesion of HAM10000
REASONS = {
    "pixels": "the same pixels as an image that the run was trained or chosen on",
    "image": "the run was trained or chosen on this image",
    "lesion": "the run was trained or chosen on another image of this lesion",
}


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
