"""Exact and near duplicates of images, and the groups that they form.

Candidates for near-duplicates are the nearest neighbours of each image in a k-d tree (about n log n), by a description
that is invariant to flips and rotations. Each candidate is verified by the correlation of image detail after
registration (`skincancer.imaging.similarity`). Lesions with similar surroundings reach correlations slightly above the
limit of a near-duplicate, so the texture decides there.
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
    compare_texture,
    correlate,
    cut,
    describe,
    is_flat,
    trim,
    turn,
)

# Smallest correlation of detail between near-duplicates.
NEAR = 0.9
# Correlation from which a pair is a near-duplicate whatever its texture, and smallest correlation of texture below
# (benchmarks/look_alikes.py).
CLEAR, SAME_TEXTURE = 0.96, 0.15
# Smallest correlation of coarse detail, before registration, at which a candidate is verified.
LIKELY = 0.6
# Candidates per view of an image.
NEIGHBOURS = 5
# Dimensions of the k-d tree, and images per matrix product.
_DIMENSIONS, _BLOCK = 24, 512
Progress = Callable[[int, int], None]


def find_near(
    first: Thumbnails, second: Thumbnails | None = None, *, threshold: float = NEAR, progress: Progress | None = None
) -> pd.DataFrame:
    """Find near-duplicates within one list of images, or between two.

    Args:
        first: uint8 (N, T, T) thumbnails.
        second: uint8 (M, U, U) thumbnails. None compares `first` with itself.
        threshold: Smallest correlation of a near-duplicate.
        progress: Called with (done, total).

    Returns:
        One row per pair, sorted: first and second (int64 positions; first < second within one list), correlation. Images
        of uniform colour are in no pair. Dark surroundings are cut off and textures are compared only if the thumbnails of
        both lists have `FINE` px or more.
    """
    among = second is None
    others = first if second is None else second
    largest = min(first.shape[1], others.shape[1])
    # Smaller thumbnails have too little detail to be enlarged or to show texture.
    detailed = largest >= FINE
    lists = _ImageList(first, detailed), _ImageList(others, detailed)
    jobs = [(0, 1, view) for view in range(len(VIEWS))]
    if not among:
        jobs += [(1, 0, view) for view in range(1, len(VIEWS))]
    candidates: list[npt.NDArray[np.float64]] = []
    if lists[0].rows.size and lists[1].rows.size:
        basis = _basis(lists[0].description if among else np.concatenate([images.description for images in lists]))
        trees = [KDTree(_project(images.description, basis)) for images in lists]
        for number, (queried, indexed, view) in enumerate(jobs, 1):
            candidates.append(_candidates(lists[queried], lists[indexed], trees[indexed], basis, view, queried, among))
            if progress:
                progress(number, 2 * len(jobs))
    columns = ["first", "second", "queried", "view", "turn", "likely"]
    pairs = pd.DataFrame(np.concatenate(candidates) if candidates else np.empty((0, 6)), columns=columns)
    # Within one list, every pair occurs in both orders.
    if among:
        low, high = pairs[["first", "second"]].min(axis=1), pairs[["first", "second"]].max(axis=1)
        pairs["queried"] = (pairs["first"] > pairs["second"]).astype(int)
        pairs["first"], pairs["second"] = low, high
    best = pairs.sort_values("likely", ascending=False, kind="stable").drop_duplicates(["first", "second"])
    best = best[best["likely"] >= LIKELY]

    def verify(pair: Mapping[Hashable, Any]) -> float:
        own, other = lists[0].thumbs[int(pair["first"])], lists[1].thumbs[int(pair["second"])]
        if pair["queried"]:
            own, other = other, own

        def compare(measure: Callable[[Thumbnails, Thumbnails, int], float], side: int) -> float:
            return measure(cut(own, int(pair["view"]), side), cut(other, 0, side), int(pair["turn"]))

        score = compare(correlate, min(largest, FINE))
        in_doubt = detailed and threshold <= score < CLEAR
        return score if not in_doubt or compare(compare_texture, largest) >= SAME_TEXTURE else 0.0

    scores = []
    # Threads are enough, because OpenCV releases Python's global lock.
    verified = Parallel(n_jobs=-1, prefer="threads", return_as="generator")
    for number, score in enumerate(verified(delayed(verify)(pair) for pair in best.to_dict("records")), 1):
        scores.append(score)
        if progress and (number % 500 == 0 or number == len(best)):
            progress(len(best) + number, 2 * len(best))
    result = best[["first", "second"]].astype(np.int64).assign(correlation=np.array(scores, dtype=np.float64))
    result = result[result["correlation"] >= threshold]
    return result.sort_values(["first", "second"], ignore_index=True)


class _ImageList:
    """Descriptions of the images that are not uniform, at the positions `rows`."""

    def __init__(self, thumbs: Thumbnails, trimmed: bool) -> None:
        # On such small images, threads cost more than they save.
        cv2.setNumThreads(1)
        # A list, because a second array would double the memory: most images have no dark surroundings and stay views.
        self.thumbs = [trim(thumb) if trimmed else thumb for thumb in thumbs]
        self.rows = np.flatnonzero(~is_flat(self.thumbs))
        small = self.small(0)
        self.description = describe(small) if len(small) else np.empty((0, 0), np.float32)
        self.detail = coarse_detail(small) if len(small) else np.empty((0, COARSE**2), np.float32)

    def small(self, view: int) -> Thumbnails:
        cuts = [cut(self.thumbs[row], view, COARSE) for row in self.rows]
        return np.stack(cuts) if cuts else np.empty((0, COARSE, COARSE), np.uint8)


def _basis(described: Floats) -> tuple[Floats, Floats]:
    """Compute the mean (D,) and first principal directions (D, d) of descriptions (N, D)."""
    mean = described.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((described - mean).T) if len(described) > 1 else np.eye(described.shape[1]))
    return mean, vectors[:, ::-1][:, :_DIMENSIONS].astype(np.float32)


def _project(described: Floats, basis: tuple[Floats, Floats]) -> Floats:
    return np.asarray((described - basis[0]) @ basis[1], dtype=np.float32)


def _candidates(
    queried: _ImageList,
    indexed: _ImageList,
    tree: KDTree,
    basis: tuple[Floats, Floats],
    view: int,
    number: int,
    among: bool,
) -> npt.NDArray[np.float64]:
    """Return the nearest neighbours of one view.

    Columns: first, second, queried, view, turn, correlation of coarse detail.
    """
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
    neighbour = near.reshape(-1)
    query = np.repeat(np.arange(len(small)), wanted)
    best, best_turn = scores.max(axis=1).reshape(-1), scores.argmax(axis=1).reshape(-1)
    if among:
        keep = query != neighbour
        best, best_turn, query, neighbour = (values[keep] for values in (best, best_turn, query, neighbour))
    rows = queried.rows[query], indexed.rows[neighbour]
    if number == 1:
        rows = rows[::-1]
    constants = np.full(len(query), number), np.full(len(query), view)
    return np.stack([*rows, *constants, best_turn, best], axis=1).astype(np.float64)


def exact_pairs(digests: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs of positions with equal digests.

    Each position is paired with the first position of the same digest. Empty digests match nothing.
    """
    first: dict[str, int] = {}
    return [
        (first[digest], position)
        for position, digest in enumerate(digests)
        if digest and first.setdefault(digest, position) != position
    ]


def link(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Return the sorted groups of positions below `count` that pairs link, also indirectly."""
    edges = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    members: dict[int, list[int]] = {}
    for position in np.unique(edges):
        members.setdefault(int(component[position]), []).append(int(position))
    return sorted(group for group in members.values() if len(group) > 1)
