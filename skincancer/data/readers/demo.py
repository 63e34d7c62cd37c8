"""Data set `demo`: synthetic dermoscopic images with masks, generated on first use.

Layout (metadata table, JPEG images, PNG masks), classes, class imbalance and repeated views of one lesion follow
HAM10000. Results on synthetic images have no medical meaning.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image

from skincancer.data.readers.demo_drawing import CLASSES, draw_lesion, draw_view
from skincancer.errors import DataError, nearest

# Increase the version whenever the drawing or LESIONS change, because the folder name contains it.
VERSION = 1

# Lesions per class: nv is the largest class as in HAM10000, and the rarest class has about 30 training images at 80:20.
LESIONS: Mapping[str, int] = {"nv": 150, "mel": 60, "bkl": 60, "bcc": 45, "akiec": 40, "vasc": 32, "df": 32}

# Shares of lesions with one, two and three images.
VIEWS = (0.60, 0.28, 0.12)

COLUMNS = ["image_id", "image", "mask", "diagnosis", "lesion_id", "age", "sex", "site", "dx_type"]
# Column names of HAM10000, and of the index.
_PUBLISHED = {"dx": "diagnosis", "localization": "site"}

# Age (mean, standard deviation) and shares of the confirmation methods (dx_type), roughly as in HAM10000.
_AGE = {
    "akiec": (67, 11),
    "bcc": (67, 13),
    "bkl": (64, 14),
    "df": (53, 13),
    "mel": (61, 15),
    "nv": (46, 15),
    "vasc": (51, 20),
}
_CONFIRMED: Mapping[str, Mapping[str, float]] = {
    "akiec": {"histo": 1},
    "bcc": {"histo": 1},
    "bkl": {"histo": 0.70, "consensus": 0.24, "confocal": 0.06},
    "df": {"histo": 0.5, "consensus": 0.5},
    "mel": {"histo": 1},
    "nv": {"follow_up": 0.55, "histo": 0.37, "consensus": 0.08},
    "vasc": {"histo": 0.5, "consensus": 0.5},
}
_SITES = {
    "back": 0.22,
    "lower extremity": 0.21,
    "trunk": 0.14,
    "upper extremity": 0.11,
    "abdomen": 0.10,
    "face": 0.08,
    "chest": 0.04,
    "foot": 0.03,
    "neck": 0.03,
    "scalp": 0.02,
    "unknown": 0.02,
}
_SEX = {"male": 0.54, "female": 0.44, "unknown": 0.02}


@dataclass(frozen=True)
class _Lesion:
    """Lesion to draw, numbered within its class."""

    diagnosis: str
    number: int
    views: int
    metadata: dict[str, str]


def default_root(cache: Path) -> Path:
    """Return the folder of this version of the demo, under `cache`."""
    return cache / f"demo-{VERSION}"


def draw(
    root: Path,
    lesions: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw the demo data set into `root`, unless it exists there.

    Every image has a separate random generator, seeded by (seed, class, lesion, view). The folder is renamed to `root`
    when it is complete. If several processes draw into one folder, one of them draws and the others wait.

    Args:
        root: Folder to create, with its parents.
        lesions: Number of lesions per class, 0 for absent classes. Default `LESIONS`, 645 images at seed 0.
        seed: Seed of the lesions, at least 0.
        progress: Called with (images drawn, all images) after each image.

    Raises:
        DataError: A class, a count or the seed is wrong, or `root` contains something else.
    """
    lesions = _checked(LESIONS if lesions is None else lesions)
    recipe = json.dumps({"version": VERSION, "seed": _checked_seed(seed), "lesions": lesions}, indent=2, sort_keys=True)
    root = Path(os.path.abspath(root))
    # The first check is outside the lock, because a lock needs a writable folder.
    if _is_drawn(root, recipe):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        # The previous owner of the lock may have drawn the data set.
        if _is_drawn(root, recipe):
            return
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DataError(
                f"{root} is not an empty folder and contains something other than the requested demo. "
                "Use an empty or new folder, or delete this one first."
            )
        partial = root.parent / f".{root.name}.partial"
        # A killed process may have left this folder. Under the lock, no other process uses it.
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _draw_all(partial, _plan(lesions, seed), seed, progress)
            (partial / "recipe.json").write_text(recipe)
            if root.exists():
                root.rmdir()
            partial.rename(root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def read(root: Path) -> pd.DataFrame:
    """Read a demo data set that `draw` wrote.

    Returns:
        One row per image, in the order of `image_id`: `image_id`, `image` and `mask` (paths relative to `root`),
        `diagnosis`, `lesion_id`, `age` (float64, NaN if unknown), `sex`, `site`, `dx_type` (str, "" if unknown).

    Raises:
        DataError: `root` contains no metadata.csv.
    """
    path = root / "metadata.csv"
    if not path.is_file():
        raise DataError(
            f"{root} contains no demo data set: metadata.csv is missing. Draw it with `prepare --data.dataset demo`."
        )
    table = pd.read_csv(path, dtype=str, keep_default_na=False).rename(columns=_PUBLISHED)
    table["image"] = "images/" + table["image_id"] + ".jpg"
    table["mask"] = "masks/" + table["image_id"] + "_segmentation.png"
    table["age"] = pd.to_numeric(table["age"]).astype("float64")
    return table[COLUMNS]


def _is_drawn(root: Path, recipe: str) -> bool:
    path = root / "recipe.json"
    return path.is_file() and path.read_text() == recipe


def _checked(lesions: Mapping[str, int]) -> dict[str, int]:
    for diagnosis, count in lesions.items():
        if diagnosis not in CLASSES:
            raise DataError(
                f"The demo has no class {diagnosis!r}; expected {', '.join(CLASSES)}.{nearest(diagnosis, CLASSES)}"
            )
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise DataError(
                f"The demo's number of lesions for {diagnosis!r} is {count!r}; expected an integer, 0 or more."
            )
    if not sum(lesions.values()):
        raise DataError("The demo's number of lesions is 0 for every class; set at least one class above 0.")
    return {diagnosis: lesions.get(diagnosis, 0) for diagnosis in CLASSES}


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"The demo's seed is {seed!r}; expected an integer, 0 or more.")
    return seed


