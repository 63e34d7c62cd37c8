"""Thumbnails of images for reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from skincancer.data.prepare import PreparedData
from skincancer.runs.finished import THUMBNAIL, Thumbnails


def store_thumbnails(data: PreparedData) -> Thumbnails:
    """Return thumbnails from the prepared store: the squares that the network sees."""
    row_of = {image_id: row for row, image_id in enumerate(data.index["image_id"])}

    def find(image_ids: Sequence[str]) -> dict[str, npt.NDArray[np.uint8]]:
        squares = {name: Image.fromarray(data.store.images[row_of[name]]) for name in image_ids if name in row_of}
        # twice the pixels that are shown, for the screens of phones
        return {name: np.asarray(square.resize((2 * THUMBNAIL, 2 * THUMBNAIL))) for name, square in squares.items()}

    return find
