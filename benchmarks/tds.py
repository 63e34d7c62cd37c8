"""Measure how well the total dermoscopy score (TDS) separates melanomas from nevi.

    python -m skincancer.prepare ham10000 --data.root FOLDER --features --out features.csv
    python benchmarks/tds.py features.csv

Printed are the AUROC with and without the term D (differential structures), and sensitivity and specificity at the threshold of the
rule (above 5.45; Nachbar et al. 1994 report 92.8 % and 90.3 % by physicians, of 172 lesions), with 95 % intervals over lesions, and how
often each differential structure is present in each class.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from skincancer.metrics.bootstrap import bootstrap_weights

CUT = 5.45
STRUCTURES = ("network", "structureless", "dots", "globules", "streaks")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="output of prepare --features --out")
    parser.add_argument("--positive", default="mel")
    parser.add_argument("--negative", default="nv")
    given = parser.parse_args()

    whole = pd.read_csv(given.table)
    two = whole[whole["diagnosis"].isin([given.positive, given.negative]) & whole["abcd_tds"].notna()]
    label = (two["diagnosis"] == given.positive).to_numpy().astype(np.int64)
    weights = bootstrap_weights(two["lesion_id"].to_numpy().astype(str), 1000, seed=0)
    print(
        f"{len(two)} images, {label.sum()} of {given.positive}; without a score: {int(whole['abcd_tds'].isna().sum())}"
    )
    for name in (
        "abcd_tds",
        "abcd_tds_without_d",
        "abcd_structure_count",
        "abcd_structure_dots",
        "abcd_structure_globules",
    ):
        score = two[name].to_numpy()
        auroc = interval(label, score, weights, lambda y, s, w: roc_auc_score(y, s, sample_weight=w))
        print(f"{name:<26} AUROC {auroc}")
    above = (two["abcd_tds"] > CUT).to_numpy()
    for name, own in (("sensitivity", label == 1), ("specificity", label == 0)):
        right = above == (label == 1)
        print(
            f"{name} at {CUT}: {interval(label, right, weights, lambda y, s, w, own=own: np.average(s[own], weights=w[own]))}"
        )
    shown = [f"abcd_structure_{name}_present" for name in STRUCTURES]
    shares = whole.groupby("diagnosis")[[*shown, "abcd_structure_count"]].mean().round(2)
    print(shares.rename(columns=dict(zip(shown, STRUCTURES, strict=True))).to_string())


def interval(label: np.ndarray, score: np.ndarray, weights: np.ndarray, measure: Callable[..., float]) -> str:
    """Return a value with its 95 % interval."""
    value = measure(label, score, np.ones(len(label)))
    low, high = np.quantile([measure(label, score, row) for row in weights], [0.025, 0.975])
    return f"{value:.3f} ({low:.3f} – {high:.3f})"


if __name__ == "__main__":
    main()
