"""Which images are the same, or nearly: exact copies by digests, near-duplicates by their looks, and the groups that both make.

Near-duplicates are looked for among each image's nearest neighbours by a description that flips and turns do not alter, in a k-d tree
(about n log n), and each candidate is verified by the correlation of its detail after registration (`skincancer.imaging.similarity`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from joblib import Parallel, delayed
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from skincancer.imaging.similarity import (
    COARSE,
    FINE,
    TURNS,
    VIEWS,
    Floats,
    Thumbnails,
    coarse_detail,
    correlate,
    cut,
    describe,
    is_flat,
    turn,
)

NEAR = 0.9  # correlation of detail from which two pictures are near-duplicates
LIKELY = 0.6  # correlation of coarse detail, before registration, from which a candidate is verified
NEIGHBOURS = 5  # candidates of each view of an image
_DIMENSIONS = 24  # of the space of the k-d tree
_BLOCK = 512  # images at once
Progress = Callable[[int, int], None]


def find_near(
    first: Thumbnails, second: Thumbnails | None = None, *, threshold: float = NEAR, progress: Progress | None = None
) -> pd.DataFrame:
    """Find the near-duplicates among images, or between two lists of images.

    Args:
        first: uint8 (N, T, T) thumbnails; among themselves where `second` is not given.
        second: uint8 (M, U, U).
        threshold: correlation from which two are near-duplicates.
        progress: called with (done, total).

    Returns:
        A row a pair, sorted: first and second (int64, their positions; among themselves first < second), correlation. Images that
        show nothing are in none.
    """
    among = second is None
    others = first if second is None else second
    sides = _Side(first), _Side(others)
    jobs = [(0, 1, view) for view in range(len(VIEWS))]
    if not among:
        jobs += [(1, 0, view) for view in range(1, len(VIEWS))]
    found: list[npt.NDArray[np.float64]] = []
    if sides[0].rows.size and sides[1].rows.size:
        basis = _basis(sides[0].description if among else np.concatenate([side.description for side in sides]))
        trees = [KDTree(_project(side.description, basis)) for side in sides]
        for number, (queried, indexed, view) in enumerate(jobs, 1):
            found.append(_candidates(sides[queried], sides[indexed], trees[indexed], basis, view, queried, among))
            if progress:
                progress(number, 2 * len(jobs))
    columns = ["first", "second", "queried", "view", "turn", "likely"]
    pairs = pd.DataFrame(np.concatenate(found) if found else np.empty((0, 6)), columns=columns)
    if among:  # a pair has been met from both ends
        low, high = pairs[["first", "second"]].min(axis=1), pairs[["first", "second"]].max(axis=1)
        pairs["queried"] = (pairs["first"] > pairs["second"]).astype(int)
        pairs["first"], pairs["second"] = low, high
    best = pairs.sort_values("likely", ascending=False, kind="stable").drop_duplicates(["first", "second"])
    best = best[best["likely"] >= LIKELY]
    side = min(first.shape[1], others.shape[1], FINE)

    def verify(pair: Mapping[Hashable, Any]) -> float:
        own, other = first[int(pair["first"])], others[int(pair["second"])]
        if pair["queried"]:
            own, other = other, own
        return correlate(cut(own, int(pair["view"]), side), cut(other, 0, side), int(pair["turn"]))

    scores = []
    verified = Parallel(n_jobs=-1, prefer="threads", return_as="generator")  # OpenCV works outside Python's lock
    for number, score in enumerate(verified(delayed(verify)(pair) for pair in best.to_dict("records")), 1):
        scores.append(score)
        if progress and (number % 500 == 0 or number == len(best)):
            progress(len(best) + number, 2 * len(best))
    result = best[["first", "second"]].astype(np.int64).assign(correlation=np.array(scores, dtype=np.float64))
    result = result[result["correlation"] >= threshold]
    return result.sort_values(["first", "second"], ignore_index=True)


class _Side:
    """One list of images, without those that show nothing: `rows` are the positions of the others."""

    def __init__(self, thumbs: Thumbnails) -> None:
        cv2.setNumThreads(1)  # on such small pictures threads only wait
        self.thumbs = thumbs
        self.rows = np.flatnonzero(~is_flat(thumbs))
        small = self.small(0)
        self.description = describe(small) if len(small) else np.empty((0, 0), np.float32)
        self.detail = coarse_detail(small) if len(small) else np.empty((0, COARSE**2), np.float32)

    def small(self, view: int) -> Thumbnails:
        cuts = [cut(self.thumbs[row], view, COARSE) for row in self.rows]
        return np.stack(cuts) if cuts else np.empty((0, COARSE, COARSE), np.uint8)


def _basis(described: Floats) -> tuple[Floats, Floats]:
    """Return the mean and the first principal directions (D, d) of descriptions (N, D)."""
    mean = described.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((described - mean).T) if len(described) > 1 else np.eye(described.shape[1]))
    return mean, vectors[:, ::-1][:, :_DIMENSIONS].astype(np.float32)


def _project(described: Floats, basis: tuple[Floats, Floats]) -> Floats:
    return np.asarray((described - basis[0]) @ basis[1], dtype=np.float32)


def _candidates(
    queried: _Side, indexed: _Side, tree: KDTree, basis: tuple[Floats, Floats], view: int, number: int, among: bool
) -> npt.NDArray[np.float64]:
    """Return rows (first, second, queried, view, turn, correlation of coarse detail) of one view's nearest neighbours."""
    small = queried.small(view)
    wanted = min(NEIGHBOURS + among, len(indexed.rows))
    _, near = tree.query(_project(describe(small), basis), k=wanted)
    near = np.asarray(near).reshape(len(small), wanted)
    detail = coarse_detail(small).reshape(-1, COARSE, COARSE)
    scores = np.empty((len(small), TURNS, wanted), np.float32)
    for start in range(0, len(small), _BLOCK):
        block = slice(start, start + _BLOCK)
        turned = np.stack([turn(detail[block], number) for number in range(TURNS)], axis=1)
        candidates = indexed.detail[near[block]].transpose(0, 2, 1)
        scores[block] = turned.reshape(*turned.shape[:2], -1) @ candidates
    other = near.reshape(-1)
    one = np.repeat(np.arange(len(small)), wanted)
    best, which = scores.max(axis=1).reshape(-1), scores.argmax(axis=1).reshape(-1)
    if among:
        best, which, one, other = (values[one != other] for values in (best, which, one, other))
    rows = queried.rows[one], indexed.rows[other]
    if number == 1:
        rows = rows[::-1]
    same = np.full(len(one), number), np.full(len(one), view)
    return np.stack([*rows, *same, which, best], axis=1).astype(np.float64)


def exact_pairs(digests: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of positions with equal digests, each with the first of its kind; empty digests equal nothing."""
    first: dict[str, int] = {}
    return [
        (first[digest], position)
        for position, digest in enumerate(digests)
        if digest and first.setdefault(digest, position) != position
    ]


def link(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the groups of at least two of `count` positions that pairs link, directly or by others; sorted."""
    edges = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for position in np.unique(edges):
        members.setdefault(int(component[position]), []).append(int(position))
    return sorted(group for group in members.values() if len(group) > 1)
