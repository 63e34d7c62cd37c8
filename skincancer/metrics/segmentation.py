"""Segmentation metrics of one image, and the search of the probability threshold.

Masks are bool (H, W), True in the lesion. Pixels are counted as TP, FP, FN, TN:

* `jaccard`: TP / (TP + FP + FN); 1 if both masks are empty.
* `dice`: 2 TP / (2 TP + FP + FN); 1 if both masks are empty.
* `thresholded_jaccard`: the jaccard, but 0 if below 0.65.
* `pixel_accuracy`: (TP + TN) / all pixels.
* `sensitivity`: TP / (TP + FN); 1 if the truth is empty.
* `specificity`: TN / (TN + FP); 1 if the truth is full.
* `hd95`: the larger of the two directed 95th percentiles of the distances from surface pixels of one mask to the nearest surface pixel
  of the other mask, in pixels, with linear interpolation. Surface pixels belong to the mask and have one of four neighbours outside
  the mask or image. 0 if both masks are empty; the diagonal of the image, √(H² + W²), if one mask is. MONAI's
  `HausdorffDistanceMetric` (percentile 95) and Metrics Reloaded (Maier-Hein et al., Nature Methods 21, 2024) use the same definition.
  medpy pools the distances of both directions before the percentile, so its values differ.

All except `hd95` are computed as by the scorer of the ISIC challenges, `isic-challenge-scoring`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.spatial import cKDTree

from skincancer.imaging.mask_operations import surface
from skincancer.imaging.types import Mask
from skincancer.metrics.names import MASK_METRICS

# The ISIC 2018 challenge counts masks below this jaccard as failed.
ACCEPTABLE_JACCARD = 0.65
THRESHOLDS = tuple(step / 20 for step in range(1, 20))


def mask_metrics(truth: Mask, prediction: Mask) -> dict[str, float]:
    """Compute the metrics `MASK_METRICS` of one image, never NaN.

    Raises:
        ValueError: masks that are not bool (H, W) with at least one pixel, or differ in shape.
    """
    _check_masks(truth, prediction)
    both, n_truth, n_prediction = _count(truth & prediction), _count(truth), _count(prediction)
    n_pixels = truth.size
    either = n_truth + n_prediction - both
    jaccard = _share(both, either)
    return {
        "jaccard": jaccard,
        "dice": _share(2 * both, n_truth + n_prediction),
        "thresholded_jaccard": jaccard if jaccard >= ACCEPTABLE_JACCARD else 0.0,
        "pixel_accuracy": (n_pixels - either + both) / n_pixels,
        "sensitivity": _share(both, n_truth),
        "specificity": _share(n_pixels - either, n_pixels - n_truth),
        "hd95": hd95(truth, prediction),
    }


def hd95(truth: Mask, prediction: Mask) -> float:
    """Return the Hausdorff distance (95th percentile) in pixels, as defined at the top.

    Raises:
        ValueError: masks that are not bool (H, W) with at least one pixel, or differ in shape.
    """
    _check_masks(truth, prediction)
    lesion = truth | prediction
    rows, columns = np.flatnonzero(lesion.any(axis=1)), np.flatnonzero(lesion.any(axis=0))
    if not len(rows):
        return 0.0
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    forward, backward = _surface_distances(truth[box], prediction[box])
    if not len(forward):
        return math.hypot(*truth.shape)
    return max(float(np.percentile(forward, 95)), float(np.percentile(backward, 95)))


def mean_metrics(table: pd.DataFrame, prefix: str = "") -> dict[str, float]:
    """Average every metric over the images.

    Args:
        table: one row per image, one column per metric of `MASK_METRICS`; NaN for images without a mask, which are left out.
        prefix: prefix of the column names, such as `mask_`.

    Returns:
        Column names and means; NaN if no image has a mask.

    Raises:
        ValueError: a missing column.
    """
    columns = [prefix + name for name in MASK_METRICS]
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"the table lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table))}")
    return {name: float(table[name].mean()) for name in columns}


def binarise(probability: npt.NDArray[np.float32], threshold: float) -> Mask:
    """Return the mask of probabilities of at least the threshold."""
    # A float64 scalar of numpy would raise the precision of the comparison.
    return probability >= float(threshold)


class ThresholdSearch:
    """Search of the threshold in `THRESHOLDS` with the highest mean jaccard.

    Images are added one at a time and not stored. `binarise` makes the masks, without cleaning.
    """

    def __init__(self) -> None:
        self.n_images = 0
        self._jaccard = np.zeros(len(THRESHOLDS))

    def add(self, probability: npt.NDArray[np.float32], truth: Mask) -> None:
        """Add one image.

        Args:
            probability: float32 (H, W) in [0, 1].
            truth: bool (H, W).

        Raises:
            ValueError: shapes that differ, a truth that is not bool, or a probability outside [0, 1].
        """
        _check_masks(truth, truth)
        if probability.shape != truth.shape:
            raise ValueError(f"probability has shape {probability.shape} and truth {truth.shape}; they must be equal")
        # The comparison is false for NaN too.
        if not (probability.min() >= 0 and probability.max() <= 1):
            raise ValueError(
                f"probabilities must lie in [0, 1], got {probability.min()} … {probability.max()}; "
                "apply a sigmoid to logits first"
            )
        # One comparison per threshold takes half the time of sorting pixels into bins, and is exact at the thresholds.
        above = probability[binarise(probability, THRESHOLDS[0])]
        above_in_truth = probability[truth]
        n_truth = _count(truth)
        for position, threshold in enumerate(THRESHOLDS):
            both = _count(binarise(above_in_truth, threshold))
            n_prediction = _count(binarise(above, threshold))
            self._jaccard[position] += _share(both, n_truth + n_prediction - both)
        self.n_images += 1

    @classmethod
    def merged(cls, searches: Iterable[ThresholdSearch]) -> ThresholdSearch:
        """Join searches over different images, such as those of all ranks."""
        together = cls()
        for search in searches:
            together.n_images += search.n_images
            together._jaccard += search._jaccard
        return together

    def best(self) -> tuple[float, float]:
        """Return the best threshold and its mean jaccard.

        Ties go to the threshold nearest to 0.5, then to the lower one.

        Raises:
            ValueError: no image was added.
        """
        if not self.n_images:
            raise ValueError("no image was added, so there is no best threshold; add validation images with masks")
        mean = self._jaccard / self.n_images
        # Values are rounded, because sums in another order may differ in the last digit.
        ranked = sorted(zip(THRESHOLDS, mean.tolist(), strict=True), key=lambda pair: _preference(*pair))
        return ranked[0]


def _preference(threshold: float, jaccard: float) -> tuple[float, float, float]:
    return -round(jaccard, 12), round(abs(threshold - 0.5), 6), threshold


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))


def _share(count: int, total: int) -> float:
    """Divide, with 1 for a total of 0."""
    return count / total if total else 1.0


def _check_masks(truth: Mask, prediction: Mask) -> None:
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.size:
            raise ValueError(f"{name} must be bool (H, W) with at least one pixel, got {mask.dtype} {mask.shape}")
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth has shape {truth.shape} and prediction {prediction.shape}; bring both to the image's size"
        )


def _surface_distances(truth: Mask, prediction: Mask) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return distances of surface pixels to the other surface. Empty masks have none."""
    surfaces = [np.argwhere(surface(mask)) for mask in (truth, prediction)]
    if not all(map(len, surfaces)):
        return np.empty(0), np.empty(0)
    # Median splits and tight boxes take longer to build than they save in these queries.
    trees = [cKDTree(pixels, balanced_tree=False, compact_nodes=False) for pixels in surfaces]
    return trees[1].query(surfaces[0])[0], trees[0].query(surfaces[1])[0]
