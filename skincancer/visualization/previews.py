"""`prepare --show`: sheets of pictures of what an experiment does to training images."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from skincancer.errors import DataError
from skincancer.schema import Experiment
from skincancer.system.console import make_console

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from skincancer.data.prepare import PreparedData


SHOWN_IMAGES, CLEANED_IMAGES, LOOKED_AT = 6, 12, 60


def show_augment(data: PreparedData, experiment: Experiment, path: Path) -> Path:
    """Write a contact sheet of training images beside augmented ones, one image of each class first.

    Args:
        data: prepared.
        experiment: its `augment` section is shown; its `seed` draws.
        path: the PNG to write.
    """
    from skincancer.visualization.contact_sheets import augment_sheet

    rows, titles = _shown(data)
    masks = None if data.store.masks is None else data.store.masks[rows]
    return augment_sheet(data.store.images[rows], experiment.augment, path, titles, masks=masks, seed=experiment.seed)


def show_crop(data: PreparedData, experiment: Experiment, path: Path) -> Path:
    """Write a contact sheet of training images with the boxes that they were cropped to, beside their crops.

    Args:
        data: prepared, with crops.
        experiment: whatever it says of augmentation is not shown.
        path: the PNG to write.
    """
    import numpy as np

    from skincancer.data.index import image_root
    from skincancer.imaging.decode import read_image
    from skincancer.visualization.contact_sheets import crop_sheet

    rows, titles = _shown(data)
    originals = [np.asarray(read_image(image_root(data.root) / name)) for name in data.index["image"].iloc[rows]]
    boxes = [tuple(box) for box in data.store.table[["left", "top", "right", "bottom"]].iloc[rows].to_numpy().tolist()]
    return crop_sheet(originals, boxes, data.store.images[rows], path, titles)


def show_clean(data: PreparedData, experiment: Experiment, path: Path) -> Path:
    """Write a sheet of training images before and after cleaning, and between these what each step found; images where one acts first.

    Args:
        data: prepared.
        experiment: its `data.clean` is shown.
        path: the PNG to write.
    """
    import numpy as np

    from skincancer.data.index import image_root
    from skincancer.imaging.cleaning.steps import acts_on
    from skincancer.imaging.decode import read_image
    from skincancer.visualization.contact_sheets import clean_sheet

    rows, titles = _shown(data, LOOKED_AT)
    originals = [np.asarray(read_image(image_root(data.root) / name)) for name in data.index["image"].iloc[rows]]
    steps = experiment.data.clean
    acts = {name: [row for row, image in enumerate(originals) if acts_on(image, name)] for name in steps}
    # each step's images in turn, then whatever comes first
    turns = [row for some in itertools.zip_longest(*acts.values()) for row in some if row is not None]
    chosen = list(dict.fromkeys([*turns, *range(len(originals))]))[:CLEANED_IMAGES]
    found = ", ".join(f"{name} in {len(some)}" for name, some in acts.items())
    make_console().print(f"of the {len(originals)} images looked at, something is found by {found}", markup=False)
    originals, titles = [originals[row] for row in chosen], [titles[row] for row in chosen]
    return clean_sheet(originals, steps, path, titles)


def show_structures(data: PreparedData, experiment: Experiment, path: Path) -> Path:
    """Write a sheet of training images with the differential structures found in their lesions; empty masks are passed over.

    Args:
        data: prepared.
        experiment: its `data.masks` say whose masks are taken (truth, otsu or auto), its `data.clean` is done first.
        path: the PNG to write.

    Raises:
        DataError: true masks are asked for where there are none, an image or a mask cannot be used, or no mask shows a lesion.
    """
    from skincancer.data.feature_table import read_lesion
    from skincancer.data.index import image_root
    from skincancer.data.mask_sources import BY_NAME
    from skincancer.imaging.decode import BadImage, read_image
    from skincancer.visualization.contact_sheets import structure_sheet

    source = BY_NAME[experiment.data.masks].resolve(data.index, data.entry).name
    root = image_root(data.root)
    rows, titles = _shown(data)
    found = []
    for row, title in zip(rows, titles, strict=True):
        image, mask = data.index["image"].iloc[row], data.index["mask"].iloc[row]
        truth = None if mask is None else root / mask
        try:
            lesion, _ = read_lesion(read_image(root / image), truth, source, steps=experiment.data.clean)
        except BadImage as error:
            raise DataError(f"{root / image} {error}") from error
        if lesion.mask.any():
            found.append((lesion, title))
    if not found:
        raise DataError(f"the masks of {', '.join(titles)} are empty, so there is nothing to show.")
    lesions, named = zip(*found, strict=True)
    return structure_sheet(lesions, path, named)


def _shown(data: PreparedData, count: int = SHOWN_IMAGES) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Choose training images, one of each class first; return their rows and titles."""
    import numpy as np

    train = data.rows("train") if (data.index["role"] == "train").any() else data.rows("test")  # where nothing is split
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
