"""From probabilities on the network's square to a mask of the original size: the one way, for fit's test, evaluate and predict alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.errors import DataError
from skincancer.imaging.decode import BadImage, read_mask
from skincancer.imaging.geometry import from_square
from skincancer.imaging.mask_operations import clean_mask
from skincancer.imaging.types import Box, Mask
from skincancer.metrics.segmentation import binarise, mask_metrics


@dataclass(frozen=True)
class MaskRecipe:
    """How probabilities become a mask, apart from the threshold: `resize` as on the way in; largest component and holes."""

    resize: str
    largest_component: bool
    fill_holes: bool

    def probability(
        self, square: npt.NDArray[np.float32], width: int, height: int, box: Box | None = None
    ) -> npt.NDArray[np.float32]:
        """Bring probabilities float32 (S, S) to the original size, float32 (height, width).

        Args:
            square: the probabilities.
            width: of the original, px.
            height: of the original, px.
            box: of the original that the square shows, px, 0 outside it; None for all of it.
        """
        left, top, right, bottom = box or (0, 0, width, height)
        # bilinear weights may sum to a little more than 1
        inside = from_square(square, right - left, bottom - top, self.resize).clip(0, 1)
        if inside.shape == (height, width):
            return inside
        original = np.zeros((height, width), np.float32)
        original[top:bottom, left:right] = inside
        return original

    def mask(
        self, square: npt.NDArray[np.float32], width: int, height: int, threshold: float, box: Box | None = None
    ) -> Mask:
        """Bring probabilities, as `probability` does, to the original size, cut them, clean the mask: bool (height, width)."""
        mask = binarise(self.probability(square, width, height, box), threshold)
        return clean_mask(mask, largest=self.largest_component, fill=self.fill_holes)


class MaskScorer:
    """Scores masks of images of an index table against their true masks, which are read from their own files.

    Args:
        index: the table: `mask`, `width`, `height` (px), by row.
        root: folder that the paths are relative to.
        recipe: how probabilities become masks.
        boxes: what of its original an image shows (`Store.boxes`).
    """

    def __init__(self, index: pd.DataFrame, root: Path, recipe: MaskRecipe, boxes: Sequence[Box] | None = None) -> None:
        self.root, self.recipe = root, recipe
        self._boxes: Sequence[Box | None] = boxes or [None] * len(index)
        self._paths = index["mask"].to_list()
        self._sizes = list(zip(index["width"].astype(int), index["height"].astype(int), strict=True))

    def truth(self, row: int) -> Mask:
        """Return the true mask of an image, bool (H, W).

        Raises:
            DataError: its file has changed, or gone, since the store was made.
        """
        path = self.root / self._paths[row]
        try:
            return np.asarray(np.asarray(read_mask(path)) > 0)
        except BadImage as error:
            raise DataError(f"the mask {path} {error}; it was good when the data were prepared.") from error

    def probability(self, row: int, square: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Bring probabilities float32 (S, S) of an image to its size."""
        return self.recipe.probability(square, *self._sizes[row], self._boxes[row])

    def mask(self, row: int, square: npt.NDArray[np.float32], threshold: float) -> Mask:
        """Return the predicted mask of an image at its size."""
        return self.recipe.mask(square, *self._sizes[row], threshold, self._boxes[row])

    def score(self, row: int, square: npt.NDArray[np.float32], threshold: float) -> dict[str, float]:
        """Return every mask metric of an image."""
        return mask_metrics(self.truth(row), self.mask(row, square, threshold))
