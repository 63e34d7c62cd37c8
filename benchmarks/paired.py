"""Compare two runs on the same test images, with paired intervals over lesions.

python benchmarks/paired.py RUN_A RUN_B [--tracking.uri URI]

Both runs are classifiers or both are segmenters. A run may also be a folder that bare_loop.py has written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.comparison.predictions import load_scores
from skincancer.comparison.tables import paired_difference, same_images
from skincancer.metrics.names import MASK_METRICS
from skincancer.runs.artifacts import predictions_file
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore

METRICS = ("accuracy", "balanced_accuracy", "auroc_macro")


def main() -> None:
    """Print one line per metric."""
    parser = argparse.ArgumentParser(description="Paired differences of two runs.", allow_abbrev=False)
    parser.add_argument("runs", nargs=2, metavar="RUN_ID")
    parser.add_argument("--tracking.uri", dest="uri", metavar="URI", help="MLflow store of both runs")
    given = parser.parse_args()
    found, classes = [], []
    for name in given.runs:
        run = FinishedRun(name, RunStore(given.uri))
        classes.append(run.classes)
        metrics = MASK_METRICS if run.task == "segmentation" else METRICS
        found.append(load_scores(run.file(predictions_file("test")), run.classes, metrics[0]))
    first, second = found
    if type(first) is not type(second) or classes[0] != classes[1] or not same_images(first, second):
        sys.exit("the runs differ in task, classes or test images. Use two runs on the same test images.")
    print(f"{len(first)} images, {len(set(first.lesion_id))} lesions; {given.runs[0]} minus {given.runs[1]}, 95 %")
    for metric in metrics:
        value, low, high, _ = paired_difference(metric, [first], [second])
        print(f"{metric:<20} {value:+.3f} ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
