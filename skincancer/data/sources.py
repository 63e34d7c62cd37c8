"""Whether nuisance features tell where an image comes from, where its class is held fixed, and its class, where the source is.

Where they tell the classes, that may be the source or the lesion itself (`skincancer.data.confounding`). How a diagnosis was
confirmed, and whether another data set holds the image, are signs of a source: within one class they have nothing to do with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.data.confounding import FOLDS, Confounding, measure_confounding

Groups = Sequence[str] | npt.NDArray[np.object_]


@dataclass(frozen=True)
class Source:
    """What nuisance features tell where something else is held fixed: a sentence's beginning, and how well."""

    what: str
    told: Confounding


def measure_sources(
    index: pd.DataFrame, facts: pd.DataFrame, groups: Groups, classes: Sequence[str], elsewhere: pd.Series | None, other: str
) -> list[Source]:  # fmt: skip
    """Measure what the data allow: classes within one way of confirmation; within one class that way, and membership of another set.

    Args:
        index: of the data set.
        facts: (N) rows of `Examination.table`.
        groups: (N,) lesion of each image.
        classes: the diagnoses, in order.
        elsewhere: (N,) bool, the image is in the other data set; None without one.
        other: its name.

    Returns:
        Up to three results; of the way, and the class, that most images allow.
    """
    diagnosis, way = index["diagnosis"], index["dx_type"]
    found = []
    if way_fixed := _largest(diagnosis, way, groups):
        told, _ = measure_confounding(diagnosis.where(way == way_fixed), facts, groups, classes)
        if told:
            found.append(Source(f"Of images confirmed by {way_fixed} alone, the classes", told))
    signs = [(way.where(way != "", None), "how the diagnosis was confirmed")]
    if elsewhere is not None:
        signs.append((elsewhere.map({True: "there", False: "elsewhere"}), f"whether an image is also in {other}"))
    for sign, what in signs:
        if fixed := _largest(sign, diagnosis, groups):
            values = sign.where(diagnosis == fixed, None)
            told, _ = measure_confounding(values, facts, groups, sorted(set(values.dropna())))
            if told:
                found.append(Source(f"Of {fixed} alone, {what}", told))
    return found


def _largest(target: pd.Series, fixed: pd.Series, groups: Groups) -> str | None:
    """Return the value of `fixed` within which the second most frequent target has most lesions; None where that is too few."""
    table = pd.DataFrame({"target": target.to_numpy(), "fixed": fixed.to_numpy(), "group": np.asarray(groups)})
    table = table[table["target"].notna() & table["fixed"].notna() & (table["fixed"] != "")]
    counts = table.groupby(["fixed", "target"])["group"].nunique()
    second = {str(value): sorted(part)[-2] for value, part in counts.groupby(level=0) if len(part) > 1}
    best = max(second, key=lambda value: second[value], default=None)
    return best if best is not None and second[best] >= FOLDS else None
