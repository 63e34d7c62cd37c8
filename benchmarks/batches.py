"""Batches from the prepared store against torchvision's ImageFolder with decode and resize, in turns.

    python benchmarks/batches.py --dataset ham10000 --root FOLDER --images 0

Same images (of the training part), same batch size, same number of workers; both end with float32 images in [0, 1]. Files and
store are in the page cache after the round that warms up, so neither side waits for a disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from side_by_side import in_turns, machine, ratios, spread
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from skincancer.data.datamodule import LesionDataModule
from skincancer.data.index import image_root
from skincancer.data.prepare import PreparedData, prepare_data
from skincancer.schema import AugmentConfig, DataConfig


def limit(data: PreparedData, images: int) -> PreparedData:
    """Keep at most so many images of the training part, drawn with seed 0; 0 keeps all."""
    train = data.rows("train").index.to_numpy()
    left_out = np.random.default_rng(0).permutation(train)[images or len(train) :]
    index = data.index.copy()
    index.loc[left_out, "role"] = ""
    return dataclasses.replace(data, index=index)


def link_classes(data: PreparedData, folder: Path) -> None:
    """Lay the training images out as ImageFolder wants them: a folder a class, of symbolic links."""
    root = image_root(data.root).absolute()
    for row, image, label in data.rows("train")[["image", "label"]].itertuples():
        link = folder / data.classes[label] / f"{row}{Path(image).suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / image)


def compare(data: PreparedData, given: argparse.Namespace, size: int) -> None:
    """Measure one size and print it."""
    images = len(data.rows("train"))
    module = LesionDataModule(
        data, batch_size=given.batch, balance="none", balance_fixed=False, augment=AugmentConfig(policy="none"), seed=0,
        workers=given.workers,
    )  # fmt: skip
    ours = module.train_dataloader()

    def store() -> float:
        start = time.perf_counter()
        seen = sum(len(module.on_after_batch_transfer(batch, 0)["image"]) for batch in ours)
        return _rate(seen, time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        link_classes(data, Path(folder))
        transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])
        theirs = DataLoader(
            datasets.ImageFolder(folder, transform), batch_size=given.batch, shuffle=True, num_workers=given.workers,
            persistent_workers=given.workers > 0, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

        def image_folder() -> float:
            start = time.perf_counter()
            seen = sum(len(batch) for batch, _ in theirs)
            return _rate(seen, time.perf_counter() - start)

        def _rate(seen: int, seconds: float) -> float:
            assert seen == images, f"{seen} images came out of {images}"
            return seen / seconds

        result = in_turns({"store": store, "ImageFolder": image_folder}, given.rounds)
    gain = ratios(result["store"], result["ImageFolder"])
    print(
        f"{size:>4} px, {images:,} images: store {spread(result['store'], 0)} images/s, "
        f"ImageFolder {spread(result['ImageFolder'], 0)} images/s, ratio {spread(gain)}"
    )


def main() -> None:
    """Measure and print a line a size."""
    parser = argparse.ArgumentParser(description="The store against ImageFolder.", allow_abbrev=False)
    parser.add_argument("--dataset", default="demo", help="a name from the catalog")
    parser.add_argument("--root", help="its folder; the demo needs none")
    parser.add_argument("--images", type=int, default=1000, help="at most so many training images; 0 for all")
    parser.add_argument("--size", type=int, nargs="+", default=[128, 224], help="sides in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images a batch")
    parser.add_argument("--workers", type=int, default=0, help="loader processes, of both")
    parser.add_argument("--rounds", type=int, default=5, help="passes over the images of each, after one that warms up")
    given = parser.parse_args()

    print(f"{machine()}; {given.dataset}, batches of {given.batch}, {given.workers} workers; median (min–max)")
    for size in given.size:
        data = prepare_data(DataConfig(dataset=given.dataset, root=given.root, size=size))
        compare(limit(data, given.images), given, size)


if __name__ == "__main__":
    main()
