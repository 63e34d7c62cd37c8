"""Preview sheets of training images (`prepare --show`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from skincancer.data.feature_table import read_lesion
from skincancer.data.index import image_root
from skincancer.data.mask_sources import BY_NAME
from skincancer.data.prepare import PreparedData
from skincancer.errors import DataError
from skincancer.imaging.cleaning.steps import acts_on
from skincancer.imaging.decode import BadImage, read_image
from skincancer.schema.experiment import Experiment
from skincancer.system.console import make_console
from skincancer.visualization.contact_sheets import augment_sheet, clean_sheet, crop_sheet, structure_sheet

# Images on a sheet, images on a sheet of cleaning, and images searched for examples of cleaning.
SHOWN_IMAGES, CLEANED_IMAGES, SEARCHED_IMAGES = 6, 12, 60


def show_augment(data: PreparedData, experiment: Experiment, path: Path) -> Path:
    """Write a contact sheet of training images next to augmented versions.

    The sheet begins with one image per class. `seed` of the experiment is the seed of the augmentation.
    """
    rows, titles = _choose_images(data)
    masks = None if data.store.masks is None else data.store.masks[rows]
    return augment_sheet(data.store.images[rows], experiment.augment, path, titles, masks=masks, seed=experiment.seed)


def show_crop(data: PreparedData, experiment: Experiment, path: Path) -> Path:
    """Write a contact sheet of training images and their crops.

    The images are not augmented.
    """
    rows, titles = _choose_images(data)
    originals = [np.asarray(read_image(image_root(data.root) / name)) for name in data.index["image"].iloc[rows]]
    boxes = [tuple(box) for box in data.store.table[["left", "top", "right", "bottom"]].iloc[rows].to_numpy().tolist()]
    return crop_sheet(originals, boxes, data.store.images[rows], path, titles)


def show_clean(data: PreparedData, experiment: Experiment, path: Path) -> Path:
    """Write a contact sheet of training images before, during and after cleaning.

    The sheet begins with images that the steps of `data.clean` change.
    """
    rows, titles = _choose_images(data, SEARCHED_IMAGES)
    originals = [np.asarray(read_image(image_root(data.root) / name)) for name in data.index["image"].iloc[rows]]
    steps = experiment.data.clean
    acts = {name: [row for row, image in enumerate(originals) if acts_on(image, name)] for name in steps}
    # One image per step in turn, then the other images in order.
    turns = [row for images in itertools.zip_longest(*acts.values()) for row in images if row is not None]
    chosen = list(dict.fromkeys([*turns, *range(len(originals))]))[:CLEANED_IMAGES]
    counts = ", ".join(f"{name} in {len(images)}" for name, images in acts.items())
    make_console().print(f"of {len(originals)} checked images, artefacts are found by {counts}", markup=False)
    originals, titles = [originals[row] for row in chosen], [titles[row] for row in chosen]
    return clean_sheet(originals, steps, path, titles)


def show_structures(data: PreparedData, experiment: Experiment, path: Path) -> Path:
    """Write a contact sheet of differential structures in training images.

    `data.masks` is the mask source (truth, otsu or auto). Images with an empty mask are left out.

    Raises:
        DataError: true masks are requested but missing, an image or mask is unusable, or all masks are empty.
    """
    source = BY_NAME[experiment.data.masks].resolve(data.index, data.entry).name
    root = image_root(data.root)
    rows, titles = _choose_images(data)
    titled = []
    for row, title in zip(rows, titles, strict=True):
        image, mask = data.index["image"].iloc[row], data.index["mask"].iloc[row]
        truth = None if mask is None else root / mask
        try:
            lesion, _ = read_lesion(read_image(root / image), truth, source, steps=experiment.data.clean)
        except BadImage as error:
            raise DataError(f"{root / image} {error}") from error
        if lesion.mask.any():
            titled.append((lesion, title))
    if not titled:
        raise DataError(f"the masks of {', '.join(titles)} are empty, so there is nothing to show.")
    lesions, lesion_titles = zip(*titled, strict=True)
    return structure_sheet(lesions, path, lesion_titles)


def _choose_images(data: PreparedData, count: int = SHOWN_IMAGES) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return rows and titles of training images, starting with one per class."""
    # Without a split all images have the role test.
    train = data.rows("train") if (data.index["role"] == "train").any() else data.rows("test")
    first_of_class = train.drop_duplicates("label").sort_values("label")
    chosen = list(first_of_class.index) + [row for row in train.index if row not in first_of_class.index]
    rows = np.array(chosen[:count], dtype=np.int64)
    picked = data.index.loc[rows]
    titles = [
        f"{image_id} ({diagnosis})" if diagnosis else image_id
        for image_id, diagnosis in zip(picked["image_id"], picked["diagnosis"], strict=True)
    ]
    return rows, titles


SHEETS: dict[str, Callable[[PreparedData, Experiment, Path], Path]] = {
    "augment": show_augment,
    "crop": show_crop,
    "clean": show_clean,
    "structures": show_structures,
}