def _generator(seed: int, diagnosis: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, list(CLASSES).index(diagnosis), *numbers])


def _choose(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def _plan(lesions: Mapping[str, int], seed: int) -> list[_Lesion]:
    """List all lesions in random order, so that image ids hide the class."""
    planned = []
    for diagnosis in CLASSES:
        for number in range(lesions[diagnosis]):
            rng = _generator(seed, diagnosis, number, 0)
            age = 5 * round(min(max(rng.normal(*_AGE[diagnosis]), 5), 85) / 5)
            metadata = {
                "dx": diagnosis,
                "dx_type": _choose(rng, _CONFIRMED[diagnosis]),
                "age": "" if rng.random() < 0.03 else f"{age:.1f}",
                "sex": _choose(rng, _SEX),
                "localization": _choose(rng, _SITES),
            }
            planned.append(_Lesion(diagnosis, number, 1 + int(rng.choice(len(VIEWS), p=VIEWS)), metadata))
    np.random.default_rng([seed, len(CLASSES)]).shuffle(planned)
    return planned


def _draw_all(folder: Path, planned: list[_Lesion], seed: int, progress: Callable[[int, int], None] | None) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    total = sum(lesion.views for lesion in planned)
    rows: list[dict[str, str]] = []
    for number, lesion in enumerate(planned, start=1):
        for image, mask in _views(lesion, seed):
            image_id = f"DEMO_{len(rows) + 1:07d}"
            image.save(folder / "images" / f"{image_id}.jpg", quality=92)
            mask.save(folder / "masks" / f"{image_id}_segmentation.png")
            rows.append({"lesion_id": f"LESION_{number:07d}", "image_id": image_id, **lesion.metadata})
            if progress is not None:
                progress(len(rows), total)
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)


def _views(lesion: _Lesion, seed: int) -> Iterator[tuple[Image.Image, Image.Image]]:
    layers = draw_lesion(lesion.diagnosis, _generator(seed, lesion.diagnosis, lesion.number, 1))
    for view in range(lesion.views):
        yield draw_view(layers, _generator(seed, lesion.diagnosis, lesion.number, 2 + view))
