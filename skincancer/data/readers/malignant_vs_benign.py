"""Reader for the Kaggle data set fanconic/skin-cancer-malignant-vs-benign."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from skincancer.data.readers.folder import read_classes
from skincancer.errors import DataError


def read(root: Path) -> pd.DataFrame:
    """Read {train,test}/{benign,malignant}/*.jpg from the root or its data/.

    data/ is read only if the root has no train/, because Kaggle's archive can contain every image in both. The
    publisher gives no lesion ids, so images of one lesion can be in both subsets of the published split.

    Returns:
        Columns image_id ("<part>/<class>/<stem>"), image, diagnosis, part.

    Raises:
        DataError: A subset or a class is missing, or a class folder contains no image.
    """
    base = root if (root / "train").is_dir() else root / "data"
    rows: list[dict[str, str]] = []
    for part in ("train", "test"):
        for name in ("benign", "malignant"):
            if not (base / part / name).is_dir():
                raise DataError(
                    f"malignant_vs_benign: the folder {base / part / name} is missing. Expected under {root} (or its "
                    "data/): train/benign, train/malignant, test/benign, test/malignant."
                )
        rows += read_classes(base, base / part, part)
    table = pd.DataFrame(rows)
    return table.assign(image=[(base.relative_to(root) / image).as_posix() for image in table["image"]])
