"""Predict classes and masks of image files with a finished run.

`python -m skincancer.predict --run RUN PATH… --out DIR` writes a table, masks and overlays.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from skincancer.config.cli import parse_plain_flags
from skincancer.data.image_files import ImageSearch
from skincancer.errors import ConfigError, RunError
from skincancer.inference.image_files import ImageEntry, Shard, find_images, parse_shard
from skincancer.system.console import make_console, program, progress_bars, run_verb, warn
from skincancer.system.files import check_folder
from skincancer.system.interrupts import signals_as_interrupts

if TYPE_CHECKING:
    from skincancer.inference.predictor import Predictor

FORMATS = ("full", "isic")
# Number of unreadable files in the error message.
SHOWN = 20


@dataclass
class PredictResult:
    """Counts of the images of a call of `predict`.

    Attributes:
        bad: number of unreadable images; `errors` describes the first of them.
        total: number of images in all shards.
        table: file name of the table.
        empty: number of images with an empty mask.
        measured: whether the input of the model is features measured in masks.
        notes: sentences about skipped files.
    """

    images: int = 0
    bad: int = 0
    total: int = 0
    table: str = ""
    empty: int = 0
    measured: bool = False
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def predict(
    run: str,
    paths: Sequence[Path | str],
    out: Path,
    *,
    format: str = "full",
    masks: str | None = None,
    shard: str | None = None,
    uri: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PredictResult:
    """Write the predictions of a finished run for image files.

    The memory does not grow with the number of images. The format `full` writes `predictions.csv` with one row per image: image_id,
    file, error; for a classifier prediction, p_<class>…, and truth and correct (if folders are named after classes); for a segmenter
    width, height, lesion_share; for a run on crops or hand-crafted features masks (the mask source, empty without a lesion). A
    segmenter also writes `overlays/` and `masks/<image id>_segmentation.png`, 0 and 255, of the original size after EXIF rotation.
    For test images of the run, masks and probabilities are those of the test metrics. The format `isic` writes the files of the ISIC
    challenges: only masks for a segmenter, `predictions.csv` of ISIC 2018 Task 3 for a classifier of its seven classes.

    Args:
        run: run id, folder of artifacts, or registered model (NAME@ALIAS, models:/NAME/VERSION).
        paths: images, folders or patterns (`inference.image_files.find_images`).
        out: folder, created if needed.
        format: full or isic.
        masks: mask source for runs on crops or hand-crafted features, otsu or run:RUN. None for the source of the training images.
        shard: share of the images, such as 3/8. The table is then `predictions_3_of_8.csv`. None for all images.
        uri: MLflow store of the run.
        progress: callback with the numbers of finished and of all images.

    Raises:
        ConfigError: the format or the shard is wrong, format or `masks` do not fit the run, or `out` cannot be written.
        DataError: there is no image, a path does not exist, or two images have the same id.
        RunError: the run is unknown, or writing failed (for example, the disk is full).
        WeightsError: the checkpoint of the run cannot be used.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format is {format!r}; use one of {', '.join(FORMATS)}.")
    part = parse_shard(shard) if shard is not None else None
    search = ImageSearch(without=(out / "masks", out / "overlays"))
    images = find_images(paths, search)
    check_folder(out, "--out")
    from skincancer.inference.predictor import load_predictor
    from skincancer.runs.store import RunStore

    result = write_outputs(load_predictor(run, RunStore(uri), masks), images, out, format, part, progress)
    result.notes = search.describe()
    return result


