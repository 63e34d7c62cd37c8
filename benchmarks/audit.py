"""Measure time, memory and accuracy of the audit at several numbers of images.

    python benchmarks/audit.py --dataset ham10000 --root FOLDER --counts 2500 5000 10015

Copies of some images are added to the data set. Each copy has one edit, and no image is copied twice. The command
`python -m skincancer.prepare csv --audit` runs in a separate process with an empty cache, so that every image is decoded. Memory is the
resident memory of the process and its workers, polled; shared memory counts more than once.

Recall: share of the added copies that are reported together with their original. Precision: share of such pairs among all reported
pairs with an added copy. Pairs with another image of the original's lesion, and pairs with a reported near-duplicate of the original, are
counted separately. Growth: ratio of the times of two counts, divided by the ratio of n log n. A growth of 1 or less means that the
time grows no faster than n log n. For comparison, the candidates of a perceptual hash are counted: the 64-bit DCT hash (32 × 32 grey,
the lowest 8 × 8 frequencies against their median) of all flips and turns, by the number of bits that may differ.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
from PIL import Image
from scipy.fft import dctn
from side_by_side import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.audit.findings import COPIES
from skincancer.data.index import image_root, load_index
from skincancer.data.prepare import locate_dataset
from skincancer.imaging.decode import read_image
from skincancer.schema.data import DataConfig

CHECKOUT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.1
PLANTED = "planted/"


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Crop 5 % of width and height, at a random position."""
    width, height = (round(0.95 * side) for side in image.size)
    left, top = (int(rng.integers(0, side - kept + 1)) for side, kept in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height))


def compress(image: Image.Image, quality: int) -> Image.Image:
    """Encode as JPEG and decode."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


EDITS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "flip": lambda image, _: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "quarter turn": lambda image, _: image.transpose(Image.Transpose.ROTATE_90),
    "JPEG 50": lambda image, _: compress(image, 50),
    "resize to 2/3": lambda image, _: image.resize([max(1, side * 2 // 3) for side in image.size]),
    "crop 5 %": crop,
    "brighter 10 %": lambda image, _: image.point(lambda value: min(255, round(1.1 * value))),
    "darker 10 %": lambda image, _: image.point(lambda value: round(0.9 * value)),
}


def make_data(dataset: str, root: str | None, count: int, planted: int, folder: Path) -> pd.DataFrame:
    """Make a `csv` data set of `count` images and the added copies.

    Returns:
        Table with image_id, lesion_id, and original and edit of an added copy ("" for other images).
    """
    entry, place = locate_dataset(DataConfig(dataset=dataset, root=root))
    index, _ = load_index(entry, place)
    if count > len(index):
        raise SystemExit(f"--counts {count}: {dataset} has {len(index)} images")
    rng = np.random.default_rng(0)
    index = index.iloc[np.sort(rng.permutation(len(index))[:count])]
    (folder / PLANTED).mkdir(parents=True)
    (folder / "images").symlink_to(image_root(place).absolute(), target_is_directory=True)
    table = index[["image_id", "image", "diagnosis", "lesion_id"]].assign(original="", edit="")
    table["image"] = "images/" + table["image"]
    chosen = table.iloc[rng.permutation(count)[: planted * len(EDITS)]]
    rows = []
    for number, row in enumerate(chosen.itertuples()):
        edit = list(EDITS)[number % len(EDITS)]
        name = f"{PLANTED}{number:05d}"
        copy = EDITS[edit](read_image(folder / row.image), rng)
        copy.save(folder / f"{name}.jpg", quality=90)
        rows.append([name, f"{name}.jpg", row.diagnosis, name, row.image_id, edit])
    table = pd.concat([table, pd.DataFrame(rows, columns=table.columns)], ignore_index=True)
    table[["image_id", "image", "diagnosis", "lesion_id"]].to_csv(folder / "index.csv", index=False)
    return table


def run_audit(folder: Path) -> tuple[float, float]:
    """Audit a folder, and return seconds and peak memory in GB."""
    command = [
        sys.executable, "-m", "skincancer.prepare", "csv", f"--data.root={folder}", f"--data.images={folder / 'images'}",
        "--audit", f"--out={folder}",
    ]  # fmt: skip
    places = {"SKINCANCER_CACHE": str(folder / "cache"), "PYTHONPATH": str(CHECKOUT)}
    start, peak = time.perf_counter(), 0
    with open(folder / "log.txt", "w") as log:
        process = psutil.Popen(command, stdout=log, stderr=log, env={**os.environ, **places})
        while process.poll() is None:
            peak = max(peak, resident(process))
            time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit((folder / "log.txt").read_text())
    return seconds, peak / 1e9


def resident(process: psutil.Process) -> int:
    """Return the resident memory of a process and its child processes in bytes."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.Error:  # A process has ended in the meantime.
        pass
    return total


