"""Compare the speed of fits with several processes and with one, in turns.

    python benchmarks/ddp.py --dataset ham10000 --root FOLDER

On CPUs one process uses all cores, and several processes share them. On GPUs each process has its own GPU. The batch is divided
among the processes, so that an optimiser step always uses the same number of images. The benchmark ends a fit by SIGTERM after the
last measured epoch. The first epoch is warm-up. The speed is images_per_second of epochs.csv: with augmentation, without validation.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pandas as pd
from side_by_side import in_turns, machine, ratios, spread

CHECKOUT = Path(__file__).resolve().parents[1]


def measure(given: argparse.Namespace, processes: int) -> float:
    """Fit with some processes, and return the median speed of the epochs in images/s."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "experiment": "densenet169_undersample", "data.dataset": given.dataset, "data.size": given.size, "data.balance": "none",
            "data.batch_size": given.batch // processes, "data.workers": given.workers, "model.backbone": given.backbone,
            "model.weights": "none", "trainer.devices": processes, "trainer.accelerator": given.accelerator,
            "trainer.precision": given.precision, "trainer.max_epochs": 10_000, "trainer.limit_train_batches": given.steps,
            "trainer.limit_val_batches": 1, "tracking.uri": f"sqlite:///{folder}/mlflow.db", "tracking.system_metrics": "false",
            "training.monitor": "val/loss", **({"data.root": given.root} if given.root else {}),
        }  # fmt: skip
        command = [sys.executable, "-m", "skincancer.fit", *(f"--{name}={value}" for name, value in flags.items())]
        threads = {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // processes))}
        with open(Path(folder) / "output", "w+") as output:
            fit = subprocess.Popen(
                command, cwd=CHECKOUT, env={**os.environ, **threads}, stdout=output, stderr=subprocess.STDOUT
            )
            epochs = pd.DataFrame()
            while len(epochs) < 1 + given.epochs:
                time.sleep(0.5)
                if fit.poll() is not None:
                    output.seek(0)
                    raise SystemExit(output.read())
                for table in Path(folder).glob("work/*/epochs.csv"):
                    # The file may be empty while fit is writing it.
                    with contextlib.suppress(pd.errors.EmptyDataError):
                        epochs = pd.read_csv(table).dropna(subset="images_seen")
            fit.send_signal(signal.SIGTERM)
            fit.wait(60)
    return statistics.median(epochs["images_per_second"][1 : 1 + given.epochs])


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description="Speed of several processes and of one.", allow_abbrev=False)
    parser.add_argument("--dataset", default="demo", help="name in the catalog")
    parser.add_argument("--root", help="folder of the data set; not needed for the demo")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="timm name, with random weights")
    parser.add_argument("--size", type=int, default=128, help="image size in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images per step, over all processes")
    parser.add_argument("--steps", type=int, default=10, help="steps per epoch")
    parser.add_argument("--epochs", type=int, default=3, help="measured epochs of a fit, after a warm-up epoch")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each process")
    parser.add_argument("--processes", type=int, default=2, help="number of processes compared with one")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or gpu")
    parser.add_argument("--precision", default="32", choices=["32", "bf16-mixed"])
    parser.add_argument("--rounds", type=int, default=3, help="fits of each kind")
    given = parser.parse_args()

    print(
        f"{machine(given.accelerator)}; {given.dataset} at {given.size} px, {given.backbone}, {given.batch} images per step, "
        f"precision {given.precision}; median (min–max)"
    )
    several = f"{given.processes} processes"
    work = {"one process": partial(measure, given, 1), several: partial(measure, given, given.processes)}
    found = in_turns(work, given.rounds, warm_up=0)
    for name, rates in found.items():
        print(f"{name:<12} {spread(rates)} images/s")
    print(f"ratio        {spread(ratios(found[several], found['one process']), 3)}")


if __name__ == "__main__":
    main()
