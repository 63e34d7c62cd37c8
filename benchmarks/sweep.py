"""Measure the overhead of a trial, the gain of a second worker, and the speed of the driver.

python benchmarks/sweep.py trials --trials 6
python benchmarks/sweep.py empty --trials 1000 --workers 2
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from mlflow.tracking import MlflowClient
from side_by_side import machine

from skincancer.engines import slot
from skincancer.engines.local import LocalEngine
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.storage import storage_url
from skincancer.sweeps.study import create
from skincancer.sweeps.trial_state import counts_towards_total
from skincancer.sweeps.trials import TrialRunner

CHECKOUT = Path(__file__).resolve().parents[1]
SPACE = "task: classification\nsearch:\n  model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}\n"
PLAN = Plan("x", {"task": "classification"}, {}, {"model.dropout": {"low": 0.0, "high": 0.5}}, "random", "none", "", "")
EMPTY = """
import json, os, sys
for line in sys.stdin:
    order = json.loads(line)
    if isinstance(order, dict):
        open(order["log"], "w").close()
        os.write(int(sys.argv[-1]), b'{"objective": 0.5}\\n{"exit": 0}\\n')
"""


def measure_trials(trials: int, epochs: int, rounds: int, flags: list[str]) -> None:
    """Measure sweeps of trials with one thread, by one worker and by two in turns."""
    import pandas as pd

    from skincancer.runs.store import connect

    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "one.yaml").write_text(SPACE)
        uri = f"sqlite:///{place}/mlflow.db"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": uri}
        for number, workers in enumerate((0, *(1, 2) * rounds)):  # Sweep 0 prepares the data and is not counted.
            command = [
                sys.executable, "-m", "skincancer.sweep", "--experiment", str(place / "one.yaml"), "--study", f"s{number}",
                "--workers", str(workers or 1), "--trials", str(trials if workers else 1), "--sampler", "random", "--pruner", "none",
                "--model.backbone", "test_efficientnet", "--model.weights", "none", "--trainer.max_epochs", str(epochs),
                "--trainer.accelerator", "cpu", "--tracking.system_metrics", "false", *flags,
            ]  # fmt: skip
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, cwd=CHECKOUT)
            if workers:
                seconds[workers].append(span(connect(uri), f"s{number}", pd))
        client = connect(uri)
        found = {
            workers: [cost for round_ in range(rounds) for cost in costs(client, f"s{2 * round_ + workers}", pd)]
            for workers in (1, 2)
        }
    overheads = [whole - training for whole, training in found[1]]
    training = {workers: statistics.median(epochs for _, epochs in found[workers]) for workers in found}
    each = statistics.median(overheads)
    print(
        f"overhead of a trial (its process without its epochs): {each:.1f} s ({min(overheads):.1f}–{max(overheads):.1f}, "
        f"{len(overheads)} trials of one worker): {each / 300:.1%} of a five-minute trial"
    )
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    print(
        f"{trials} trials: one worker {min(seconds[1]):.1f} s, two workers {min(seconds[2]):.1f} s; speed-up "
        f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"
    )
    print(
        f"epochs of a trial: {training[1]:.1f} s alone, {training[2]:.1f} s next to another trial: the machine allows a speed-up of "
        f"{2 * training[1] / training[2]:.2f}×"
    )


def table(client, name: str, pd):
    """Return the run of a sweep and its table of trials."""
    (run,) = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], f"tags.kind = 'sweep' and params.study = '{name}'"
    )
    return run, pd.read_csv(client.download_artifacts(run.info.run_id, "trials.csv"))


def span(client, name: str, pd) -> float:
    """Return the seconds from the start of the first trial to the end of the last."""
    _, trials = table(client, name, pd)
    starts, ends = trials["start"].astype("datetime64[ns]"), trials["end"].astype("datetime64[ns]")
    return float((ends.max() - starts.min()).total_seconds())


def costs(client, name: str, pd) -> Iterator[tuple[float, float]]:
    """Yield the seconds of each trial, and the seconds of its epochs."""
    _, trials = table(client, name, pd)
    for row in trials.to_dict("records"):
        epochs = pd.read_csv(client.download_artifacts(row["run_id"], "epochs.csv"))
        yield 60 * row["minutes"], float(epochs["epoch_seconds"].sum())


def measure_empty(trials: int, workers: int) -> None:
    """Run trials that end at once, in processes that stay, with a journal."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        sweep = create(storage_url(None, place / "one.journal"), "one", PLAN, trials, maximize=True)
        sweep.begin(trials)
        sweep.study.set_user_attr("parent_run", "parent")
        slot.COMMAND = (sys.executable, "-c", EMPTY)
        engine = LocalEngine(place / "logs", workers, (), 1, {})
        client = MlflowClient(f"sqlite:///{place}/mlflow.db")
        start = time.perf_counter()
        with contextlib.closing(engine):
            TrialRunner(sweep, engine, {}, client, print).run(None, lambda: None)
        seconds = time.perf_counter() - start
        points = Counter(trial.params["model.dropout"] for trial in sweep.trials() if counts_towards_total(trial))
        print(
            f"{trials} empty trials, {workers} at the same time: {trials / seconds:.1f} trials/s; {sum(points.values())} count, "
            f"{sum(points.values()) - len(points)} twice"
        )


def main() -> None:
    """Measure the requested kind, and print its lines."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    which = parser.add_subparsers(dest="which", required=True)
    real = which.add_parser("trials", allow_abbrev=False)
    real.add_argument("--trials", type=int, default=4)
    real.add_argument("--epochs", type=int, default=6)
    real.add_argument("--rounds", type=int, default=2, help="sweeps of each number of workers")
    real.add_argument("flags", nargs="*", help="more flags of the sweep, after --")
    empty = which.add_parser("empty", allow_abbrev=False)
    empty.add_argument("--trials", type=int, default=100)
    empty.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print(machine("cpu"))
    if given.which == "trials":
        measure_trials(given.trials, given.epochs, given.rounds, given.flags)
    else:
        measure_empty(given.trials, given.workers)


if __name__ == "__main__":
    main()
