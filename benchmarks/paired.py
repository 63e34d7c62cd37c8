"""Two classifiers or two segmenters on the same test images: the difference of their metrics, with paired intervals over lesions.

python benchmarks/paired.py RUN_A RUN_B [--tracking.uri URI]

A run may be a folder, such as bare_loop.py leaves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from skincancer.comparison.predictions import load_scores
from skincancer.comparison.tables import Resamples, paired_difference, same_images
from skincancer.metrics.names import MASK_METRICS
from skincancer.runs.artifacts import predictions_file
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore

METRICS = ("accuracy", "balanced_accuracy", "auroc_macro")


def main() -> None:
    """Print a line a metric."""
    parser = argparse.ArgumentParser(description="The paired difference of two runs.", allow_abbrev=False)
    parser.add_argument("runs", nargs=2, metavar="RUN_ID")
    parser.add_argument("--tracking.uri", dest="uri", metavar="URI", help="the tracking store of both")
    given = parser.parse_args()
    found, classes = [], []
    for name in given.runs:
        run = FinishedRun(name, RunStore(given.uri))
        classes.append(run.classes)
        metrics = MASK_METRICS if run.task == "segmentation" else METRICS
        found.append(load_scores(run.file(predictions_file("test")), run.classes, metrics[0]))
    first, second = found
    if type(first) is not type(second) or classes[0] != classes[1] or not same_images(first, second):
        sys.exit("the two runs are of other tasks, classes or test images: there is nothing to pair")
    print(f"{len(first)} images, {len(set(first.lesion_id))} lesions; {given.runs[0]} minus {given.runs[1]}, 95 %")
    resamples = Resamples()
    for metric in metrics:
        value, low, high, _ = paired_difference(metric, [first], [second], resamples)
        print(f"{metric:<20} {value:+.3f} ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
