"""Measure the peak memory of fit at several numbers of images (Linux).

    python benchmarks/memory.py --dataset ham10000 --root FOLDER --counts 2000 10015

Each process `python -m skincancer.fit` trains a tiny backbone at 64 px for one epoch, validates and tests, so that every image is read.
The store is built before. The memory of the process is polled: RssAnon is the memory that the process needs. RssFile is the size of
the mapped files with the store, which the kernel frees when memory is needed elsewhere. Both peaks cover the whole process. RssAnon is
also printed up to the predictions of the test set, because the bootstrap and the figures after it grow with the test set, not with
the store.

If a data set has too few images, images are repeated, each with a new id and a new row in the store.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from side_by_side import machine, spread

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.data.index import image_root, load_index
from skincancer.data.prepare import locate_dataset
from skincancer.schema.data import DataConfig

CHECKOUT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 0.02
FIELDS = ("RssAnon", "RssFile")
TRAINING = "RssAnon until tested"


def write_table(dataset: str, root: str | None, count: int, folder: Path) -> None:
    """Make a `csv` data set of `count` images, with a link to the original files."""
    entry, place = locate_dataset(DataConfig(dataset=dataset, root=root))
    index, _ = load_index(entry, place)
    folder.mkdir()
    (folder / "images").symlink_to(image_root(place).absolute(), target_is_directory=True)
    order = np.random.default_rng(0).permutation(len(index))
    position = np.arange(count)
    table = index.iloc[order[position % len(index)]].reset_index(drop=True)
    copy = pd.Series(position // len(index)).astype(str)
    table = table.assign(
        image_id=table["image_id"] + "_" + copy,
        lesion_id=table["lesion_id"] + "_" + copy,
        image="images/" + table["image"],
    )
    table[["image_id", "image", "diagnosis", "lesion_id"]].to_csv(folder / "index.csv", index=False)


def read_memory(pid: int) -> dict[str, float]:
    """Return the resident memory of a process by kind, in MB. Empty if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[name].split()[0]) / 1e3 for name in FIELDS if name in values}


def peaks(flags: list[str], environment: dict[str, str], runs: Path) -> dict[str, float]:
    """Run fit, and return the peak of each kind of memory in MB."""
    command = [sys.executable, "-m", "skincancer.fit", *flags]
    highest = dict.fromkeys((*FIELDS, TRAINING), 0.0)
    tested = False
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            tested = tested or any(runs.glob("work/*/predictions/test.csv"))
            now = read_memory(process.pid)
            for name, value in now.items():
                highest[name] = max(highest[name], value)
            if not tested:
                highest[TRAINING] = max(highest[TRAINING], now.get("RssAnon", 0.0))
            time.sleep(POLL_SECONDS)
        output.seek(0)
        if process.returncode or not tested:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output.read().decode()}")
    return highest


def main() -> None:
    """Measure and print one line per number of images."""
    parser = argparse.ArgumentParser(description="Peak memory of fit by number of images.", allow_abbrev=False)
    parser.add_argument("--dataset", default="demo", help="name in the catalog")
    parser.add_argument("--root", help="folder of the data set; not needed for the demo")
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 10015], help="numbers of images")
    parser.add_argument("--size", type=int, default=64, help="image size in pixels")
    parser.add_argument("--backbone", default="test_efficientnet", help="timm name of the backbone")
    parser.add_argument("--rounds", type=int, default=3, help="runs at each number of images")
    given = parser.parse_args()

    print(f"{machine()}; {given.dataset} at {given.size} px, {given.backbone}, one epoch; MB, median (min–max)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = {**os.environ, "SKINCANCER_CACHE": f"{folder}/cache"}
        flags: dict[int, list[str]] = {}
        for count in given.counts:
            place = folder / str(count)
            write_table(given.dataset, given.root, count, place)
            data = [f"--data.root={place}", f"--data.size={given.size}"]
            prepare = [sys.executable, "-m", "skincancer.prepare", "csv", *data]
            subprocess.run(prepare, env=environment, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
            flags[count] = [
                "--experiment=efficientnet_lite0", "--data.dataset=csv", *data, "--data.batch_size=64",
                f"--model.backbone={given.backbone}", "--model.weights=none", "--trainer.max_epochs=1",
                "--trainer.accelerator=cpu", "--tracking.system_metrics=false",
            ]  # fmt: skip
        measured: dict[int, list[dict[str, float]]] = {count: [] for count in given.counts}
        for number in range(given.rounds):
            for count in given.counts:
                # A separate store per run: `peaks` detects the end of training by the files in the store.
                runs = folder / f"runs-{count}-{number}"
                uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{runs}/mlflow.db"}
                measured[count].append(peaks(flags[count], {**environment, **uri}, runs))
    for count, results in measured.items():
        shown = ", ".join(f"{name} {spread([result[name] for result in results], 0)}" for name in (TRAINING, *FIELDS))
        print(f"{count:>7,} images, {count * given.size**2 * 3 / 1e6:,.0f} MB in the store: {shown}")


if __name__ == "__main__":
    main()
