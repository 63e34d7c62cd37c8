"""Thumbnails and figures of a run for HTML reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from skincancer.data.prepare import PreparedData
from skincancer.runs.artifacts import figure_file
from skincancer.visualization.html import Cell, Part, Picture

# Width on a page in pixels.
THUMBNAIL = 72
# Figures with more bytes contain images and are embedded as JPEG.
_LARGE = 250_000
# Functions that map known image ids to RGB images, uint8 (H, W, 3).
Thumbnails = Callable[[Sequence[str]], Mapping[str, npt.NDArray[np.uint8]]]


def store_thumbnails(data: PreparedData) -> Thumbnails:
    """Return thumbnails of the prepared input images."""
    row_of = {image_id: row for row, image_id in enumerate(data.index["image_id"])}

    def find(image_ids: Sequence[str]) -> dict[str, npt.NDArray[np.uint8]]:
        squares = {name: Image.fromarray(data.store.images[row_of[name]]) for name in image_ids if name in row_of}
        # Screens of phones show two pixels for each pixel of the page.
        return {name: np.asarray(square.resize((2 * THUMBNAIL, 2 * THUMBNAIL))) for name, square in squares.items()}

    return find


def thumbnail_cells(thumbnails: Thumbnails, image_ids: Sequence[str]) -> list[Cell]:
    """Return the thumbnail of each image as a table cell, None for unknown images."""
    images = thumbnails(image_ids)
    return [
        Picture(images[name], f"thumbnail of {name}", width=THUMBNAIL) if name in images else None for name in image_ids
    ]


def embed_figure(folder: Path, name: str, caption: str) -> list[Part]:
    """Return a figure of a run for a page, empty without the figure."""
    path = folder / figure_file(name)
    if not path.is_file():
        return []
    if path.stat().st_size <= _LARGE:
        return [Picture(path, caption, caption)]
    with Image.open(path) as image:
        dpi = float(image.info.get("dpi", (96.0, 96.0))[0])
        return [Picture(np.asarray(image.convert("RGB")), caption, caption, round(image.width * 96 / dpi))]
