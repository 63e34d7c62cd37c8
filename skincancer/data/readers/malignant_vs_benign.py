"""Reader for the Kaggle set fanconic/skin-cancer-malignant-vs-benign (images of the ISIC Archive, two classes)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from skincancer.data.readers.folder import read_classes
from skincancer.errors import DataError


def read(root: Path) -> pd.DataFrame:
    """Read {train,test}/{benign,malignant}/*.jpg from the root, or from data/ under it where the root has no train/.

    (Kaggle's archive can hold both, and then every image twice.) The publisher names no lesions, so pictures of one
    lesion can stand on both sides of the published split.

    Returns:
        Columns image_id ("<part>/<class>/<stem>"), image, diagnosis, part.

    Raises:
        DataError: If a part or a class is missing, or a class folder holds no image.
    """
    base = root if (root / "train").is_dir() else root / "data"
    rows: list[dict[str, str]] = []
    for part in ("train", "test"):
        for name in ("benign", "malignant"):
            if not (base / part / name).is_dir():
                raise DataError(
                    f"malignant_vs_benign: there is no folder {base / part / name}. Expected under {root} (or its "
                    "data/): train/benign, train/malignant, test/benign, test/malignant."
                )
        rows += read_classes(base, base / part, part)
    table = pd.DataFrame(rows)
    return table.assign(image=[(base.relative_to(root) / image).as_posix() for image in table["image"]])
