"""Compare hair removal with a plain OpenCV script: speed, and quality on synthetic hair.

    python benchmarks/hair.py --dataset ham10000 --root FOLDER --images 100

The script is widely used: black-hat of the grey image with a cross of 17 px, threshold 10, Telea inpainting. Both methods use one
thread. Synthetic hair, dark on half of the images and light on the other half, is added to images without hair: synthetic lesions, or
the real images with the weakest ridges by the Sato filter of scikit-image, which neither method uses. Printed are the Dice of the hair
mask, the PSNR against the image without hair (in the hair, and in the whole image), and the share of the images without hair that is
detected as hair.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw
from side_by_side import in_turns, machine, ratios, spread
from skimage.filters import sato

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.data.index import image_root, load_index
from skincancer.data.prepare import locate_dataset
from skincancer.data.readers.demo_drawing import CLASSES, draw_lesion
from skincancer.imaging.cleaning.hair import black_hat, dull_razor
from skincancer.imaging.decode import read_image
from skincancer.schema.data import DataConfig

Pair = tuple[np.ndarray, np.ndarray]
# Factor by which hair is drawn larger and then reduced, for smooth edges.
FINER = 4


def plain_script(image: np.ndarray) -> Pair:
    """Remove hair like the common script, and return the image and the mask of the hair."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    hat = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, cv2.getStructuringElement(cv2.MORPH_CROSS, (17, 17)))
    _, mask = cv2.threshold(hat, 10, 255, cv2.THRESH_BINARY)
    return cv2.inpaint(image, mask, 1, cv2.INPAINT_TELEA), mask > 0


def plant(image: np.ndarray, rng: np.random.Generator, light: bool) -> Pair:
    """Draw 5 to 24 tapering, bent hairs that roughly follow one direction.

    Returns:
        The image, and the mask of the pixels that are covered by more than a quarter.
    """
    height, width = image.shape[:2]
    scale, comb = min(height, width) / 450, rng.uniform(0, np.pi)
    bare, colour = np.ones((height, width, 1), np.float32), np.zeros((height, width, 3), np.float32)
    t = np.linspace(0, 1, 40)[:, None]
    for _ in range(rng.integers(5, 25)):
        angle, length, thick = comb + rng.normal(0, 0.5), rng.uniform(100, 450) * scale, rng.uniform(1.5, 5) * scale
        along = np.array([np.cos(angle), np.sin(angle)])
        bend = rng.normal(0, 0.15) * length * np.array([-along[1], along[0]])
        path = FINER * (rng.uniform(0, [width, height]) + (t - 0.5) * length * along + 4 * t * (1 - t) * bend)
        paper = Image.new("L", (FINER * width, FINER * height))
        pen = ImageDraw.Draw(paper)
        for start, end, taper in zip(path[:-1], path[1:], 1 - 0.6 * t[:, 0], strict=False):
            radius = FINER * thick * taper / 2
            pen.line([tuple(start), tuple(end)], fill=255, width=max(1, round(2 * radius)))
            pen.ellipse([*(end - radius), *(end + radius)], fill=255)
        cover = cv2.GaussianBlur(np.asarray(paper.reduce(FINER), np.float32) / 255, (0, 0), 0.6 * max(scale, 0.5))
        cover = (cover * rng.uniform(0.65, 0.95))[..., None]
        shade = (
            rng.uniform(190, 240) * np.array([1, 0.95, 0.85])
            if light
            else rng.uniform(25, 75) * np.array([1, 0.85, 0.7])
        )
        colour, bare = colour * (1 - cover) + cover * shade, bare * (1 - cover)
    return np.rint(image * bare + colour).clip(0, 255).astype(np.uint8), bare[..., 0] < 0.75


