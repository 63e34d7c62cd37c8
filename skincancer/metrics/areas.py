"""AUROC and average precision with the influence of each image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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
