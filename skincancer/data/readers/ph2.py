"""Reader for PH² (Mendonça et al. 2013): images, masks and clinical diagnoses."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from skincancer.data.image_files import ImageSearch
from skincancer.data.index import name_first
from skincancer.data.readers.files import check_match, find_folder
from skincancer.errors import DataError

IMAGES = "PH2 Dataset images"
TABLE = "PH2_dataset.txt"
# Codes of the column Clinical Diagnosis.
DIAGNOSES = {"0": "common_nevus", "1": "atypical_nevus", "2": "melanoma"}


def read(root: Path) -> pd.DataFrame:
    """Read images, masks and the table from PH2Dataset or its parent folder.

    A case is a folder such as `PH2 Dataset images/IMD002/`, with the image `IMD002_Dermoscopic_Image/IMD002.bmp` and
    the mask `IMD002_lesion/IMD002_lesion.bmp`. The masks of its colours (`IMD002_roi`) are ignored. The publisher gives
    no lesion ids and no split.

    Returns:
        Columns image_id, image, mask, diagnosis (the clinical diagnosis: common_nevus, atypical_nevus, melanoma).

    Raises:
        DataError: Images or table are missing, a case lacks its image or its mask, images and table have different
            cases, or the table cannot be parsed.
    """
    places = (root, find_folder(root, "PH2Dataset"))
    base = next((path for path in places if path and (path / IMAGES).is_dir()), None)
    if base is None:
        raise DataError(
            f"ph2: neither {root} nor {root / 'PH2Dataset'} contains the folder {IMAGES!r}; unpack the archive there"
        )
    cases = ImageSearch().list_folders(base / IMAGES)
    images = {case.name: case / f"{case.name}_Dermoscopic_Image" / f"{case.name}.bmp" for case in cases}
    masks = {case.name: case / f"{case.name}_lesion" / f"{case.name}_lesion.bmp" for case in cases}
    for paths, kind in ((images, "image"), (masks, "mask")):
        lacking = [path for path in paths.values() if not path.is_file()]
        if lacking:
            raise DataError(
                f"ph2: {len(lacking)} of {len(cases)} cases have no {kind}: "
                f"{name_first(path.relative_to(base) for path in lacking)}. Unpack the archive again."
            )
    diagnoses = _read_table(base)
    check_match(images, diagnoses, base / TABLE, f" Check that {base / IMAGES} is complete.")
    return pd.DataFrame(
        {
            "image_id": list(images),
            "image": [path.relative_to(root).as_posix() for path in images.values()],
            "mask": [path.relative_to(root).as_posix() for path in masks.values()],
            "diagnosis": [diagnoses[case] for case in images],
        }
    )


def _read_table(base: Path) -> dict[str, str]:
    """Parse the diagnosis of each case.

    The table has cells between ||, a header line, and a legend after the rows.
    """
    path = base / TABLE
    if not path.is_file():
        other = f" {path.with_suffix('.xlsx')} is not read." if path.with_suffix(".xlsx").is_file() else ""
        raise DataError(f"ph2: {path} is missing; unpack the archive again.{other}")
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    rows = [[cell.strip() for cell in line.split("||")] for line in lines if line.lstrip().startswith("||")]
    header = rows[0] if rows else []
    if "Name" not in header or "Clinical Diagnosis" not in header:
        raise DataError(f"{path} has no header line || Name || … || Clinical Diagnosis || …; use the publisher's file")
    name, code = header.index("Name"), header.index("Clinical Diagnosis")
    diagnoses: dict[str, str] = {}
    for row in rows[1:]:
        if len(row) <= code or row[code] not in DIAGNOSES or not row[name] or row[name] in diagnoses:
            raise DataError(
                f"{path}: the row {' || '.join(row).strip()!r} cannot be parsed; expected a unique name, and 0, 1 or "
                "2 as clinical diagnosis"
            )
        diagnoses[row[name]] = DIAGNOSES[row[code]]
    return diagnoses
