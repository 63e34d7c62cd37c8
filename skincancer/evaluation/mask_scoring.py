"""From probabilities on the network's square to a mask of the original size: the one way, for fit's test, evaluate and predict alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.index import image_root
from skincancer.errors import DataError
from skincancer.evaluation.masks import Mask, binarise, mask_metrics
from skincancer.images.decode import BadImage, read_mask
from skincancer.images.geometry import from_square
from skincancer.images.postprocess import clean_mask

if TYPE_CHECKING:
    from skincancer.data.prepared import PreparedData
    from skincancer.schema import Experiment


@dataclass(frozen=True)
class MaskRecipe:
    """How probabilities become a mask, apart from the threshold: `resize` as on the way in; largest component and holes."""

    resize: str
    largest_component: bool
    fill_holes: bool

    def probability(self, square: npt.NDArray[np.float32], width: int, height: int) -> npt.NDArray[np.float32]:
        """Bring probabilities float32 (S, S) to the original size, float32 (height, width)."""
        # bilinear weights may sum to a little more than 1
        return from_square(square, width, height, self.resize).clip(0, 1)

    def mask(self, square: npt.NDArray[np.float32], width: int, height: int, threshold: float) -> Mask:
        """Bring probabilities float32 (S, S) to the original size, cut them, clean the mask: bool (height, width)."""
        mask = binarise(self.probability(square, width, height), threshold)
        return clean_mask(mask, largest=self.largest_component, fill=self.fill_holes)


class MaskScorer:
    """Scores masks of images of an index table against their true masks, which are read from their own files.

    Args:
        index: the table: `mask`, `width`, `height` (px), by row.
        root: folder that the paths are relative to.
        recipe: how probabilities become masks.
    """

    def __init__(self, index: pd.DataFrame, root: Path, recipe: MaskRecipe) -> None:
        self.root, self.recipe = root, recipe
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
        return self.recipe.probability(square, *self._sizes[row])

    def mask(self, row: int, square: npt.NDArray[np.float32], threshold: float) -> Mask:
        """Return the predicted mask of an image at its size."""
        return self.recipe.mask(square, *self._sizes[row], threshold)

    def score(self, row: int, square: npt.NDArray[np.float32], threshold: float) -> dict[str, float]:
        """Return every mask metric of an image."""
        return mask_metrics(self.truth(row), self.mask(row, square, threshold))


def build_scorer(data: PreparedData, experiment: Experiment) -> MaskScorer:
    """Return the scorer of prepared data, whose masks are made as an experiment says."""
    mask = experiment.model.mask
    recipe = MaskRecipe(experiment.data.resize, mask.largest_component, mask.fill_holes)
    return MaskScorer(data.index, image_root(data.root), recipe)
