"""Crops to the lesion: the box of a mask with a margin, and where that mask comes from. Boxes are (left, top, right, bottom), px."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from skincancer.images.decode import ImageFile, read_image, read_truth
from skincancer.images.geometry import to_square
from skincancer.images.postprocess import clean_mask

Box = tuple[int, int, int, int]
Mask = npt.NDArray[np.bool_]

EMPTY = "empty"  # in place of whose mask it was, of an image without any lesion in it
SMALLEST_SHARE = 1 / 8  # of the image's shorter side
OTSU_SIDE = 512  # px: a threshold and a box need no more, and photographs have 6,000


@dataclass(frozen=True)
class Crop:
    """How a store crops its images.

    Args:
        masks: truth, otsu, or auto (truth, and otsu where there is none); a segmenter's boxes are given, and its name stands here.
        margin: on each side, as a share of the longer side of the mask's box.
    """

    masks: str
    margin: float


@dataclass(frozen=True)
class Cropped:
    """One cropped image: uint8 (S, S, 3); the original's width and height, px; the box, and whose mask it encloses."""

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int
    box: Box
    masks: str


def crop_box(mask: Mask, margin: float) -> Box | None:
    """Return the box of a mask with a margin: square, so that a lesion keeps its shape, wherever the image has room for it.

    A square that goes over an edge is moved into the image; one that is longer than a side of the image is cut to that side. None
    is smaller than an eighth of the image's shorter side: a segmenter's stray spot, enlarged, would show nothing.

    Args:
        mask: bool (H, W).
        margin: on each side, as a share of the longer side of the mask's box.

    Returns:
        None if the mask is empty.
    """
    spans = [np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1)]  # columns, rows
    if not len(spans[0]):
        return None
    ends = [(int(span[0]), int(span[-1]) + 1) for span in spans]
    side = max(round(max(high - low for low, high in ends) * (1 + 2 * margin)), round(min(mask.shape) * SMALLEST_SHARE))
    starts, lengths = [], []
    for (low, high), extent in zip(ends, mask.shape[::-1], strict=True):
        length = min(side, extent)
        starts.append(min(max((low + high - length) // 2, 0), extent - length))
        lengths.append(length)
    return starts[0], starts[1], starts[0] + lengths[0], starts[1] + lengths[1]


def otsu_mask(image: Image.Image) -> Mask:
    """Guess the lesion as what is dark: Otsu's threshold (1979) on the smoothed grey image, its largest component, holes filled.

    Components that touch a corner are left out, since a dermoscope's frame is dark there, unless there is nothing else.

    Args:
        image: RGB.

    Returns:
        bool (H, W); empty for an image of one colour.
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    small = image.convert("L")
    small.thumbnail((OTSU_SIDE, OTSU_SIDE))
    grey = ndimage.gaussian_filter(np.asarray(small, dtype=np.float32), sigma=min(small.size) / 100)
    if grey.max() - grey.min() < 1:
        return np.zeros((image.height, image.width), dtype=bool)
    dark = grey < threshold_otsu(grey)
    component, _ = ndimage.label(dark)
    inside = dark & ~np.isin(component, component[[0, 0, -1, -1], [0, -1, 0, -1]])
    mask = clean_mask(inside if inside.any() else dark, largest=True, fill=True)
    return np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))


def find_mask(picture: Image.Image, mask: Path | None, source: str) -> tuple[Mask, str]:
    """Return the lesion's mask in a picture, bool (H, W), and whose it is.

    Args:
        picture: RGB.
        mask: file of the true mask, where there is one.
        source: truth, otsu, or auto (truth, and otsu where there is none).

    Raises:
        BadImage: the mask cannot be read, or is of another size than its picture.
    """
    if source == "auto":
        source = "otsu" if mask is None else "truth"
    if source == "otsu":
        return otsu_mask(picture), source
    assert mask is not None, "checked before anything is built"
    return np.asarray(read_truth(mask, picture)) > 0, source


def decode_crop(
    image: ImageFile, mask: Path | None, size: int, resize: str, crop: Crop, given: Box | None = None
) -> Cropped:
    """Decode one image and cut it to its lesion, then bring that to the square; an image whose mask is empty stays whole.

    Args:
        image: file.
        mask: file of the true mask, where there is one.
        size: side of the square, px.
        resize: stretch, pad or crop, of what was cut out.
        crop: whose mask, and the margin.
        given: the box from a segmenter, where `crop.masks` names one; None if its mask is empty.

    Raises:
        BadImage: unreadable, or a mask of another size than its image.
    """
    picture = read_image(image)
    source, box = crop.masks, given
    if source in ("auto", "truth", "otsu"):
        lesion, source = find_mask(picture, mask, source)
        box = crop_box(lesion, crop.margin)
    whole = (0, 0, picture.width, picture.height)
    square = np.asarray(to_square(picture.crop(box) if box else picture, size, resize))
    return Cropped(square, picture.width, picture.height, box or whole, source if box else EMPTY)
