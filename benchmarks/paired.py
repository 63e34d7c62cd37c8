"""Two classifiers' runs on the same test images: the difference of their metrics, with paired intervals over lesions.

python benchmarks/paired.py RUN_A RUN_B [--tracking.uri URI]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed

from skincancer.artifacts import fetch_run
from skincancer.evaluation.predictions import read_predictions
from skincancer.evaluation.statistics import bootstrap_difference

METRICS = ("accuracy", "balanced_accuracy", "auroc_macro")


def main() -> None:
    """Print a line a metric."""
    parser = argparse.ArgumentParser(description="The paired difference of two runs.", allow_abbrev=False)
    parser.add_argument("runs", nargs=2, metavar="RUN_ID")
    parser.add_argument("--tracking.uri", dest="uri", metavar="URI", help="the tracking store of both")
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for run in given.runs:
            names = fetch_run(run, Path(folder) / run, given.uri, ("classes.json", "predictions/test.csv"))
            classes = json.loads(names[0].read_text(encoding="utf-8"))["classes"]
            found.append((classes, *read_predictions(names[1], classes)))
    (classes, table, label, first), (other_classes, other, other_label, second) = found
    same = table[["image_id", "lesion_id"]].equals(other[["image_id", "lesion_id"]])
    if classes != other_classes or not same or (label != other_label).any():
        sys.exit("the two runs have other classes or other test images: there is nothing to pair")
    print(f"{len(table)} images, {table['lesion_id'].nunique()} lesions; {given.runs[0]} minus {given.runs[1]}, 95 %")
    for metric in METRICS:
        value, low, high = bootstrap_difference(metric, label, first, second, table["lesion_id"].to_numpy(), classes)
        print(f"{metric:<20} {value:+.3f} ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
