"""Confounding check: predict the class from nuisance features alone.

Nuisance features are image size, file size, border and edge colour. A high AUROC means that the class depends on the source of an image.
Published results on the data should be compared with this AUROC, since a network can use the same features. The features also depend on
the lesion: a lesion at the edge changes the edge colour (unless its mask is known), and a rough lesion takes more bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from skincancer.metrics import lesion_sums
from skincancer.metrics.areas import auroc_influence
from skincancer.metrics.bootstrap import lesion_numbers
from skincancer.metrics.combinations import mean
from skincancer.metrics.intervals import Estimate, NoInterval

FEATURES = {
    "width": "width, px",
    "height": "height, px",
    "bytes_per_pixel": "file size, bytes per pixel",
    "jpeg_table": "JPEG compression",
    "quality_border": "black border",
    "frame_red": "red at the edge",
    "frame_green": "green at the edge",
    "frame_blue": "blue at the edge",
    "frame_light": "brightness at the edge",
    "frame_warmth": "red against blue at the edge",
}
FOLDS = 5
# Minimum number of images in a leaf of a tree, except in small data sets.
LEAF = 20
# Number of images below which a warning accompanies the interval, which is then too narrow.
FEW = 200


@dataclass(frozen=True)
class Confounding:
    """Result of predicting the class from nuisance features alone.

    Attributes:
        auroc: cross-validated AUROC of a small model, one class against the rest, mean over the classes (of two classes the second).
        low: lower end of the 95 % interval over lesions, with fixed folds and models. Below `FEW` images the interval is too narrow:
            for 60 images of six classes and random features, 16 % of the intervals excluded 0.5.
        high: upper end of the interval.
        images: number of images.
        features: one row per feature, strongest first: feature, what, auroc (of the feature value without a model: mean over the classes of
            the larger of the AUROC and 1 − AUROC).
    """

    auroc: float
    low: float
    high: float
    images: int
    features: pd.DataFrame


def nuisance_table(facts: pd.DataFrame) -> pd.DataFrame:
    """Compute the columns of `FEATURES` from the file facts (`Examination.table`)."""
    sides = facts[["frame_red", "frame_green", "frame_blue"]].mean(axis=1)
    warmth = (facts["frame_red"] - facts["frame_blue"]) / (sides + 1)
    return facts.assign(frame_light=sides, frame_warmth=warmth)[list(FEATURES)].astype(np.float64)


def measure_confounding(
    diagnosis: pd.Series, facts: pd.DataFrame, groups: Sequence[str] | npt.NDArray[np.object_], classes: Sequence[str]
) -> tuple[Confounding | None, str]:
    """Cross-validate a small classifier on nuisance features, with lesions kept together.

    Gradient-boosted trees (`HistGradientBoostingClassifier` of scikit-learn) in five grouped, stratified folds. The AUROC compares pairs
    of images within a fold (`fold_area`). The interval is over groups (`metrics.intervals`).

    Args:
        diagnosis: (N,) diagnosis of each image, None if unknown.
        facts: N rows of `Examination.table`.
        groups: (N,) lesion of each image, with copies merged.
        classes: diagnoses, in order.

    Returns:
        The result and "", or None and the reason why the check is not possible.
    """
    known = (diagnosis.notna() & (facts["error"] == "")).to_numpy()
    lesions = np.asarray(groups, dtype=object)[known].astype(str)
    targets = diagnosis[known].astype(str).to_numpy()
    counts = pd.DataFrame({"class": targets, "lesion": lesions}).groupby("class")["lesion"].nunique()
    usable = [name for name in classes if counts.get(name, 0) >= FOLDS]
    kept = np.isin(targets, usable)
    if len(usable) < 2:
        return None, f"fewer than two classes have {FOLDS} lesions or more"
    table = nuisance_table(facts[known])[kept]
    values, lesions = table.to_numpy(), lesions[kept]
    label = np.array([usable.index(name) for name in targets[kept]])
    probability = np.zeros((len(label), len(usable)))
    fold = np.zeros(len(label), dtype=np.int64)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for number, (train, test) in enumerate(folds.split(values, label, lesions)):
        # With leaves of 20 images the trees of a small data set would never split.
        smallest = min(LEAF, max(2, len(train) // LEAF))
        model = HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=15, min_samples_leaf=smallest, random_state=0
        )
        # Next to another job, OpenMP threads that wait for each other take minutes.
        with threadpool_limits(1, user_api="openmp"):
            model.fit(values[train], label[train])
        # A class without training images in this fold gets probability 0.
        probability[np.ix_(test, model.classes_)] = model.predict_proba(values[test])
        fold[test] = number
    numbers = lesion_numbers(lesions, len(label))
    scored = [1] if len(usable) == 2 else range(len(usable))
    area = mean([fold_area(label == number, probability[:, number], fold, numbers) for number in scored])
    low, high = area.bounds()
    alone = [
        (name, what, _alone(table[name].to_numpy(), label, len(usable)))
        for name, what in FEATURES.items()
        if table[name].nunique() > 1
    ]
    features = pd.DataFrame(alone, columns=["feature", "what", "auroc"])
    features = features.sort_values("auroc", ascending=False, kind="stable", ignore_index=True)
    return Confounding(area.value, low, high, len(label), features), ""


def fold_area(
    positive: npt.NDArray[np.bool_],
    score: npt.NDArray[np.float64],
    fold: npt.NDArray[np.int64],
    lesion: npt.NDArray[np.int64],
) -> Estimate:
    """Estimate the AUROC of out-of-fold scores from pairs within a fold.

    Pairs across folds are biased: the more images of a class a fold contains, the fewer remain for training, and the lower is the
    predicted probability of that class. Without any signal, an AUROC over all pairs then falls below 0.5 (Parker et al., "Stratification
    bias in low signal microarray studies", BMC Bioinformatics 2007). The value is NaN without pairs.

    Args:
        positive: (N,), image is of the class.
        score: (N,), predicted probability of the class.
        fold: (N,), test fold of each image.
        lesion: (N,), integer of the lesion of each image.
    """
    won, pairs = 0.0, 0
    influence, paired = np.zeros(len(score)), np.zeros(len(score), dtype=bool)
    for tested in (fold == number for number in np.unique(fold)):
        count = int(positive[tested].sum() * (~positive[tested]).sum())
        if count:
            area, moved = auroc_influence(positive[tested], score[tested])
            won, pairs = won + count * area, pairs + count
            influence[tested], paired[tested] = count * moved, True
    if not pairs:
        return NoInterval(np.nan, np.zeros(len(np.unique(lesion))), "no two classes within a fold")
    sides = positive & paired, ~positive & paired
    sums = np.zeros((lesion.max() + 1, 4))
    np.add.at(sums, lesion, np.column_stack([*(influence * side / pairs for side in sides), *sides]))
    return lesion_sums.area(won / pairs, *sums.T)


def _alone(values: npt.NDArray[np.float64], label: npt.NDArray[np.int64], classes: int) -> float:
    """Return the AUROC of one feature without a model, 0.5 to 1."""
    areas = [float(roc_auc_score(label == number, values)) for number in range(classes)]
    return float(np.mean([max(area, 1 - area) for area in areas]))


Groups = Sequence[str] | npt.NDArray[np.object_]


@dataclass(frozen=True)
class Source:
    """Confounding check within one class or one confirmation method.

    `what` is the beginning of the sentence that describes the check.
    """

    what: str
    confounding: Confounding


def measure_sources(
    index: pd.DataFrame, facts: pd.DataFrame, groups: Groups, classes: Sequence[str], elsewhere: pd.Series | None, other: str
) -> list[Source]:  # fmt: skip
    """Measure confounding within one confirmation method and within one class.

    Predicts the class within one confirmation method (`dx_type`), and the confirmation method and the membership in another data set
    within one class.

    Args:
        index: index of the data set.
        facts: N rows of `Examination.table`.
        groups: (N,) lesion of each image.
        classes: diagnoses, in order.
        elsewhere: bool (N,), image is also in the other data set, or None without one.
        other: name of the other data set.

    Returns:
        Up to three results, for the confirmation method and the class with the most lesions.
    """
    diagnosis, method = index["diagnosis"], index["dx_type"]
    sources = []
    if fixed_method := _largest(diagnosis, method, groups):
        result, _ = measure_confounding(diagnosis.where(method == fixed_method), facts, groups, classes)
        if result:
            sources.append(Source(f"Of images confirmed by {fixed_method} alone, the classes", result))
    targets = [(method.where(method != "", None), "how the diagnosis was confirmed")]
    if elsewhere is not None:
        targets.append((elsewhere.map({True: "there", False: "elsewhere"}), f"whether an image is also in {other}"))
    for target, what in targets:
        if fixed_class := _largest(target, diagnosis, groups):
            values = target.where(diagnosis == fixed_class, None)
            result, _ = measure_confounding(values, facts, groups, sorted(set(values.dropna())))
            if result:
                sources.append(Source(f"Of {fixed_class} alone, {what}", result))
    return sources


def _largest(target: pd.Series, fixed: pd.Series, groups: Groups) -> str | None:
    """Return the value of `fixed` that allows the largest confounding check.

    This is the value for which the second most frequent target has the most lesions, or None with fewer than `FOLDS` lesions.
    """
    table = pd.DataFrame({"target": target.to_numpy(), "fixed": fixed.to_numpy(), "group": np.asarray(groups)})
    table = table[table["target"].notna() & table["fixed"].notna() & (table["fixed"] != "")]
    counts = table.groupby(["fixed", "target"])["group"].nunique()
    second = {str(value): sorted(lesions)[-2] for value, lesions in counts.groupby(level=0) if len(lesions) > 1}
    best = max(second, key=lambda value: second[value], default=None)
    return best if best is not None and second[best] >= FOLDS else None
