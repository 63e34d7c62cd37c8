"""The embedded data set `demo`: synthetic dermoscopy with masks, drawn on first use, so that a bare machine will do.

It is laid out like HAM10000 (a metadata table, JPEG images, PNG masks) and has its seven classes, its imbalance, its
several views of one lesion. Every figure obtained on it is one on synthetic images and says nothing about skin.
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

VERSION = 1  # raise it whenever the drawing or LESIONS change: the folder's name follows it

# Lesions a class: nv leads as in HAM10000, while the rarest still leave some 30 training images at 80:20.
LESIONS: Mapping[str, int] = {"nv": 150, "mel": 60, "bkl": 60, "bcc": 45, "akiec": 40, "vasc": 32, "df": 32}

VIEWS = (0.60, 0.28, 0.12)  # shares of lesions with one, two and three images

COLUMNS = ["image_id", "image", "mask", "diagnosis", "lesion_id", "age", "sex", "site", "dx_type"]
_PUBLISHED = {"dx": "diagnosis", "localization": "site"}  # HAM10000's name -> ours

# Mean and deviation of age, and how the diagnosis was confirmed: as HAM10000 has it, roughly.
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
    """A lesion to draw; `number` counts within its class: it looks the same however many others are asked for."""

    diagnosis: str
    number: int
    views: int
    metadata: dict[str, str]


def default_root(cache: Path) -> Path:
    """Return the folder under `cache` where this version of the demo is drawn."""
    return cache / f"demo-{VERSION}"


def draw(
    root: Path,
    lesions: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Draw the demo data set into `root`; does nothing where the same one is already there.

    Every image has a generator of its own, seeded by (seed, class, lesion, view). The folder appears under its name
    only when it is complete; of several processes that draw into one folder, one draws and the others wait.

    Args:
        root: the folder to make; its parents are made too.
        lesions: number of lesions a class (classes left out get none); default `LESIONS`, 645 images at seed 0.
        seed: 0 or more; another seed gives other lesions.
        progress: called as `progress(images drawn, images in all)` after each image.

    Raises:
        DataError: if a class or a count is wrong, or `root` holds something else.
    """
    lesions = _checked(LESIONS if lesions is None else lesions)
    recipe = json.dumps({"version": VERSION, "seed": _checked_seed(seed), "lesions": lesions}, indent=2, sort_keys=True)
    root = Path(os.path.abspath(root))
    if _is_drawn(root, recipe):  # before the lock, which needs a folder that can be written to
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.parent / f".{root.name}.lock"):
        if _is_drawn(root, recipe):  # by the process that held the lock before
            return
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DataError(
                f"{root} is not an empty folder and holds something other than the demo asked for. "
                "Give an empty or new folder, or remove that one first."
            )
        partial = root.parent / f".{root.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed draw: nobody else can be at work under the lock
        try:
            _draw_all(partial, _plan(lesions, seed), seed, progress)
            (partial / "recipe.json").write_text(recipe)
            if root.exists():
                root.rmdir()
            partial.rename(root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def read(root: Path) -> pd.DataFrame:
    """Read a drawn demo.

    Args:
        root: the folder that `draw` made.

    Returns:
        One row an image, in the order of `image_id`: `image_id`, `image` and `mask` (paths relative to `root`),
        `diagnosis`, `lesion_id`, `age` (float64, NaN where unknown), `sex`, `site`, `dx_type` (str, "" where empty).

    Raises:
        DataError: if `root` holds no metadata.csv.
    """
    path = root / "metadata.csv"
    if not path.is_file():
        raise DataError(
            f"{root} holds no demo data set: metadata.csv is missing. Draw it with `prepare --data.dataset demo`."
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
                f"The demo has no class {diagnosis!r}; it has {', '.join(CLASSES)}.{nearest(diagnosis, CLASSES)}"
            )
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise DataError(
                f"The demo's number of lesions for {diagnosis!r} is {count!r}; give a whole number, 0 or more."
            )
    if not sum(lesions.values()):
        raise DataError("The demo was asked for no lesion at all; give at least one class a number above 0.")
    return {diagnosis: lesions.get(diagnosis, 0) for diagnosis in CLASSES}


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"The demo's seed is {seed!r}; give a whole number, 0 or more.")
    return seed


def _generator(seed: int, diagnosis: str, *numbers: int) -> np.random.Generator:
    return np.random.default_rng([seed, list(CLASSES).index(diagnosis), *numbers])


def _choose(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


def _plan(lesions: Mapping[str, int], seed: int) -> list[_Lesion]:
    """All lesions in a shuffled order, so that image ids say nothing about the class."""
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
    drawn = draw_lesion(lesion.diagnosis, _generator(seed, lesion.diagnosis, lesion.number, 1))
    for view in range(lesion.views):
        yield draw_view(drawn, _generator(seed, lesion.diagnosis, lesion.number, 2 + view))
