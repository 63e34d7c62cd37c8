"""Small grey copies of images by which nearly the same pictures are found: flipped, turned, scaled, cut, recompressed, brighter.

Two pictures are compared by the correlation of their detail after registration (enhanced correlation coefficient: Evangelidis &
Psarakis, IEEE TPAMI 30(10), 2008, doi:10.1109/TPAMI.2008.113). Detail, since two lesions on bright skin look alike when blurred; and each
part of it by its local contrast, since otherwise a dark vignette or one thick hair would outweigh all the rest.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

COARSE = 32  # side of what candidates are told apart by, px
FINE = 64  # largest side of what they are verified at, px
TURNS = 8  # flips and quarter turns, none included
NOISE = 8.0  # contrast, in grey levels, below which detail counts less
FLAT = 1.0  # standard deviation of detail, in grey levels, under which an image has nothing to be recognised by
_FREQUENCIES = 8  # of the cosine transform, in each direction
_STEPS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)
_STRETCH, _OVERLAP = 1.35, 0.6  # a registration beyond these is of other pictures

Floats = npt.NDArray[np.float32]
Thumbnails = npt.NDArray[np.uint8]

# (left, top, right, bottom) as shares: the whole, what is left of a picture whose margin was cut, on all sides or on two, and the centre
# square of a 4:3 picture that was squeezed to a square (one data set keeps the whole frame, another one its centre)
VIEWS: tuple[tuple[float, float, float, float], ...] = (
    (0, 0, 1, 1),
    (0.025, 0.025, 0.975, 0.975),
    (0.05, 0.05, 0.95, 0.95),
    (0, 0, 0.95, 0.95),
    (0.05, 0, 1, 0.95),
    (0, 0.05, 0.95, 1),
    (0.05, 0.05, 1, 1),
    (0.125, 0, 0.875, 1),
    (0, 0.125, 1, 0.875),
)


def thumbnail(image: npt.NDArray[np.uint8], side: int) -> Thumbnails:
    """Return an RGB image uint8 (H, W, 3) in grey, stretched to uint8 (side, side)."""
    return _scaled(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), side)


def _scaled(image: Any, side: int) -> Thumbnails:
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def cut(thumb: Thumbnails, view: int, side: int) -> Thumbnails:
    """Return the part of a thumbnail (T, T) that `VIEWS[view]` names, as uint8 (side, side)."""
    left, top, right, bottom = (round(share * len(thumb)) for share in VIEWS[view])
    return _scaled(thumb[top:bottom, left:right], side)


def turn(image: Floats, number: int) -> Floats:
    """Return square images (…, S, S) turned by `number` % 4 quarters, and mirrored from 4 on."""
    turned = np.rot90(image, number % 4, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if number >= 4 else turned)


def is_flat(thumbs: Thumbnails) -> npt.NDArray[np.bool_]:
    """Say which of thumbnails (N, T, T) show nothing: (N,)."""
    return np.array([float(_detail(_scaled(thumb, COARSE)).std()) < FLAT for thumb in thumbs], dtype=bool)


def describe(thumbs: Thumbnails) -> Floats:
    """Return numbers of each thumbnail that no flip, turn or change of brightness alters.

    The magnitudes of a cosine transform's low frequencies, of the grey values relative to their mean: a flip changes signs, a quarter turn
    swaps (u, v) and (v, u), of which the larger and the smaller are taken.

    Args:
        thumbs: uint8 (N, COARSE, COARSE).

    Returns:
        float32 (N, D).
    """
    grey = thumbs.astype(np.float32)
    relative = grey / (grey.mean(axis=(1, 2), keepdims=True) + 1) - 1
    size = np.abs(dctn(relative, axes=(1, 2), norm="ortho")[:, :_FREQUENCIES, :_FREQUENCIES])
    row, column = np.triu_indices(_FREQUENCIES, 1)
    upper, lower = size[:, row, column], size[:, column, row]
    diagonal = size[:, np.arange(1, _FREQUENCIES), np.arange(1, _FREQUENCIES)]
    described = np.concatenate([np.maximum(upper, lower), np.minimum(upper, lower), diagonal], axis=1)
    return np.asarray(described, dtype=np.float32)


def coarse_detail(thumbs: Thumbnails) -> Floats:
    """Return the detail of thumbnails uint8 (N, COARSE, COARSE) as unit vectors, float32 (N, COARSE²): products are correlations."""
    detail = np.stack([_detail(thumb) for thumb in thumbs]).reshape(len(thumbs), -1)
    detail -= detail.mean(axis=1, keepdims=True)
    return np.asarray(detail / (np.linalg.norm(detail, axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def _detail(thumb: Thumbnails) -> Floats:
    grey = thumb.astype(np.float32)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), len(grey) / 16), dtype=np.float32)


def correlate(one: Thumbnails, other: Thumbnails, turned: int = 0) -> float:
    """Return the correlation of two pictures' detail, from -1 to 1, after registration by an affine map that starts at a turn.

    0 where one of them is flat, or where they can be registered only by a map that no copy is made by.

    Args:
        one: uint8 (S, S).
        other: uint8 (S, S).
        turned: what `turn` does to `one` first.
    """
    first, second = turn(_detail(one), turned), _detail(other)
    side, sigma = len(second), len(second) / 16
    warp = np.eye(2, 3, dtype=np.float32)
    try:
        warp = np.asarray(cv2.findTransformECC(second, first, warp, cv2.MOTION_AFFINE, _STEPS)[1], dtype=np.float32)
    except cv2.error:  # it does not converge
        return 0.0
    stretches = np.linalg.svd(warp[:, :2], compute_uv=False)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    shared = cv2.warpAffine(np.ones_like(second), warp, (side, side), flags=flags) > 0.99
    if stretches.max() > _STRETCH or stretches.min() < 1 / _STRETCH or shared.mean() < _OVERLAP:
        return 0.0
    moved = cv2.warpAffine(_level(first, sigma), warp, (side, side), flags=flags).astype(np.float32, copy=False)
    first, second = moved[shared], _level(second, sigma)[shared]
    first, second = first - first.mean(), second - second.mean()
    length = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / length if length > 1e-6 else 0.0


def _level(detail: Floats, sigma: float) -> Floats:
    """Divide detail by its local contrast."""
    spread = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), sigma))
    return np.asarray(detail / (spread + NOISE), dtype=np.float32)
