"""A finished run on image files: `python -m skincancer.predict --run RUN PATH… --out DIR`; classes in a table, masks, overlays."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from skincancer.errors import ConfigError, RunError
from skincancer.inference.image_files import find_images
from skincancer.system.console import make_console, program, progress_bars, run_verb, warn
from skincancer.system.files import check_folder
from skincancer.system.interrupts import signals_as_interrupts

if TYPE_CHECKING:
    from skincancer.inference.predictor import Answerer


FORMATS = ("full", "isic")
SHOWN = 20  # bad files that are named at the end; the table names all


@dataclass
class Predicted:
    """What predict did: how many images it was given, and how many of them could not be used, with what was wrong with the first ones.

    `lost` counts answers on images in whose masks there is no lesion, and `measured` says that features were to be measured there.
    """

    images: int = 0
    bad: int = 0
    lost: int = 0
    measured: bool = False
    errors: list[str] = field(default_factory=list)


def predict(
    run: str,
    paths: Sequence[Path | str],
    out: Path,
    *,
    format: str = "full",
    masks: str | None = None,
    uri: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Write what a finished run says of image files: a row an image as they come, in the same memory for any number of images.

    `full` writes `predictions.csv`: image_id, file; of a classifier prediction, truth and correct (where folders are named after
    classes), p_<class>…; of a segmenter width, height, lesion_share; of a run on crops or hand-made features masks (whose; empty where
    they show no lesion); error. A segmenter also writes `masks/<image id>_segmentation.png`,
    0 and 255, of the image's own size as its EXIF orientation shows it, and `overlays/`. Of the run's own test images they are the
    masks and the probabilities that its metrics were taken from. `isic` writes what the challenges take: of a segmenter masks
    alone, of a classifier of their seven classes `predictions.csv` as ISIC 2018 Task 3 has it.

    Args:
        run: id of a finished run, a folder of its artifacts, or a registered model (NAME@ALIAS, models:/NAME/VERSION).
        paths: images, folders or patterns: see `data.image_files.find_images`.
        out: folder.
        format: full or isic.
        masks: of a run on crops or hand-made features: whose masks, otsu or run:RUN; None for the run's own way.
        uri: tracking store of the run.
        progress: called with (done, total).

    Raises:
        ConfigError: no such format, it or `masks` does not fit the run, or `out` cannot be written.
        DataError: no image, a path that does not exist, or two images of one id.
        RunError: no such run, or writing failed (the disk is full).
        WeightsError: the run's checkpoint cannot be used.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format is {format!r}; choose one of {', '.join(FORMATS)}.")
    images = find_images(paths, without=(out / "masks", out / "overlays"))
    check_folder(out, "--out")
    from skincancer.inference.predictor import load_answerer
    from skincancer.runs.store import RunStore

    return write_answers(load_answerer(run, RunStore(uri), masks), images, out, format, progress)


def write_answers(
    answerer: Answerer, images: Sequence[tuple[str, str]], out: Path, format: str = "full",
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:  # fmt: skip
    """Write answers on images, each an id and a file, into a folder that is there: see `predict`."""
    from skincancer.imaging.crop import EMPTY
    from skincancer.inference.output_files import AnswerTable, write_mask
    from skincancer.inference.predictor import Answer, closing_pool, in_order, room_for

    model, said = answerer.model, Predicted(measured=answerer.measures)
    table = AnswerTable(model, images, format, answerer.preprocessing.crop is not None or answerer.measures)

    def write(given: tuple[tuple[str, str], Answer]) -> tuple[tuple[str, str], Answer, float]:
        (image_id, file), answer = given
        if answer.error or not model.segments:
            return (image_id, file), answer, 0.0
        with room_for(answer.view.width * answer.view.height):
            share = write_mask(answerer.mask(answer), Path(file), image_id, out, format)
        return (image_id, file), answer, share

    try:
        with table.opened(out) as rows, closing_pool() as pool:
            answered = zip(images, answerer.answers(Path(file) for _, file in images), strict=True)
            # rows alone are written in no time; masks are worked on beside the model
            written = in_order(pool, write, answered, model.batch_size) if model.segments else map(write, answered)
            for image, answer, share in written:
                rows.write(*image, answer, share)
                said.images += 1
                said.lost += answer.masks == EMPTY
                if answer.error:
                    said.bad += 1
                    said.errors += [f"{image[1]} {answer.error}"] if said.bad <= SHOWN else []
                if progress:
                    progress(said.images, len(images))
    except OSError as error:
        raise RunError(f"stopped after {said.images} of {len(images)} images: {error}") from error
    return said


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of predict's flags."""
    parser = argparse.ArgumentParser(
        prog=program("predict"), description=__doc__, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="images, folders of images, or quoted patterns")
    parser.add_argument(
        "--run", metavar="RUN", help="a finished run's id, a folder of its artifacts, or a registered model NAME@ALIAS"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the table, masks and overlays go")
    parser.add_argument(
        "--format", default="full", metavar="full|isic", help="isic: masks or the table as the challenges take them"
    )
    parser.add_argument(
        "--masks",
        metavar="otsu|run:RUN",
        help="of a run on crops or hand-made features: whose masks cut the images, or are measured in (default: the run's own way)",
    )
    parser.add_argument("--tracking.uri", dest="uri", metavar="URI", help="the tracking store of the run")
    return parser


def _verb(argv: Sequence[str]) -> None:
    try:
        given, unknown = make_parser().parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise ConfigError(f"command line: {error}") from error
    if unknown:
        raise ConfigError(
            f"command line: {unknown[0]} is not a known flag. Flags: --run --out --format --masks --tracking.uri."
        )
    if not given.run or not given.out:
        raise ConfigError("give --run RUN and --out DIR, and images, folders or patterns.")
    console = make_console()
    with signals_as_interrupts(), progress_bars(console) as bars:
        said = predict(
            given.run, given.paths, given.out, format=given.format, masks=given.masks, uri=given.uri,
            progress=bars("predicting"),
        )  # fmt: skip
    console.print(f"{said.images - said.bad} images answered, in {given.out}", markup=False)
    if said.lost:
        made = (
            "nothing could be measured in them, and the answer is that for an image like the median of the training images"
            if said.measured
            else "they were shown to the model whole"
        )
        where = "; column masks is empty there" if given.format == "full" else ""
        warn(console, "no lesion found", f"in {said.lost} of the images the mask shows no lesion: {made}{where}.")
    if said.bad:
        table = "predictions.csv names all" if given.format == "full" else "--format full names all"
        more = f"\n  … and {said.bad - SHOWN} more; {table}" if said.bad > SHOWN else ""
        raise RunError(
            f"{said.bad} of {said.images} images could not be read and have no answer:\n  "
            + "\n  ".join(said.errors)
            + more
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
