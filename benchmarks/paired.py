"""Two classifiers or two segmenters on the same test images: the difference of their metrics, with paired intervals over lesions.

python benchmarks/paired.py RUN_A RUN_B [--tracking.uri URI]

A run may be a folder, such as bare_loop.py leaves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from skincancer.artifacts import fetch_run
from skincancer.evaluation.masks import MASK_METRICS
from skincancer.evaluation.predictions import read_predictions, read_scores
from skincancer.evaluation.statistics import bootstrap_difference, bootstrap_means

METRICS = ("accuracy", "balanced_accuracy", "auroc_macro")


def main() -> None:
    """Print a line a metric."""
    parser = argparse.ArgumentParser(description="The paired difference of two runs.", allow_abbrev=False)
    parser.add_argument("runs", nargs=2, metavar="RUN_ID")
    parser.add_argument("--tracking.uri", dest="uri", metavar="URI", help="the tracking store of both")
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(given.runs):
            names = fetch_run(run, Path(folder) / str(number), given.uri, ("classes.json", "predictions/test.csv"))
            classes = json.loads(names[0].read_text(encoding="utf-8"))["classes"]
            masks = "label" not in pd.read_csv(names[1], nrows=0)
            found.append(
                (classes, *((read_scores(names[1]), None, None) if masks else read_predictions(names[1], classes)))
            )
    (classes, table, label, first), (other_classes, other, other_label, second) = found
    same = table[["image_id", "lesion_id"]].equals(other[["image_id", "lesion_id"]])
    if not same or (label is None) != (other_label is None):
        sys.exit("the two runs are of other tasks or have other test images: there is nothing to pair")
    lesion = table["lesion_id"].to_numpy()
    print(f"{len(table)} images, {table['lesion_id'].nunique()} lesions; {given.runs[0]} minus {given.runs[1]}, 95 %")
    if label is None:
        difference = table[list(MASK_METRICS)] - other[list(MASK_METRICS)]
        for row in bootstrap_means(difference, MASK_METRICS, lesion).to_dict("records"):
            print(f"{row['metric']:<20} {row['value']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})")
        return
    if classes != other_classes or (label != other_label).any():
        sys.exit("the two runs have other classes or other labels: there is nothing to pair")
    for metric in METRICS:
        value, low, high = bootstrap_difference(metric, label, first, second, lesion, classes)
        print(f"{metric:<20} {value:+.3f} ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
