"""Compare batches from the prepared store with torchvision's ImageFolder, in turns.

    python benchmarks/batches.py --dataset ham10000 --root FOLDER --images 0

Both use the same training images, batch size and number of workers, and produce float32 images in [0, 1]. ImageFolder decodes and
resizes. Files and store are in the page cache after the warm-up round, so neither waits for a disk.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.data.datamodule import LesionDataModule
from skincancer.data.index import image_root
from skincancer.data.prepare import PreparedData, prepare_data
from skincancer.schema.data import AugmentConfig, DataConfig


def limit(data: PreparedData, images: int) -> PreparedData:
    """Keep at most `images` training images, sampled with seed 0. 0 keeps all."""
    train = data.rows("train").index.to_numpy()
    left_out = np.random.default_rng(0).permutation(train)[images or len(train) :]
    index = data.index.copy()
    index.loc[left_out, "role"] = ""
    return dataclasses.replace(data, index=index)


def link_classes(data: PreparedData, folder: Path) -> None:
    """Link the training images in one folder per class, as ImageFolder expects."""
    root = image_root(data.root).absolute()
    for row, image, label in data.rows("train")[["image", "label"]].itertuples():
        link = folder / data.classes[label] / f"{row}{Path(image).suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root / image)


def compare(data: PreparedData, given: argparse.Namespace, size: int) -> None:
    """Measure one image size and print the result."""
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
    """Measure and print one line per image size."""
    parser = argparse.ArgumentParser(description="Batches of the store and of ImageFolder.", allow_abbrev=False)
    parser.add_argument("--dataset", default="demo", help="name in the catalog")
    parser.add_argument("--root", help="folder of the data set; not needed for the demo")
    parser.add_argument("--images", type=int, default=1000, help="maximum number of training images; 0 for all")
    parser.add_argument("--size", type=int, nargs="+", default=[128, 224], help="image sizes in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each loader")
    parser.add_argument("--rounds", type=int, default=5, help="measured passes over the images, after a warm-up pass")
    given = parser.parse_args()

    print(f"{machine()}; {given.dataset}, batches of {given.batch}, {given.workers} workers; median (min–max)")
    for size in given.size:
        data = prepare_data(DataConfig(dataset=given.dataset, root=given.root, size=size))
        compare(limit(data, given.images), given, size)


if __name__ == "__main__":
    main()
