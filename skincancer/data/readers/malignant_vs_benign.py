"""Reader for the Kaggle data set fanconic/skin-cancer-malignant-vs-benign."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from skincancer.data.image_files import ImageSearch, check_links
from skincancer.data.readers.folder import read_classes
from skincancer.errors import DataError


def read(root: Path) -> pd.DataFrame:
    """Read {train,test}/{benign,malignant}/*.jpg from the root or its data/.

    data/ is read only if the root has neither train/ nor test/, because Kaggle's archive can contain every image in
    both. One subset is enough. The publisher gives no lesion ids, so images of one lesion can be in both subsets of the
    published split.

    Returns:
        Columns image_id ("<part>/<class>/<stem>"), image, diagnosis, part.

    Raises:
        DataError: Both subsets or a class are missing, or a class folder contains no image.
    """
    base = next((path for path in (root, root / "data") if _parts(path)), root / "data")
    parts = _parts(base) or {"train": base / "train"}
    for folder in parts.values():
        for name in ("benign", "malignant"):
            if not (folder / name).is_dir():
                raise DataError(
                    f"malignant_vs_benign: the folder {folder / name} is missing. Expected under {root} (or its "
                    "data/): train/benign, train/malignant, test/benign, test/malignant; one of train and test is enough."
                )
    table = read_classes(base, parts, ImageSearch())
    return table.assign(image=[(base.relative_to(root) / image).as_posix() for image in table["image"]])


def _parts(base: Path) -> dict[str, Path]:
    check_links([base / "train", base / "test"])
    return {part: base / part for part in ("train", "test") if (base / part).is_dir()}
