"""Images a second of fits with several processes against fits with one, in turns.

    python benchmarks/ddp.py --dataset ham10000 --root FOLDER

On CPUs one process computes with all cores, and of several each with its share; on GPUs each has its own. The batch is divided
among the processes, so every optimiser step learns from as many images on both sides. A fit ends (by SIGTERM) after its last epoch;
the first epoch warms up. Speed is that of training alone, as fit writes it into epochs.csv: with augmentation, without validation.
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
    """Fit with so many processes; return the median of its epochs' images a second."""
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
                    with contextlib.suppress(pd.errors.EmptyDataError):  # it is just being written
                        epochs = pd.read_csv(table).dropna(subset="images_seen")
            fit.send_signal(signal.SIGTERM)
            fit.wait(60)
    return statistics.median(epochs["images_per_second"][1 : 1 + given.epochs])


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description="Several processes against one.", allow_abbrev=False)
    parser.add_argument("--dataset", default="demo", help="a name from the catalog")
    parser.add_argument("--root", help="its folder; the demo needs none")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="of timm (random weights)")
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--batch", type=int, default=64, help="images a step, over all processes")
    parser.add_argument("--steps", type=int, default=10, help="steps an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of a fit, after one that warms up")
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each process")
    parser.add_argument("--processes", type=int, default=2, help="devices of the several")
    parser.add_argument("--accelerator", default="auto", help="auto, cpu or gpu")
    parser.add_argument("--precision", default="32", choices=["32", "bf16-mixed"])
    parser.add_argument("--rounds", type=int, default=3, help="fits of each")
    given = parser.parse_args()

    print(
        f"{machine(given.accelerator)}; {given.dataset} at {given.size} px, {given.backbone}, {given.batch} images a step, "
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
