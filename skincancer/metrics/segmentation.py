"""Segmentation metrics of one image at its original resolution, and the threshold that makes a mask of probabilities.

Masks are bool (H, W), True in the lesion. With pixels counted as TP, FP, FN, TN:

* `jaccard`: TP / (TP + FP + FN); 1 where both masks are empty.
* `dice`: 2 TP / (2 TP + FP + FN); 1 where both masks are empty.
* `thresholded_jaccard`: the jaccard, but 0 where it is below 0.65.
* `pixel_accuracy`: (TP + TN) / all pixels.
* `sensitivity`: TP / (TP + FN); 1 where the truth is empty.
* `specificity`: TN / (TN + FP); 1 where the truth is full.
* `hd95`: the larger of the two directed 95th percentiles of the distances from each surface pixel of one mask to the
  nearest surface pixel of the other, in pixels; percentiles are interpolated linearly. The surface is the mask's own
  pixels with one of their four neighbours outside it (or outside the image). 0 where both masks are empty; the
  diagonal of the image, √(H² + W²), where one is. This is the definition of MONAI's `HausdorffDistanceMetric`
  (percentile 95) and of Metrics Reloaded (Maier-Hein et al., Nature Methods 21, 2024); medpy pools the distances of
  both directions before it takes the percentile, which gives other numbers.

All but `hd95` are those of the ISIC challenges as their scorer, `isic-challenge-scoring`, computes them.
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

ACCEPTABLE_JACCARD = 0.65  # the ISIC 2018 challenge counts a mask below it as failed
THRESHOLDS = tuple(step / 20 for step in range(1, 20))


def mask_metrics(truth: Mask, prediction: Mask) -> dict[str, float]:
    """Compute every metric of one image.

    Args:
        truth: bool (H, W).
        prediction: bool (H, W).

    Returns:
        The names in `MASK_METRICS`; none is ever NaN.

    Raises:
        ValueError: if a mask is not bool (H, W) with at least one pixel, or the two differ in shape.
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
    """Return the 95th percentile Hausdorff distance in pixels, as the module defines it.

    Raises:
        ValueError: if a mask is not bool (H, W) with at least one pixel, or the two differ in shape.
    """
    _check_masks(truth, prediction)
    lesion = truth | prediction
    rows, columns = np.flatnonzero(lesion.any(axis=1)), np.flatnonzero(lesion.any(axis=0))
    if not len(rows):
        return 0.0
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    there, back = _surface_distances(truth[box], prediction[box])
    if not len(there) or not len(back):
        return math.hypot(*truth.shape)
    return max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))


def mean_metrics(table: pd.DataFrame, prefix: str = "") -> dict[str, float]:
    """Average every metric over the images.

    Args:
        table: a row an image, with a column for each of `MASK_METRICS`; NaN in images that have no mask, which are left
            out.
        prefix: of the columns' names, such as `mask_`.

    Returns:
        The columns' names, prefix included, and their means; NaN where no image has a mask.

    Raises:
        ValueError: if a column is missing.
    """
    columns = [prefix + name for name in MASK_METRICS]
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"the table lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table))}")
    return {name: float(table[name].mean()) for name in columns}


def binarise(probability: npt.NDArray[np.float32], threshold: float) -> Mask:
    """Return the mask of probabilities: True from the threshold upwards, in the precision of the probabilities."""
    return probability >= float(threshold)  # a float64 scalar of numpy would raise the precision


class ThresholdSearch:
    """The threshold of `THRESHOLDS` with the highest mean jaccard over images that come one at a time.

    No image is kept. Masks are made as by `binarise`, at the size that is given, without cleaning.
    """

    def __init__(self) -> None:
        self.n_images = 0
        self._jaccard = np.zeros(len(THRESHOLDS))

    def add(self, probability: npt.NDArray[np.float32], truth: Mask) -> None:
        """Count one image.

        Args:
            probability: float32 (H, W) in [0, 1].
            truth: bool (H, W).

        Raises:
            ValueError: if the shapes differ, the truth is not bool or a probability is not in [0, 1].
        """
        _check_masks(truth, truth)
        if probability.shape != truth.shape:
            raise ValueError(f"probability has shape {probability.shape} and truth {truth.shape}; they must be equal")
        if not (probability.min() >= 0 and probability.max() <= 1):  # false for NaN too
            raise ValueError(
                f"probabilities must lie in [0, 1], given {probability.min()} … {probability.max()}; "
                "apply a sigmoid to logits first"
            )
        # A comparison a threshold takes half the time of one pass that sorts the pixels into bins, and is exact at the
        # thresholds themselves.
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
        """Return the search over the images of several, such as those of all ranks."""
        together = cls()
        for search in searches:
            together.n_images += search.n_images
            together._jaccard += search._jaccard
        return together

    def best(self) -> tuple[float, float]:
        """Return the threshold and its mean jaccard; of equally good ones that nearest to 0.5, then the lower.

        Raises:
            ValueError: if no image was added.
        """
        if not self.n_images:
            raise ValueError("no image was added, so there is no best threshold; add validation images with masks")
        mean = self._jaccard / self.n_images
        # rounded: two sums of the same values in another order may differ in the last digit
        ranked = sorted(zip(THRESHOLDS, mean.tolist(), strict=True), key=lambda pair: _preference(*pair))
        return ranked[0]


def _preference(threshold: float, jaccard: float) -> tuple[float, float, float]:
    return -round(jaccard, 12), round(abs(threshold - 0.5), 6), threshold


def _count(mask: Mask) -> int:
    return int(np.count_nonzero(mask))


def _share(part: int, whole: int) -> float:
    """Divide; 1 where there is nothing to find and nothing was found."""
    return part / whole if whole else 1.0


def _check_masks(truth: Mask, prediction: Mask) -> None:
    for name, mask in (("truth", truth), ("prediction", prediction)):
        if mask.dtype != np.bool_ or mask.ndim != 2 or not mask.size:
            raise ValueError(f"{name} must be bool (H, W) with at least one pixel, given {mask.dtype} {mask.shape}")
    if truth.shape != prediction.shape:
        raise ValueError(
            f"truth has shape {truth.shape} and prediction {prediction.shape}; bring both to the image's size"
        )


def _surface_distances(truth: Mask, prediction: Mask) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the distance of each surface pixel to the other mask's surface.

    Both arrays are empty if one mask is empty.
    """
    surfaces = [np.argwhere(surface(mask)) for mask in (truth, prediction)]
    if not all(map(len, surfaces)):
        return np.empty(0), np.empty(0)
    # Median splits and tight boxes take longer to build than they save in these queries.
    trees = [cKDTree(pixels, balanced_tree=False, compact_nodes=False) for pixels in surfaces]
    return trees[1].query(surfaces[0])[0], trees[0].query(surfaces[1])[0]
