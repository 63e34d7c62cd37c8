"""How well the classes of a data set are told by what is hardly of the lesion: size, file, frame, colour of the picture's edge.

A model that is good at this has learned where an image comes from. Its area under the curve is what any accuracy published on the data
has to be held against: a network can use the same signs. They are not free of the lesion: one that reaches the edge colours it (but where
its mask is known), and a rough one takes more bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from threadpoolctl import threadpool_limits

FEATURES = {
    "width": "width, px",
    "height": "height, px",
    "bytes_per_pixel": "file size, bytes a pixel",
    "jpeg_table": "JPEG compression",
    "quality_border": "black border",
    "frame_red": "red at the edge",
    "frame_green": "green at the edge",
    "frame_blue": "blue at the edge",
    "frame_light": "brightness at the edge",
    "frame_warmth": "red against blue at the edge",
}
FOLDS = 5
LEAF = 20  # images in a leaf of a tree, at least, in all but small sets
FEW = 200  # images, below which the interval is too narrow to be told without a word
RESAMPLES = 1000


@dataclass(frozen=True)
class Confounding:
    """The classes told by nuisance features alone.

    Attributes:
        auroc: of a small model, cross-validated; mean over the classes, each against the others (of two classes that of the second).
        low: of the 95 % interval over lesions, folds and model as they are; of less than `FEW` images it is too narrow: of 60 images of six
            classes without any sign of them, 13 % of the intervals left out 0.5.
        high: see low.
        images: how many it is of.
        features: a row a feature, the strongest first: feature, what, auroc (of the feature's value alone, without any model: mean over the
            classes of the larger of the area and 1 − the area).
    """

    auroc: float
    low: float
    high: float
    images: int
    features: pd.DataFrame


def nuisance_table(facts: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of `FEATURES` from the facts about files (`Examination.table`)."""
    sides = facts[["frame_red", "frame_green", "frame_blue"]].mean(axis=1)
    warmth = (facts["frame_red"] - facts["frame_blue"]) / (sides + 1)
    return facts.assign(frame_light=sides, frame_warmth=warmth)[list(FEATURES)].astype(np.float64)


def measure_confounding(
    diagnosis: pd.Series, facts: pd.DataFrame, groups: Sequence[str] | npt.NDArray[np.object_], classes: Sequence[str]
) -> tuple[Confounding | None, str]:
    """Cross-validate a small model of the classes on nuisance features alone, no group on two sides.

    Gradient-boosted trees (scikit-learn's `HistGradientBoostingClassifier`) in five grouped, stratified folds; the area is that of pairs
    within a fold (`fold_areas`); the interval is a bootstrap over groups (`evaluation.statistics`).

    Args:
        diagnosis: (N,) of each image, None where unknown.
        facts: (N) rows of `Examination.table`.
        groups: (N,) lesion of each image, copies merged.
        classes: the diagnoses, in order.

    Returns:
        The result, and ""; or None, and why it cannot be measured.
    """
    known = (diagnosis.notna() & (facts["error"] == "")).to_numpy()
    lesions = np.asarray(groups, dtype=object)[known].astype(str)
    found = diagnosis[known].astype(str).to_numpy()
    counts = pd.DataFrame({"class": found, "lesion": lesions}).groupby("class")["lesion"].nunique()
    usable = [name for name in classes if counts.get(name, 0) >= FOLDS]
    kept = np.isin(found, usable)
    if len(usable) < 2:
        return None, f"fewer than two classes have {FOLDS} lesions or more"
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import StratifiedGroupKFold

    from skincancer.metrics.bootstrap import bootstrap_weights, percentile_interval

    table = nuisance_table(facts[known])[kept]
    values, lesions = table.to_numpy(), lesions[kept]
    label = np.array([usable.index(name) for name in found[kept]])
    probability = np.zeros((len(label), len(usable)))
    fold = np.zeros(len(label), dtype=np.int64)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for number, (train, test) in enumerate(folds.split(values, label, lesions)):
        smallest = min(LEAF, max(2, len(train) // LEAF))  # leaves of twenty would leave a small set undivided
        model = HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=15, min_samples_leaf=smallest, random_state=0
        )
        # beside another job, threads that wait for each other take minutes
        with threadpool_limits(1, user_api="openmp"):
            model.fit(values[train], label[train])
        # a class that a fold did not learn has probability 0 there
        probability[np.ix_(test, model.classes_)] = model.predict_proba(values[test])
        fold[test] = number
    area = float(fold_areas(label, probability, fold, np.ones((1, len(label))))[0])
    resampled = fold_areas(label, probability, fold, bootstrap_weights(lesions, label, RESAMPLES, seed=0))
    low, high, _ = percentile_interval(area, resampled)
    alone = [
        (name, what, _alone(table[name].to_numpy(), label, len(usable)))
        for name, what in FEATURES.items()
        if table[name].nunique() > 1
    ]
    features = pd.DataFrame(alone, columns=["feature", "what", "auroc"])
    features = features.sort_values("auroc", ascending=False, kind="stable", ignore_index=True)
    return Confounding(area, low, high, len(label), features), ""


def fold_areas(
    label: npt.NDArray[np.int64],
    probability: npt.NDArray[np.float64],
    fold: npt.NDArray[np.int64],
    weight: npt.NDArray[Any],
) -> npt.NDArray[np.float64]:
    """Return the area under the curve of out-of-fold probabilities, from the pairs of images of one fold alone.

    Folds are not to be compared: one that holds more of a class leaves fewer of it to learn from, so that the class is expected less
    where there is more of it, and an area over all pairs falls below 0.5 where there is nothing to learn (Parker et al.,
    "Stratification bias in low signal microarray studies", BMC Bioinformatics 2007).

    Args:
        label: (N,) in 0 … C−1.
        probability: (N, C), rows summing to 1.
        fold: (N,) in which an image was tested.
        weight: (R, N), not negative: how often each image counts in each resample.

    Returns:
        (R,): the mean over the classes, each against the others; of two classes that of the second. NaN where no class has a pair.
    """
    from skincancer.metrics.classification import weighted_metrics

    classes = probability.shape[1]
    areas = []
    for number in [1] if classes == 2 else range(classes):
        won, pairs = np.zeros(len(weight)), np.zeros(len(weight))
        for tested in (fold == one for one in np.unique(fold)):
            own = label[tested] == number
            against = np.stack([1 - probability[tested, number], probability[tested, number]], axis=1)
            counts = weight[:, tested]
            area = weighted_metrics(own.astype(np.int64), against, ("others", "own"), counts)["auroc_macro"]
            count = counts[:, own].sum(axis=1) * counts[:, ~own].sum(axis=1)
            won += np.where(count > 0, area, 0) * count
            pairs += count
        areas.append(np.divide(won, pairs, out=np.full(len(weight), np.nan), where=pairs > 0))
    told = np.stack(areas)
    defined = np.isfinite(told).sum(axis=0)
    return np.divide(np.nansum(told, axis=0), defined, out=np.full(len(weight), np.nan), where=defined > 0)


def _alone(values: npt.NDArray[np.float64], label: npt.NDArray[np.int64], classes: int) -> float:
    """Return the mean over classes of how well one feature's value separates each from the others, 0.5 to 1."""
    from sklearn.metrics import roc_auc_score

    areas = [float(roc_auc_score(label == number, values)) for number in range(classes)]
    return float(np.mean([max(area, 1 - area) for area in areas]))


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
