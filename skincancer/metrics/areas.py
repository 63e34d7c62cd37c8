"""AUROC and average precision with the influence of each image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

Floats = npt.NDArray[np.float64]


def auroc_influence(positive: npt.NDArray[np.bool_], score: Floats) -> tuple[float, Floats]:
    """Return the AUROC and the influence (N,) of each image.

    The structural components of DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988) from midranks (Sun and Xu, IEEE Signal
    Processing Letters 21, 2014), divided by the number of images of their class. Both are NaN with a single class.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    influence = np.full(len(score), np.nan)
    if not m or not n:
        return np.nan, influence
    midrank = stats.rankdata(score)
    # Share of the negatives below a positive, and of the positives above a negative. Ties count half.
    beaten = (midrank[positive] - stats.rankdata(score[positive])) / n
    beating = 1 - (midrank[~positive] - stats.rankdata(score[~positive])) / m
    area = float(beaten.mean())
    influence[positive] = (beaten - area) / m
    influence[~positive] = (beating - area) / n
    return area, influence


def average_precision_influence(positive: npt.NDArray[np.bool_], score: Floats) -> tuple[float, Floats]:
    """Return the average precision and the influence (N,) of each image.

    The influence is the derivative by the weight of the image. Both are NaN with a single class.
    """
    m = int(positive.sum())
    if not 0 < m < len(score):
        return np.nan, np.full(len(score), np.nan)
    _, block = np.unique(-score, return_inverse=True)
    all_of, positive_of = np.bincount(block), np.bincount(block, weights=positive)
    called, hits = np.cumsum(all_of), np.cumsum(positive_of)
    precision = hits / called
    value = float(positive_of @ precision / m)
    # An image counts in the precision of its own block and of all blocks below.
    below_hit = np.cumsum((positive_of / called)[::-1])[::-1]
    below_call = np.cumsum((positive_of * hits / called**2)[::-1])[::-1]
    influence = positive * (precision + below_hit - value)[block] - below_call[block]
    return value, influence / m


def average_precision_bias(positive: npt.NDArray[np.bool_], score: Floats, lesion: npt.NDArray[np.int64]) -> float:
    """Estimate how much the average precision of few images is too high.

    The precision at a positive image counts the image itself. Without this, random scores would on average have the prevalence (Bestgen,
    "Exact expected average precision of the random baseline", Prague Bulletin of Mathematical Linguistics 103, 2015). The bias is the
    mean difference to the precision among other lesions, where there are any; 0 with a single class.

    Args:
        positive: (N,), image is positive.
        score: (N,), score of each image.
        lesion: (N,), integer of the lesion of each image.
    """
    if not positive.any():
        return 0.0
    called = stats.rankdata(-score, method="max")[positive]
    hits = stats.rankdata(-score[positive], method="max")
    own_called = pd.Series(score).groupby(lesion).rank(method="max", ascending=False).to_numpy()[positive]
    own_hits = pd.Series(score[positive]).groupby(lesion[positive]).rank(method="max", ascending=False).to_numpy()
    precision = hits / called
    others = called - own_called
    excess = np.where(others > 0, precision - (hits - own_hits) / np.maximum(others, 1), 0)
    return max(float(excess.mean()), 0.0)
