"""What predict writes: a table with a row an image, appended as answers come, and masks with overlays."""

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
from skincancer.inference.model import AnyModel
from skincancer.inference.predictor import Answer
from skincancer.metrics.prediction_files import DIGITS

TABLE = "predictions.csv"
TASK3 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")  # columns of ISIC 2018 Task 3


class AnswerTable:
    """The table of answers of a run on images.

    Args:
        model: the run's.
        images: id and file of each; the folder of a file may be named after its class.
        format: full, or isic: the table of ISIC 2018 Task 3; of a segmenter none.
        masks: images are cut by masks, or measured in them: a column says by whose.

    Raises:
        ConfigError: isic, and the classes are others.
    """

    def __init__(self, model: AnyModel, images: Sequence[tuple[str, str]], format: str, masks: bool = False) -> None:
        self.classes, self.isic, self.segments = model.classes, format == "isic", model.segments
        self._truths = {name.casefold(): name for name in self.classes}
        if self.isic:
            given = {name.upper(): number for number, name in enumerate(self.classes)}
            if self.classes and set(given) != set(TASK3):
                raise ConfigError(
                    f"--format isic is the table of ISIC 2018 Task 3, of the classes {', '.join(TASK3)}; the classes of this "
                    f"run are {', '.join(self.classes)}. Use --format full."
                )
            self._order = [given[name] for name in TASK3] if self.classes else []
            self.columns = ["image", *TASK3] if self.classes else []
            return
        told = bool(self.classes) and any(self._truth(file) for _, file in images)
        self.columns = [
            "image_id", "file", *(["prediction"] if self.classes else []), *(["truth", "correct"] if told else []),
            *(f"p_{name}" for name in self.classes), *(["width", "height", "lesion_share"] if model.segments else []),
            *(["masks"] if masks else []), "error",
        ]  # fmt: skip

    @contextlib.contextmanager
    def opened(self, out: Path) -> Iterator[AnswerTable]:
        """Open `predictions.csv` in a folder for `write`; where there is no table, make none."""
        with contextlib.ExitStack() as stack:
            if self.columns:
                # a name that is no text in UTF-8 is written with escapes
                file: IO[str] = stack.enter_context(
                    open(out / TABLE, "w", encoding="utf-8", errors="backslashreplace", newline="")
                )
                self._writer = csv.DictWriter(
                    file, self.columns, extrasaction="ignore", restval="", lineterminator="\n"
                )
                self._writer.writeheader()
            yield self

    def write(self, image_id: str, file: str, answer: Answer, lesion_share: float) -> None:
        """Append the row of an image; in the format isic one without an answer has none."""
        if not self.columns:
            return
        if self.isic:
            if answer.probability is not None:
                # the scorer takes a column of whole numbers for text: #: with a point, always
                shown = [f"{answer.probability[number]:#.9g}" for number in self._order]
                self._writer.writerow({"image": image_id, **dict(zip(TASK3, shown, strict=True))})
            return
        row: dict[str, str | int] = {"image_id": image_id, "file": file, "masks": answer.masks}
        if answer.error:
            row["error"] = f"{file} {answer.error}"
        elif self.segments:
            row |= {"width": answer.view.width, "height": answer.view.height, "lesion_share": DIGITS % lesion_share}
        truth = self._truth(file)
        row["truth"] = truth
        if answer.probability is not None:
            row["prediction"] = self.classes[int(answer.probability.argmax())]
            row["correct"] = str(row["prediction"] == truth).upper() if truth else ""
            row |= {f"p_{name}": DIGITS % p for name, p in zip(self.classes, answer.probability, strict=True)}
        self._writer.writerow(row)

    def _truth(self, file: str) -> str:
        return self._truths.get(Path(file).absolute().parent.name.casefold(), "")


def write_mask(mask: Mask, file: Path, image_id: str, out: Path, format: str) -> float:
    """Write the mask of an image file, and in the format full an overlay; return the share of the image that is lesion.

    Args:
        mask: bool (height, width) of the image's size.
        file: the image.
        image_id: names what is written; it may hold folders.
        out: folder.
        format: full or isic.
    """
    path = (out if format == "isic" else out / "masks") / f"{image_id}_segmentation.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path, optimize=True)
    if format == "full":
        overlay = out / "overlays" / f"{image_id}_overlay.jpg"
        overlay.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_overlay(np.asarray(read_image(file)), None, mask)).save(overlay, quality=90)
    return float(mask.mean())