def write_outputs(
    predictor: Predictor, images: Sequence[ImageEntry], out: Path, format: str = "full", shard: Shard | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PredictResult:  # fmt: skip
    """Write the predictions for images, or for one shard, into a folder."""
    from skincancer.imaging.crop import EMPTY
    from skincancer.inference.output_files import PredictionTable, write_mask
    from skincancer.inference.predictor import Prediction, map_in_order, memory_lock, thread_pool

    model = predictor.model
    # All images decide on the columns, so that the tables of all shards have the same columns.
    table = PredictionTable(
        model, images, format, predictor.preprocessing.crop is not None or predictor.measures, shard
    )
    result = PredictResult(total=len(images), table=table.name, measured=predictor.measures)
    images = shard.select(images) if shard else images

    def write(item: tuple[ImageEntry, Prediction]) -> tuple[ImageEntry, Prediction, float]:
        image, prediction = item
        if prediction.error or not model.segments:
            return image, prediction, 0.0
        with memory_lock(prediction.view.width * prediction.view.height):
            share = write_mask(predictor.mask(prediction), Path(image.file), image.image_id, out, format)
        return image, prediction, share

    try:
        with table.opened(out) as rows, thread_pool() as pool:
            predicted = zip(images, predictor.predict(Path(image.file) for image in images), strict=True)
            # Masks take long to write, so threads write them while the model predicts the next images.
            written = (
                map_in_order(pool, write, predicted, model.batch_size) if model.segments else map(write, predicted)
            )
            for image, prediction, share in written:
                rows.write(image.image_id, image.file, prediction, share)
                result.images += 1
                result.empty += prediction.masks == EMPTY
                if prediction.error:
                    result.bad += 1
                    result.errors += [f"{image.file} {prediction.error}"] if result.bad <= SHOWN else []
                if progress:
                    progress(result.images, len(images))
    except OSError as error:
        raise RunError(f"stopped after {result.images} of {len(images)} images: {error}") from error
    return result


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags of predict."""
    parser = argparse.ArgumentParser(
        prog=program("predict"), description=__doc__, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="images, folders of images, or quoted patterns")
    parser.add_argument(
        "--run", metavar="RUN", help="id of a finished run, folder of its artifacts, or registered model NAME@ALIAS"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for the table, masks and overlays")
    parser.add_argument(
        "--format", default="full", metavar="full|isic", help="isic: masks or table in the format of the ISIC challenges",
    )  # fmt: skip
    parser.add_argument(
        "--masks", metavar="otsu|run:RUN", help="mask source for runs on crops or hand-crafted features (default: as in training)",
    )  # fmt: skip
    parser.add_argument(
        "--shard", metavar="I/N", help="predict only share I of N of the images, from 1/N to N/N, on several machines",
    )  # fmt: skip
    parser.add_argument("--tracking.uri", dest="uri", metavar="URI", help="MLflow tracking store of the run")
    return parser


def _verb(argv: Sequence[str]) -> None:
    flags = parse_plain_flags(make_parser(), argv)
    if not flags.run or not flags.out:
        raise ConfigError("--run or --out is missing; use --run RUN --out DIR and images, folders or patterns.")
    console = make_console()
    with signals_as_interrupts(), progress_bars(console) as bars:
        result = predict(
            flags.run, flags.paths, Path(flags.out), format=flags.format, masks=flags.masks,
            shard=flags.shard, uri=flags.uri, progress=bars("predicting"),
        )  # fmt: skip
    if flags.shard:
        console.print(f"shard {flags.shard}: {result.images} of {result.total} images", markup=False)
    console.print(f"{result.images - result.bad} images answered, in {flags.out}", markup=False)
    for note in result.notes:
        console.print(note, markup=False)
    if result.empty:
        consequence = (
            "their features were replaced by the medians of the training images"
            if result.measured
            else "the model predicted the whole image"
        )
        column = "; column masks is empty there" if flags.format == "full" else ""
        message = f"the mask contains no lesion in {result.empty} of the images: {consequence}{column}."
        warn(console, "no lesion found", message)
    if result.bad:
        table = f"{result.table} names all" if flags.format == "full" else "use --format full for all"
        more = f"\n  … and {result.bad - SHOWN} more; {table}" if result.bad > SHOWN else ""
        errors = "\n  ".join(result.errors)
        raise RunError(
            f"{result.bad} of {result.images} images could not be read and have no prediction:\n  {errors}{more}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
