"""Measure the time of `compare` over increasing numbers of synthetic runs.

python benchmarks/compare.py --counts 200 1000
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from side_by_side import machine
from synthetic_runs import class_predictions, finished_fit

from skincancer.compare import compare
from skincancer.comparison.request import Request
from skincancer.system.console import make_console

EXPERIMENTS, SPLITS = ("densenet169_undersample", "resnet50_oversample"), ("80:20", "70:30")


def main() -> None:
    """Write runs, compare them, and print one line per number of runs."""
    parser = argparse.ArgumentParser(description="Time of compare over many runs.", allow_abbrev=False)
    parser.add_argument("--counts", type=int, nargs="+", default=[40, 80], help="increasing numbers of runs")
    parser.add_argument("--images", type=int, default=2000, help="test images per run")
    given = parser.parse_args()
    console = make_console()
    console.quiet = True
    print(machine("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        written = 0
        for count in given.counts:
            while written < count:
                name, split, seed = EXPERIMENTS[written % 2], SPLITS[written // 2 % 2], written // 4
                finished_fit(name, class_predictions(written, given.images, 1.5 + written % 2), split=split, seed=seed)
                written += 1
            start, processor = time.perf_counter(), time.process_time()
            compare(Request(EXPERIMENTS, SPLITS), console=console)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            seconds = time.perf_counter() - start
            print(
                f"{count:,} runs of {given.images:,} predictions: {seconds:.1f} s ({time.process_time() - processor:.1f} s of CPU), "
                f"{1000 * seconds / count:.0f} ms per run; peak memory {peak:,.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
