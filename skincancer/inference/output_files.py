"""Files that predict writes: a table with one row per image, masks and overlays."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from skincancer.errors import ConfigError
from skincancer.imaging.decode import read_image
from skincancer.imaging.overlay import draw_overlay
from skincancer.imaging.types import Mask
from skincancer.inference.image_files import ImageEntry, Shard
from skincancer.inference.model import AnyModel
from skincancer.inference.predictor import Prediction
from skincancer.metrics.prediction_files import DIGITS

TASK3 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")  # columns of ISIC 2018 Task 3


class PredictionTable:
    """Table of predictions, appended row by row.

    Args:
        images: all images, also those of other shards. The folder of a file may be named after the class of the image.
        format: full, or isic for the table of ISIC 2018 Task 3 (no table for a segmenter).
        masks: whether images are cropped to masks or measured in them. The table then has a column with the mask source.
        shard: shard of the rows, part of the file name. None for all images.

    Raises:
        ConfigError: the format is isic and the classes are not those of ISIC 2018 Task 3.
    """

    def __init__(
        self,
        model: AnyModel,
        images: Sequence[ImageEntry],
        format: str,
        masks: bool = False,
        shard: Shard | None = None,
    ) -> None:
        # Processes on several machines may write into one folder.
        self.name = f"predictions_{shard.number}_of_{shard.count}.csv" if shard else "predictions.csv"
        self.classes, self.isic, self.segments = model.classes, format == "isic", model.segments
        self._truths = {name.casefold(): name for name in self.classes}
        if self.isic:
            positions = {name.upper(): number for number, name in enumerate(self.classes)}
            if self.classes and set(positions) != set(TASK3):
                raise ConfigError(
                    f"--format isic is the table of ISIC 2018 Task 3 with the classes {', '.join(TASK3)}; the classes of this "
                    f"run are {', '.join(self.classes)}. Use --format full."
                )
            self._order = [positions[name] for name in TASK3] if self.classes else []
            self.columns = ["image", *TASK3] if self.classes else []
            return
        has_truth = bool(self.classes) and any(self._truth(image.file) for image in images)
        self.columns = [
            "image_id", "file", *(["prediction"] if self.classes else []), *(["truth", "correct"] if has_truth else []),
            *(f"p_{name}" for name in self.classes), *(["width", "height", "lesion_share"] if model.segments else []),
            *(["masks"] if masks else []), "error",
        ]  # fmt: skip

    @contextlib.contextmanager
    def opened(self, out: Path) -> Iterator[PredictionTable]:
        """Open the table in a folder for `write`, unless the format has no table."""
        with contextlib.ExitStack() as stack:
            if self.columns:
                # A file name that is not valid UTF-8 is written with escapes.
                file: IO[str] = stack.enter_context(
                    open(out / self.name, "w", encoding="utf-8", errors="backslashreplace", newline="")
                )
                self._writer = csv.DictWriter(
                    file, self.columns, extrasaction="ignore", restval="", lineterminator="\n"
                )
                self._writer.writeheader()
            yield self

    def write(self, image_id: str, file: str, prediction: Prediction, lesion_share: float) -> None:
        """Append the row of an image (in the format isic only of readable images)."""
        if not self.columns:
            return
        if self.isic:
            if prediction.probability is not None:
                # "#" keeps the decimal point: the official scorer reads a column of whole numbers as text.
                values = [f"{prediction.probability[number]:#.9g}" for number in self._order]
                self._writer.writerow({"image": image_id, **dict(zip(TASK3, values, strict=True))})
            return
        row: dict[str, str | int] = {"image_id": image_id, "file": file, "masks": prediction.masks}
        if prediction.error:
            row["error"] = f"{file} {prediction.error}"
        elif self.segments:
            row |= {
                "width": prediction.view.width, "height": prediction.view.height, "lesion_share": DIGITS % lesion_share,
            }  # fmt: skip
        truth = self._truth(file)
        row["truth"] = truth
        if prediction.probability is not None:
            row["prediction"] = self.classes[int(prediction.probability.argmax())]
            row["correct"] = str(row["prediction"] == truth).upper() if truth else ""
            row |= {f"p_{name}": DIGITS % p for name, p in zip(self.classes, prediction.probability, strict=True)}
        self._writer.writerow(row)

    def _truth(self, file: str) -> str:
        return self._truths.get(Path(file).absolute().parent.name.casefold(), "")


def write_mask(mask: Mask, file: Path, image_id: str, out: Path, format: str) -> float:
    """Write a mask, and an overlay for the format full.

    Return the share of lesion pixels. `mask` is bool (H, W), of the original size of the image. `image_id` may contain folders.
    """
    path = (out if format == "isic" else out / "masks") / f"{image_id}_segmentation.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path, optimize=True)
    if format == "full":
        overlay = out / "overlays" / f"{image_id}_overlay.jpg"
        overlay.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_overlay(np.asarray(read_image(file)), None, mask)).save(overlay, quality=90)
    return float(mask.mean())
