"""Metrics by subgroup: age, sex, site, confirmation method and image quality.

Groups may differ in the performance of the model, or in their lesions: means leave out classes that a group does not have. Groups of
few lesions are listed without metrics, which would be noise, and may identify single patients. Metrics of a class with
few lesions in a group are left out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.imaging.quality import FLAGS
from skincancer.metrics.classification import check_predictions
from skincancer.metrics.estimates import classification_intervals
from skincancer.metrics.names import MAIN_METRICS

ATTRIBUTES = ("age", "sex", "site", "dx_type", FLAGS)
# First year of each band.
AGE_BANDS = {"0–29": 0, "30–44": 30, "45–59": 45, "60–74": 60, "75+": 75}
UNKNOWN = "unknown"
# Smallest number of lesions of a measured group.
SMALLEST = 30
# Smallest number of positive and of negative lesions for AUROC, balanced accuracy, sensitivity and specificity of a group. Intervals
# hold with fewer, but say little: that of an AUROC of 0.9 is 0.22 wide with 10 positive lesions and 0.32 with 5, that of a sensitivity
# of 0.9 is 0.44 and 0.63.
FEWEST = 10
METRICS = MAIN_METRICS["classification"]
TWO_CLASS_METRICS = (*METRICS, "sensitivity", "specificity")
MALIGNANT_AUROC = "auroc_malignant"
COLUMNS = ["attribute", "group", "n_images", "n_lesions", "n_positive", "metric", "value", "low", "high", "note"]


def age_band(ages: pd.Series) -> pd.Series:
    """Return the band of each age in years (`AGE_BANDS`), unknown if missing."""
    years = pd.to_numeric(ages, errors="coerce")
    band = pd.cut(years, [*AGE_BANDS.values(), np.inf], right=False, labels=list(AGE_BANDS))
    return band.astype(object).where(years.notna(), UNKNOWN)


def subgroup_table(
    rows: pd.DataFrame, label: npt.ArrayLike, probability: npt.ArrayLike, classes: Sequence[str], malignant: Sequence[str] = (), *,
    smallest: int = SMALLEST,
) -> pd.DataFrame:  # fmt: skip
    """Measure every group of every attribute.

    Args:
        rows: (N rows), lesion_id and known `ATTRIBUTES`, with "" or NaN for unknown values and for images without `FLAGS`.
        label: (N,) integers in 0 … C−1.
        probability: (N, C), rows summing to 1.
        classes: the C class names.
        malignant: malignant classes; empty if unknown. The second of two classes is then positive.
        smallest: smallest number of lesions of a measured group.

    Returns:
        One row per group and metric: attribute, group, n_images, n_lesions, n_positive (images of malignant or positive classes; no
        such column if these are unknown), metric, value, low, high, note. Metrics are `METRICS`, for two classes also sensitivity and
        specificity. For more classes with known malignant ones, `auroc_malignant` of the summed malignant probabilities replaces
        `auroc_macro`. A group of one class has only its recall, and metrics that need both sides are left out below `FEWEST` lesions
        of either. A group that is too small has one row with no metric and a note. Attributes without known values have no
        rows, nor do flags that no image or every image has.

    Raises:
        ValueError: malformed predictions, or `rows` of another length.
    """
    y, p = check_predictions(label, probability, classes)
    if len(rows) != len(y):
        raise ValueError(f"rows must be as many as labels, got {len(rows)} and {len(y)}")
    positive = [number for number, name in enumerate(classes) if name in malignant]
    if not positive and len(classes) == 2:
        positive = [1]
    lesion = rows["lesion_id"].to_numpy().astype(str)
    table: list[dict[Hashable, object]] = []
    for attribute, values in _groups(rows):
        order = list(AGE_BANDS) if attribute == "age" else sorted(set(values) - {UNKNOWN})
        for name in [*order, UNKNOWN]:
            chosen = values == name
            if not chosen.any():
                continue
            n_lesions = len(set(lesion[chosen]))
            head: dict[Hashable, object] = {
                "attribute": attribute, "group": name, "n_images": int(chosen.sum()), "n_lesions": n_lesions,
                "n_positive": int(np.isin(y[chosen], positive).sum()),
            }  # fmt: skip
            if n_lesions < smallest:
                table.append({**head, "metric": "", "note": f"fewer than {smallest} lesions"})
                continue
            measured = _measure(y[chosen], p[chosen], lesion[chosen], classes, positive)
            table += [{**head, **row} for row in measured.drop(columns="n_resamples").to_dict("records")]
    return pd.DataFrame(table, columns=[name for name in COLUMNS if positive or name != "n_positive"])


def _groups(rows: pd.DataFrame) -> list[tuple[str, npt.NDArray[np.object_]]]:
    """Return known attributes, each with the group of every image."""
    groups = []
    for attribute in ATTRIBUTES:
        if attribute not in rows:
            continue
        if attribute == "age":
            values = age_band(rows["age"])
        elif attribute == FLAGS:
            flagged = rows[FLAGS].fillna("") != ""
            if flagged.all() or not flagged.any():
                continue
            values = flagged.map({True: "flagged", False: "not flagged"})
        else:
            text = rows[attribute].astype(object).where(rows[attribute].notna(), "")
            values = text.replace("", UNKNOWN)
        if (values != UNKNOWN).any():
            groups.append((attribute, values.to_numpy(dtype=object)))
    return groups


def _measure(
    label: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], lesion: npt.NDArray[np.str_],
    classes: Sequence[str], positive: list[int],
) -> pd.DataFrame:  # fmt: skip
    present = np.unique(label)
    if len(present) == 1:
        return classification_intervals(label, probability, lesion, classes, [f"recall/{classes[present[0]]}"])
    if len(classes) == 2 or not positive:
        names = TWO_CLASS_METRICS if len(classes) == 2 else METRICS
        enough = {int(c) for c in present if len(set(lesion[label == c])) >= FEWEST}
        needed = {"accuracy": set[int](), "sensitivity": {1}, "specificity": {0}}
        if len(classes) > 2:
            needed["balanced_accuracy"] = set()
        shown = [name for name in names if needed.get(name, {*present.tolist()}) <= enough]
        return classification_intervals(label, probability, lesion, classes, shown)
    table = classification_intervals(label, probability, lesion, classes, METRICS[:2])
    malignant = np.isin(label, positive)
    if min(len(set(lesion[side])) for side in (malignant, ~malignant)) < FEWEST:
        return table
    score = probability[:, positive].sum(axis=1).clip(0, 1)
    two = np.column_stack([1 - score, score])
    areas = classification_intervals(malignant.astype(np.int64), two, lesion, ["benign", "malignant"], ["auroc_macro"])
    return pd.concat([table, areas.assign(metric=MALIGNANT_AUROC)])