def bare_images(given: argparse.Namespace) -> list[np.ndarray]:
    """Return images without hair, at the requested size."""
    size = (given.width, given.height)
    if given.root is None:
        rng = np.random.default_rng(0)
        # The vessels of bcc are as thin and long as hair.
        names = [name for name in CLASSES if name != "bcc"]
        lesions = [draw_lesion(names[number % len(names)], rng)[0] for number in range(given.images)]
        return [np.asarray(lesion.resize(size, Image.Resampling.BICUBIC)) for lesion in lesions]
    entry, root = locate_dataset(DataConfig(dataset=given.dataset, root=given.root))
    names = load_index(entry, root)[0]["image"]
    chosen = np.random.default_rng(0).permutation(len(names))[: given.among]
    scored = []
    for row in chosen:
        image = read_image(image_root(root) / names.iloc[row])
        ridges = sato(np.asarray(image.convert("L"), np.float64), sigmas=[1.5], black_ridges=True)
        light = sato(np.asarray(image.convert("L"), np.float64), sigmas=[1.5], black_ridges=False)
        scored.append((max(np.percentile(ridges, 99), np.percentile(light, 99)), row))
    best = [row for _, row in sorted(scored)[: given.images]]
    pictures = [read_image(image_root(root) / names.iloc[row]) for row in best]
    if not given.native:
        pictures = [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]
    return [np.asarray(picture) for picture in pictures]


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of the pixels in `where`, in dB, at most 99."""
    error = ((one.astype(np.float64) - other) ** 2)[where].mean()
    return float(min(99.0, 10 * np.log10(255**2 / error))) if error else 99.0


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description="Hair removal and a plain OpenCV script.", allow_abbrev=False)
    parser.add_argument("--dataset", default="ham10000", help="data set of the images, with --root")
    parser.add_argument("--root", help="folder of the data set (default: synthetic lesions)")
    parser.add_argument("--images", type=int, default=24, help="images that receive synthetic hair")
    parser.add_argument("--among", type=int, default=500, help="real images from which they are chosen")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after a warm-up round")
    parser.add_argument("--width", type=int, default=600, help="width of the resized images in pixels")
    parser.add_argument("--height", type=int, default=450, help="height of the resized images in pixels")
    parser.add_argument("--native", action="store_true", help="keep the size of real images")
    given = parser.parse_args()
    cv2.setNumThreads(1)

    rng = np.random.default_rng(1)
    bare = bare_images(given)
    planted = [plant(image, rng, light=number % 2 == 1) for number, image in enumerate(bare)]
    methods: dict[str, Callable[[np.ndarray], Pair]] = {
        "plain script": plain_script, "hair": dull_razor, "hair_blackhat": black_hat,
    }  # fmt: skip

    def rate(method: Callable[[np.ndarray], Pair]) -> float:
        start = time.perf_counter()
        for image, _ in planted:
            method(image)
        return len(planted) / (time.perf_counter() - start)

    rates = in_turns({name: lambda method=method: rate(method) for name, method in methods.items()}, given.rounds)
    source = (
        f"{given.dataset}, the {len(bare)} with the weakest ridges of {given.among}"
        if given.root
        else f"{len(bare)} synthetic lesions"
    )
    print(f"{source}, {bare[0].shape[1]}×{bare[0].shape[0]} px; {machine()}")
    print(f"\n{'':<15}{'images/s':>24}{'of the script':>22}")
    for name, values in rates.items():
        print(f"{name:<15}{spread(values):>24}{spread(ratios(values, rates['plain script']), 2):>22}")
    print(
        f"\n{'':<15}{'hair':>7}{'Dice':>9}{'PSNR in hair':>13}{'PSNR overall':>13}{'detected on images without hair':>32}"
    )
    for name, method in methods.items():
        for kind, start in (("dark", 0), ("light", 1)):
            rows = []
            for image, (hairy, truth) in list(zip(bare, planted, strict=True))[start::2]:
                repaired, mask = method(hairy)
                dice = 2 * (mask & truth).sum() / max(1, mask.sum() + truth.sum())
                rows.append(
                    (
                        dice,
                        psnr(repaired, image, truth),
                        psnr(repaired, image, np.ones_like(truth)),
                        method(image)[1].mean(),
                    )
                )
            dice, there, everywhere, false = np.mean(rows, axis=0)
            print(f"{name:<15}{kind:>7}{dice:>9.3f}{there:>10.1f} dB{everywhere:>10.1f} dB{false:>32.2%}")


if __name__ == "__main__":
    main()
