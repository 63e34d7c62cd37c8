"""Measure the speed of the hand-crafted features, for each family and for all.

    python benchmarks/features.py --dataset ham10000 --root ~/ham10000 --images 200

Images are spaced evenly over the index. Decoding, masks and scaling to the working size are measured separately. The benchmark is one
process; `prepare NAME --features` uses one per core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from side_by_side import machine

from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.index import image_root, load_index
from skincancer.imaging.crop import find_mask
from skincancer.imaging.decode import read_image
from skincancer.imaging.features.families import FAMILIES, bring_to_working_size, feature_names, image_features


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ham10000")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--masks", default="auto", choices=("auto", "truth", "otsu"))
    given = parser.parse_args()
    index, _ = load_index(catalog_entry(given.dataset), given.root)
    rows = np.linspace(0, len(index) - 1, min(given.images, len(index))).astype(int)
    root = image_root(given.root)
    feature_names()  # imports scikit-image
    # Wall and processor time of each step.
    spent = {name: np.zeros(2) for name in ("decoding, mask, scaling", *FAMILIES)}
    for row in index.iloc[rows].itertuples():
        start = np.array([time.perf_counter(), time.process_time()])
        picture = read_image(root / str(row.image))
        whole = (0, 0, picture.width, picture.height)
        mask, _ = find_mask(picture, picture, whole, None if row.mask is None else root / str(row.mask), given.masks)
        lesion = bring_to_working_size(picture, mask)
        for name in spent:
            if name in FAMILIES:
                image_features(lesion, [name])
            now = np.array([time.perf_counter(), time.process_time()])
            spent[name] += now - start
            start = now
    print(machine())
    print(f"{len(rows)} images of {given.dataset}, masks: {given.masks}")
    for name, seconds in {**spent, "all": sum(spent.values())}.items():
        wall, cpu = len(rows) / np.maximum(seconds, 1e-9)
        print(f"{name:26} {wall:8.1f} images/s, {cpu:8.1f} images per second of processor time")


if __name__ == "__main__":
    main()
