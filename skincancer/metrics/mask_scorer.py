"""Masks of the original size from probabilities of the input size, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.errors import DataError
from skincancer.imaging.decode import BadImage, read_mask
from skincancer.imaging.mask_operations import clean_mask
from skincancer.imaging.preprocessing import Preprocessing, View
from skincancer.imaging.types import Mask
from skincancer.metrics.segmentation import binarise, mask_metrics


@dataclass(frozen=True)
class MaskRecipe:
    """Steps from probabilities to a mask, apart from the threshold."""

    preprocessing: Preprocessing
    largest_component: bool
    fill_holes: bool

    def mask(self, square: npt.NDArray[np.float32], view: View, threshold: float) -> Mask:
        """Return the mask, bool (height, width), of probabilities float32 (S, S)."""
        mask = binarise(self.preprocessing.restore(square, view), threshold)
        return clean_mask(mask, largest=self.largest_component, fill=self.fill_holes)


class MaskScorer:
    """Scores predicted masks against true masks, which are read from files.

    Args:
        index: the index, with the column `mask`.
        root: folder that the paths are relative to.
        recipe: steps from probabilities to masks.
        views: part of the original that each image shows, by row of the index.
    """

    def __init__(self, index: pd.DataFrame, root: Path, recipe: MaskRecipe, views: Sequence[View]) -> None:
        self.root, self.recipe, self._views = root, recipe, views
        self._paths = index["mask"].to_list()

    def truth(self, row: int) -> Mask:
        """Return the true mask of an image, bool (H, W).

        Raises:
            DataError: the file was changed or deleted after the store was built.
        """
        path = self.root / self._paths[row]
        try:
            return np.asarray(np.asarray(read_mask(path)) > 0)
        except BadImage as error:
            raise DataError(f"the mask {path} {error}; it was good when the data were prepared.") from error

    def probability(self, row: int, square: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Restore probabilities float32 (S, S) to the size of the image."""
        return self.recipe.preprocessing.restore(square, self._views[row])

    def mask(self, row: int, square: npt.NDArray[np.float32], threshold: float) -> Mask:
        """Return the predicted mask of an image at its size."""
        return self.recipe.mask(square, self._views[row], threshold)

    def score(self, row: int, square: npt.NDArray[np.float32], threshold: float) -> dict[str, float]:
        """Return every mask metric of an image."""
        return mask_metrics(self.truth(row), self.mask(row, square, threshold))
