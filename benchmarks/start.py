"""Measure the time to the first optimiser step, to `--help`, and to a config error.

    python benchmarks/start.py

`prepared` starts with the images of the demo, their image store and an MLflow store; `unprepared` starts without the three, as on a new
machine. The import of torch, pytorch_lightning and mlflow is the lower limit of every training.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import in_turns, machine, ratios, spread

CHECKOUT = Path(__file__).resolve().parents[1]
IMPORTS = "import torch, pytorch_lightning, mlflow"

# fit with an additional callback, which prints the time after the first optimiser step and ends the process.
FIRST_STEP = """
import sys, time
from skincancer import fit
from skincancer.models import factory

build_task = factory.build_task

def with_clock(*arguments):
    import pytorch_lightning as pl
    from skincancer.training import trainer as training

    class FirstStep(pl.Callback):
        def on_train_batch_end(self, *arguments):
            print("first step at", time.time(), flush=True)
            raise SystemExit(0)

    build_trainer = training.build_trainer

    def build(*arguments, **options):
        trainer = build_trainer(*arguments, **options)
        trainer.callbacks.append(FirstStep())
        return trainer

    training.build_trainer = build
    return build_task(*arguments)

factory.build_task = with_clock
sys.exit(fit.main(sys.argv[1:]))
"""


def run(arguments: list[str], environment: dict[str, str], expected: int = 0) -> tuple[float, float, str]:
    """Run Python, and return the times of its start and end, and its output."""
    start = time.time()
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    end, printed = time.time(), done.stdout.decode()
    if done.returncode != expected:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode} instead of {expected}:\n{printed}")
    return start, end, printed


def whole(arguments: list[str], environment: dict[str, str], expected: int = 0) -> float:
    """Return the run time of Python in seconds."""
    start, end, _ = run(arguments, environment, expected)
    return end - start


def first_step(arguments: list[str], folder: Path) -> float:
    """Return the seconds to the first optimiser step, with cache and store in `folder`."""
    environment = {
        **os.environ, "SKINCANCER_CACHE": f"{folder}/cache", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlruns/mlflow.db",
    }  # fmt: skip
    start, _, printed = run(["-c", FIRST_STEP, *arguments], environment)
    match = re.search(r"first step at ([\d.]+)", printed)
    if not match:
        raise SystemExit(f"fit ended before its first optimiser step:\n{printed}")
    return float(match[1]) - start


def main() -> None:
    """Measure and print one line per command."""
    parser = argparse.ArgumentParser(description="Seconds to the first optimiser step.", allow_abbrev=False)
    parser.add_argument("--experiment", default="densenet169_undersample", help="name of the experiment")
    parser.add_argument("--rounds", type=int, default=5, help="measured runs of each command, after a warm-up run")
    parser.add_argument("flags", nargs="*", help="more flags for fit, after --: -- --model.weights none")
    given = parser.parse_args()
    fit = [f"--experiment={given.experiment}", *given.flags]

    print(f"{machine()}; {' '.join(fit)}; seconds, median (min–max)")
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as kept:

        def unprepared() -> float:
            with tempfile.TemporaryDirectory() as folder:
                return first_step(fit, Path(folder))

        work = {
            "imports alone": lambda: whole(["-c", IMPORTS], environment),
            "--help": lambda: whole(["-m", "skincancer.fit", "--help"], environment),
            "config error": lambda: whole(["-m", "skincancer.fit", *fit, "--data.sise=64"], environment, expected=2),
            "first step, prepared": lambda: first_step(fit, Path(kept)),
            "first step, unprepared": unprepared,
        }
        result = in_turns(work, given.rounds)
    for name, seconds in result.items():
        share = ratios(seconds, result["imports alone"])
        print(f"{name:<24}{spread(seconds, 2):>24}   {spread(share, 2)} of the imports")


if __name__ == "__main__":
    main()
