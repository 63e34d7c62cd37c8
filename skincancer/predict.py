"""A finished run on image files: `python -m skincancer.predict --run RUN_ID PATH… --out DIR`; masks of original size, and overlays."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer.errors import ConfigError, DataError, RunError
from skincancer.terminal import make_console, progress_bars, run_verb, signals_as_interrupts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from skincancer.models.trained_segmenter import TrainedSegmenter

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("full", "isic")


def predict(
    run: str,
    paths: Sequence[Path],
    out: Path,
    *,
    format: str = "full",
    uri: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Write a segmenter's masks of image files.

    A mask is `<image id>_segmentation.png`, 0 and 255, of the image's own size as its EXIF orientation shows it; the image id is the
    file's name without extension. Of the run's own test images they are the masks that its metrics were taken from.

    Args:
        run: id of a finished run, or a folder that holds its config.yaml and checkpoints/best.ckpt.
        paths: images, or folders that are searched for images (masks and superpixels of the publishers are left out).
        out: folder for masks (`isic`), or for `masks/`, `overlays/` and `predictions.csv` (`full`).
        format: full or isic.
        uri: tracking store of the run.
        progress: called with (done, total).

    Returns:
        A row an image: image_id file width height lesion_share error; a file that could not be read has an error and no mask.

    Raises:
        ConfigError: no such format, or `out` cannot be written.
        DataError: no image, a path that does not exist, or two images of one id.
        RunError: no such run, none that segments, or the disk is full.
    """
    if format not in FORMATS:
        raise ConfigError(f"--format is {format!r}; choose one of {', '.join(FORMATS)}.")
    files = find_images(paths)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made: {error}. Give a folder that can be written.") from error
    import pandas as pd

    from skincancer.models.trained_segmenter import TrainedSegmenter

    segmenter = TrainedSegmenter(run, uri, "predict")
    rows: list[dict[str, Any]] = []
    step = segmenter.batch_size
    try:
        for start in range(0, len(files), step):
            rows += _predict_batch(segmenter, files[start : start + step], out, format)
            if progress:
                progress(len(rows), len(files))
        table = pd.DataFrame(rows, columns=["image_id", "file", "width", "height", "lesion_share", "error"])
        if format == "full":
            table.to_csv(out / "predictions.csv", index=False)
    except OSError as error:
        raise RunError(f"stopped after {len(rows)} of {len(files)} images: {error}") from error
    return table


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the image files that paths name, folders searched through, each once and sorted within its folder.

    Raises:
        DataError: a path does not exist, a folder holds no image, or two images have the same id.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if _is_image(file)]
            if not inside:
                raise DataError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
        elif path.is_file():
            inside = [path]
        else:
            raise DataError(f"{path} does not exist; give image files or folders.")
        for file in inside:
            other = found.setdefault(file.stem, file)
            if other.resolve() != file.resolve():
                raise DataError(f"{other} and {file} have the same image id {file.stem}; give one of them.")
    if not found:
        raise DataError("no image was given; give image files or folders.")
    return list(found.values())


def _is_image(file: Path) -> bool:
    own = not file.stem.casefold().endswith(("_segmentation", "_superpixels"))
    return own and file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


def _predict_batch(segmenter: TrainedSegmenter, files: Sequence[Path], out: Path, format: str) -> list[dict[str, Any]]:
    import numpy as np

    from skincancer.images.decode import BadImage, decode

    rows, squares = [], []
    for file in files:
        row: dict[str, Any] = {"image_id": file.stem, "file": str(file), "error": ""}
        rows.append(row)
        try:
            square, _, row["width"], row["height"] = decode(file, None, segmenter.size, segmenter.resize)
            squares.append(square)
        except BadImage as error:
            row["error"] = f"{file} {error}"
    good = [row for row in rows if not row["error"]]
    if good:
        masks = segmenter.masks(np.stack(squares), [(row["width"], row["height"]) for row in good])
        for row, mask in zip(good, masks, strict=True):
            row["lesion_share"] = float(mask.mean())
            _write(Path(row["file"]), mask, out, format)
    return rows


def _write(file: Path, mask: npt.NDArray[np.bool_], out: Path, format: str) -> None:
    import numpy as np
    from PIL import Image

    from skincancer.evaluation.mask_figures import draw_overlay
    from skincancer.images.decode import read_image

    folder = out if format == "isic" else out / "masks"
    folder.mkdir(exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{file.stem}_segmentation.png", optimize=True)
    if format == "full":
        (out / "overlays").mkdir(exist_ok=True)
        overlay = draw_overlay(np.asarray(read_image(file)), None, mask)
        Image.fromarray(overlay).save(out / "overlays" / f"{file.stem}_overlay.jpg", quality=90)


def _verb(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m skincancer.predict", description=__doc__, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="images, or folders of images")
    parser.add_argument("--run", metavar="RUN_ID", help="a finished run's id, or a folder with its artifacts")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where masks and overlays go")
    parser.add_argument(
        "--format", default="full", metavar="full|isic", help="isic: masks alone, as the challenges take them"
    )
    parser.add_argument("--tracking.uri", dest="uri", metavar="URI", help="the tracking store of the run")
    try:
        given, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise ConfigError(f"command line: {error}") from error
    if unknown:
        raise ConfigError(
            f"command line: {unknown[0]} is not a known flag. Flags: --run --out --format --tracking.uri."
        )
    if not given.run or not given.out:
        raise ConfigError("give --run RUN_ID and --out DIR, and images or folders of images.")
    console = make_console()
    with signals_as_interrupts(), progress_bars(console) as bars:
        table = predict(
            given.run, given.paths, given.out, format=given.format, uri=given.uri,
            progress=bars("predicting"),
        )  # fmt: skip
    bad = table[table["error"] != ""]
    console.print(f"{len(table) - len(bad)} masks in {given.out}", markup=False)
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(table)} images could not be read and have no mask:\n  " + "\n  ".join(bad["error"])
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