def judge(table: pd.DataFrame, found: pd.DataFrame) -> tuple[list[list[object]], int]:
    """Count the reported copies by edit.

    Returns:
        Rows to print, and the number of reported pairs of original images of different lesions.
    """
    copies = found[found["finding"].isin(COPIES)]
    pairs = {frozenset(pair) for pair in zip(copies["image_id"], copies["other_id"], strict=True)}
    known = table.set_index("image_id")
    lesion, original, edit = known["lesion_id"], known["original"], known["edit"]
    hits, false, lesions, before = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    unplanted = 0
    for pair in pairs:
        one, other = sorted(pair, key=lambda name: not original[name])  # An added copy comes first.
        if not original[one]:
            unplanted += lesion[one] != lesion[other]
            continue
        source, partner = original[one], original[other] or other
        if partner == source:
            hits[edit[one]] += 1
        elif lesion[source] == lesion[partner]:
            lesions[edit[one]] += 1
        elif frozenset((source, partner)) in pairs:
            before[edit[one]] += 1
        else:
            false[edit[one]] += 1
    rows: list[list[object]] = []
    for name in (*EDITS, "all"):
        counted = [name] if name != "all" else list(EDITS)
        planted = int(edit.isin(counted).sum())
        right, wrong = (sum(counts[one] for one in counted) for counts in (hits, false))
        apart = sum(lesions[one] for one in counted), sum(before[one] for one in counted)
        share = f"{right / (right + wrong):.3f}" if right + wrong else "–"
        rows.append([name, planted, f"{right / planted:.3f}" if planted else "–", share, *apart])
    return rows, unplanted


def hash_candidates(table: pd.DataFrame, folder: Path) -> list[tuple[int, float, int]]:
    """Count the candidates of a perceptual hash.

    Returns:
        Number of bits that may differ, share of the added copies with their original as a candidate, and number of candidate pairs.
    """
    (place,) = (folder / "cache/examinations").glob("*/thumbnails.npy")
    ids = pd.read_csv(place.with_name("images.csv"), dtype=str, usecols=["image_id"])["image_id"]
    small = np.stack([cv2.resize(one, (32, 32), interpolation=cv2.INTER_AREA) for one in np.load(place)]).astype(
        np.float64
    )
    views = [np.rot90(view, turns, (1, 2)) for view in (small, small[:, :, ::-1]) for turns in range(4)]
    hashes = [_hash(view) for view in views]
    row_of = {image_id: row for row, image_id in enumerate(ids)}
    planted = table[table["original"] != ""]
    pairs = {(row_of[one], row_of[other]) for one, other in zip(planted["image_id"], planted["original"], strict=True)}
    nearest = np.full((len(ids), len(ids)), 64, np.uint8)
    for hashed in hashes:
        for start in range(0, len(ids), 512):
            block = slice(start, start + 512)
            apart = np.bitwise_count(hashes[0][block, None] ^ hashed[None])
            np.minimum(nearest[block], apart, out=nearest[block])
    nearest = np.minimum(nearest, nearest.T)
    distances = np.array([nearest[pair] for pair in pairs])
    upper = nearest[np.triu_indices(len(ids), 1)]
    return [(bits, float((distances <= bits).mean()), int((upper <= bits).sum())) for bits in (4, 8, 12, 16)]


def _hash(pictures: np.ndarray) -> np.ndarray:
    low = dctn(pictures, axes=(1, 2))[:, :8, :8].reshape(len(pictures), 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="demo")
    parser.add_argument("--root", help="folder of the data set; not needed for the demo")
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[200, 400], help="numbers of images without the added copies"
    )
    parser.add_argument("--planted", type=int, default=40, help="added copies per edit")
    parser.add_argument("--keep", type=Path, help="folder that receives tables and pages of each audit")
    given = parser.parse_args()

    print(f"{machine()}; {given.dataset}")
    before: tuple[int, float] | None = None
    for count in given.counts:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / str(count)
            table = make_data(given.dataset, given.root, count, given.planted, folder)
            seconds, memory = run_audit(folder)
            found = pd.read_csv(folder / "csv_audit.csv", keep_default_na=False)
            hashed = hash_candidates(table, folder)
            if given.keep:
                given.keep.mkdir(parents=True, exist_ok=True)
                for path in folder.glob("csv_audit.*"):
                    (given.keep / f"{count}_{path.name}").write_bytes(path.read_bytes())
        n = len(table)
        growth = ""
        if before:
            expected = n * math.log(n) / (before[0] * math.log(before[0]))
            growth = f"; growth {seconds / before[1] / expected:.2f} of n log n"
        before = n, seconds
        print(f"\n{n} images: {seconds:.0f} s ({seconds / 60:.1f} min), peak memory {memory:.2f} GB{growth}")
        rows, unplanted = judge(table, found)
        print(f"{'edit':<16}  copies  recall  precision  (separate: same lesion, near-duplicates of the original)")
        for name, planted, recall, precision, lesions, known in rows:
            print(f"{name:<16} {planted:>7}  {recall:>6}  {precision:>9}  {lesions:>20} {known:>10}")
        print(f"pairs of original images of different lesions: {unplanted}")
        for bits, recall, pairs in hashed:
            print(f"a perceptual hash, {bits:>2} of 64 bits apart: recall {recall:.3f}, {pairs} pairs to verify")


if __name__ == "__main__":
    main()
