"""Bootstrap over lesions, because images of one lesion are not independent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd


def bootstrap_weights(
    groups: Sequence[str] | npt.NDArray[np.str_], n_resamples: int, seed: int
) -> npt.NDArray[np.int32]:
    """Sample lesions, with all their images, with replacement.

    The number of lesions of each class varies between resamples, as it does between samples of patients. Lesions are sampled in the
    order of their sorted ids, so two runs that predict the same images get the same resamples, in any order of rows.

    Args:
        groups: (N,), lesion of each image.
        n_resamples: number R of resamples, at least 1.
        seed: random seed.

    Returns:
        Weights int32 (R, N): number of times that each resample contains each image.

    Raises:
        ValueError: groups are empty or incomplete, or n_resamples is below 1.
    """
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    lesion = lesion_numbers(groups, len(groups))
    n_lesions = lesion.max() + 1
    draws = np.random.default_rng(seed).integers(n_lesions, size=(n_resamples, n_lesions))
    draws += np.arange(n_resamples)[:, None] * n_lesions
    counts = np.bincount(draws.ravel(), minlength=n_resamples * n_lesions)
    return counts.reshape(n_resamples, n_lesions).astype(np.int32)[:, lesion]


def lesion_numbers(groups: Sequence[str] | npt.NDArray[np.str_], n_images: int) -> npt.NDArray[np.int64]:
    """Return the lesion (N,) of each image as a number.

    Lesions are numbered in the order of their sorted ids.

    Raises:
        ValueError: groups of another length, or without lesion.
    """
    group = np.asarray(groups)
    if group.shape != (n_images,) or not n_images:
        raise ValueError(f"groups must have shape ({n_images},), N at least 1, got {group.shape}")
    if pd.isna(group).any():
        raise ValueError(f"{pd.isna(group).sum()} images have no lesion; use the image id if the lesion is unknown")
    return np.unique(group.astype(str), return_inverse=True)[1].astype(np.int64)
