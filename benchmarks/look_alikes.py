"""Measure recall and false pairs of the near-duplicate search.

    python benchmarks/look_alikes.py --dataset ham10000 --root FOLDER --images 1000

The images, at most one per lesion, are changed into look-alikes: different lesions with the same surroundings. Each is compared as the
audit does (two thumbnails of 96 px), and as `evaluate` does with the fingerprints of a run (thumbnails of 96 and 36 px).

Recall: share of edited copies that are found together with their original. The edits are those of `audit.py`. False pairs: pairs of
different lesions by their correlation, without pairs that are near-duplicates in the unchanged images. Lesions are cut out by their mask,
or by Otsu's threshold without a mask. `--pairs FILE` writes the pairs of all images of the data set, unchanged, as a table.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw
from side_by_side import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from audit import EDITS, compress

from skincancer.data.duplicates import find_near
from skincancer.data.index import image_root, load_index
from skincancer.data.mask_sources import mask_files
from skincancer.data.prepare import locate_dataset
from skincancer.imaging.decode import read_image, read_truth
from skincancer.imaging.mask_operations import otsu_mask
from skincancer.imaging.similarity import cut, thumbnail, trim
from skincancer.imaging.types import Mask
from skincancer.schema.data import DataConfig

BANDS = (0.9, 0.91, 0.92, 0.93, 0.94, 0.96, 1.01)
AUDIT, FINGERPRINT = 96, 36  # Sides of thumbnails, px.
DARK = (14, 12, 10)


def cut_out(image: Image.Image, mask: Mask) -> Image.Image:
    """Put the lesion on black ground."""
    return Image.composite(image, Image.new("RGB", image.size), Image.fromarray(mask))


def slide_frame(image: Image.Image, _: Mask) -> Image.Image:
    """Put the image into a slide mount with round corners and a ruler."""
    width, height = image.size
    depth, window = round(0.16 * min(image.size)), Image.new("L", image.size)
    box = (depth, depth, width - depth, height - depth)
    ImageDraw.Draw(window).rounded_rectangle(box, radius=depth * 3 // 4, fill=255)
    return _rule(Image.composite(image, Image.new("RGB", image.size, DARK), _soft(window, 0.008)))


def vignette(image: Image.Image, _: Mask) -> Image.Image:
    """Put the image into the circular vignette of a dermoscope with a ruler."""
    width, height = image.size
    radius, window = round(0.46 * min(image.size)), Image.new("L", image.size)
    box = (width // 2 - radius, height // 2 - radius, width // 2 + radius, height // 2 + radius)
    ImageDraw.Draw(window).ellipse(box, fill=255)
    return _rule(Image.composite(image, Image.new("RGB", image.size), _soft(window, 0.015)))


def plain_skin(image: Image.Image, mask: Mask) -> Image.Image:
    """Put the darkened lesion on skin of one colour, with noise."""
    pixels = np.asarray(image, dtype=np.float32)
    skin = Image.new("RGB", image.size, tuple(round(value) for value in pixels[~mask].mean(axis=0)))
    dark = image.point(lambda value: round(0.6 * value))
    plain = Image.composite(dark, skin, _soft(Image.fromarray(mask).convert("L"), 0.01))
    noise = np.random.default_rng(int(pixels.sum())).normal(0, 2, pixels.shape)
    return Image.fromarray((np.asarray(plain) + noise).clip(0, 255).astype(np.uint8))


def _soft(window: Image.Image, share: float) -> Image.Image:
    return Image.fromarray(cv2.GaussianBlur(np.asarray(window), (0, 0), share * min(window.size)))


def _rule(image: Image.Image) -> Image.Image:
    draw, (width, height) = ImageDraw.Draw(image), image.size
    for tick in range(12):
        across, top = round((0.2 + 0.05 * tick) * width), 0.78 if tick % 5 else 0.74
        draw.line((across, round(0.84 * height), across, round(top * height)), fill=DARK, width=max(1, width // 200))
    return image


KINDS: dict[str, Callable[[Image.Image, Mask], Image.Image]] = {
    "unchanged": lambda image, _: image,
    "cut out on black": cut_out,
    "slide frame": slide_frame,
    "vignette": vignette,
    "plain skin": plain_skin,
}


def measure(kind: str, files: list[tuple[Path, Path | None]], side: int, known: set[tuple[int, int]]) -> str:
    """Compare look-alikes with each other and with edited copies, and describe the result.

    Args:
        kind: key of `KINDS`.
        files: image file and mask file of each lesion.
        side: side of the thumbnails of the originals, px.
        known: near-duplicates in the unchanged images. Those of the kind "unchanged" are added.
    """
    rng, names = np.random.default_rng(0), list(EDITS)
    own, copies, original = [], [], []
    for number, (path, mask) in enumerate(files):
        image = read_image(path)
        lesion = otsu_mask(image) if mask is None else np.asarray(read_truth(mask, image)) > 0
        if not 0.02 < lesion.mean() < 0.8:
            continue
        image = compress(KINDS[kind](image, lesion), 90)
        copy = compress(EDITS[names[number % len(names)]](image, rng), 90)
        original.append(number)
        own.append(thumbnail(np.asarray(image), AUDIT))
        copies.append(thumbnail(np.asarray(copy), AUDIT))
    if len(own) < 2:
        raise SystemExit("fewer than two images have a lesion of 2 to 80 % of the image")
    if side == AUDIT:
        thumbs = np.stack(own)
        among, near = find_near(thumbs), find_near(np.stack(copies), thumbs)
    else:
        thumbs, edited = (np.stack([trim(thumb) for thumb in grey]) for grey in (own, copies))
        fingerprints = np.stack([cut(thumb, 0, side) for thumb in thumbs])
        among, near = find_near(thumbs, fingerprints), find_near(edited, fingerprints)
    pairs = {
        (original[row], original[other]): value for row, other, value in among.itertuples(index=False) if row < other
    }
    if kind == "unchanged":
        known |= set(pairs)
    false = [value for pair, value in pairs.items() if pair not in known]
    recall = float((near["first"] == near["second"]).sum()) / len(own)
    counts = " ".join(f"{count:>9}" for count in np.histogram(false, BANDS)[0])
    return f"{kind:<17} {len(own):>6}  {recall:>6.4f}  {len(false):>5} {counts}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--root", help="folder of the data set; not needed for the demo")
    parser.add_argument("--images", type=int, default=200, help="number of images, at most one per lesion")
    parser.add_argument("--pairs", type=Path, help="CSV file for the near-duplicates in the whole, unchanged data set")
    given = parser.parse_args()

    entry, place = locate_dataset(DataConfig(dataset=given.dataset, root=given.root))
    index, _ = load_index(entry, place)
    print(f"{machine()}; {given.dataset}")
    if given.pairs:
        grey = [thumbnail(np.asarray(read_image(image_root(place) / image)), AUDIT) for image in index["image"]]
        pairs = find_near(np.stack(grey))
        named = [pairs[column].map(index["image_id"].reset_index(drop=True)) for column in ("first", "second")]
        pairs.assign(first=named[0], second=named[1]).to_csv(given.pairs, index=False)
        print(f"{len(pairs)} pairs of near-duplicates among {len(index)} images: {given.pairs}")
    shuffled = index.sample(frac=1, random_state=0).drop_duplicates("lesion_id").head(given.images)
    paths = [image_root(place) / image for image in shuffled["image"]]
    files = list(zip(paths, mask_files(shuffled, image_root(place)), strict=True))
    bands = " ".join(f"{low:.2f}–{min(high, 1):.2f}" for low, high in pairwise(BANDS))
    for side in (AUDIT, FINGERPRINT):
        print(f"\nthumbnails of {AUDIT} and {side} px\nlook-alikes       images  recall  false {bands}")
        known: set[tuple[int, int]] = set()
        for kind in KINDS:
            print(measure(kind, files, side, known), flush=True)


if __name__ == "__main__":
    main()
