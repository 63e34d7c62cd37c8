"""Compare the segmentation metrics with the official scorer of the ISIC challenges.

    python benchmarks/mask_metrics.py
    python benchmarks/mask_metrics.py --dataset isic2018_task1 --root FOLDER

Both binarise the same uint8 masks, score every image and average, in turns. Our metrics include hd95. The official scorer,
`isic-challenge-scoring` (`SegmentationScore`), has no hd95. Without --dataset each mask is a synthetic lesion. Real masks are spaced
evenly over the data set and resized. The predicted mask is the true mask with its edge moved in and out at random, by --error pixels
(standard deviation).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pandas as pd
from isic_challenge_scoring.segmentation import SegmentationScore
from PIL import Image
from scipy import ndimage
from side_by_side import in_turns, machine, ratios, spread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.data.catalog import dataset
from skincancer.data.index import image_root, load_index
from skincancer.imaging.decode import read_mask
from skincancer.imaging.mask_operations import surface
from skincancer.metrics.segmentation import mask_metrics, mean_metrics

OFFICIAL = {
    "jaccard": "jaccard",
    "dice": "dice",
    "threshold_jaccard": "thresholded_jaccard",
    "accuracy": "pixel_accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}


def smooth_noise(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float64]:
    """Return noise with mean 0, standard deviation 1, and no detail below about 30 px."""
    noise = ndimage.gaussian_filter(rng.normal(size=(height, width)), 30)
    return (noise - noise.mean()) / noise.std()


def drawn_masks(images: int, height: int, width: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.bool_]]:
    """Draw masks of synthetic lesions that cover 5 to 60 % of the image."""
    row, column = np.mgrid[:height, :width]
    for _ in range(images):
        radius = np.sqrt(rng.uniform(0.05, 0.6) / np.pi)
        away = np.hypot((row / height - 0.5) / radius, (column / width - 0.5) / radius)
        yield away + 0.15 * smooth_noise(rng, height, width) < 1


def real_masks(name: str, root: str | None, images: int, size: tuple[int, int]) -> Iterator[npt.NDArray[np.bool_]]:
    """Read masks, spaced evenly over a data set."""
    folder = Path(root or f"data/{name}")
    index, _ = load_index(dataset(name), folder)
    paths = index["mask"].dropna()
    for path in paths.iloc[np.linspace(0, len(paths) - 1, min(images, len(paths))).astype(int)]:
        yield np.asarray(read_mask(image_root(folder) / path).resize(size, Image.Resampling.NEAREST)) > 127


def perturbed(truth: npt.NDArray[np.bool_], error: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Move the edge of a mask in and out at random."""
    if truth.all() or not truth.any():
        return truth
    depth = ndimage.distance_transform_edt(truth) - ndimage.distance_transform_edt(~truth)
    return np.asarray(depth + error * smooth_noise(rng, *truth.shape) > 0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Segmentation metrics and the official scorer.", allow_abbrev=False)
    parser.add_argument("--dataset", help="name in the catalog (default: synthetic masks)")
    parser.add_argument("--root", help="folder of the data set")
    parser.add_argument("--images", type=int, default=500, help="maximum number of images")
    parser.add_argument("--size", type=int, nargs=2, default=[600, 450], help="width and height in pixels")
    parser.add_argument("--error", type=float, default=8, help="error of the predicted edge in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="measured passes over the images, after a warm-up pass")
    given = parser.parse_args()

    width, height = given.size
    rng = np.random.default_rng(0)
    truths = (
        real_masks(given.dataset, given.root, given.images, (width, height))
        if given.dataset
        else drawn_masks(given.images, height, width, rng)
    )
    pairs = [
        SimpleNamespace(
            image_id=str(number), truth_image=np.uint8(255) * truth,
            prediction_image=np.uint8(255) * perturbed(truth, given.error, rng),
        )
        for number, truth in enumerate(truths)
    ]  # fmt: skip

    def ours() -> dict[str, float]:
        scores = [mask_metrics(pair.truth_image > 128, pair.prediction_image > 128) for pair in pairs]
        return mean_metrics(pd.DataFrame(scores))

    def official() -> dict[str, float]:
        found = SegmentationScore(pairs).macro_average
        return {own: float(found[name]) for name, own in OFFICIAL.items()}

    means, reference = ours(), official()
    for name, value in reference.items():
        assert abs(means[name] - value) < 1e-6, f"{name}: ours {means[name]}, the official scorer's {value}"

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    result = in_turns({"ours": lambda: seconds(ours), "official": lambda: seconds(official)}, given.rounds)
    edge = np.mean([surface(pair.truth_image > 128).sum() for pair in pairs])
    print(
        f"{machine()}, numpy {version('numpy')}, scipy {version('scipy')}; {given.dataset or 'synthetic masks'}; median (min–max)\n"
        f"{len(pairs)} masks of {width}×{height} px, edges of {edge:,.0f} px on average; mean jaccard "
        f"{means['jaccard']:.3f}, hd95 {means['hd95']:.1f} px; the other six means equal the official scorer's to 1e-6\n"
        f"ours, hd95 included: {spread(result['ours'], 2)} s; official, without: {spread(result['official'], 2)} s; "
        f"ratio of the times {spread(ratios(result['ours'], result['official']), 2)}"
    )


if __name__ == "__main__":
    main()
