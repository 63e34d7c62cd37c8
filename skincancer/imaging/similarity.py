"""Perceptual similarity of images, for finding copies.

Copies may be flipped, rotated, scaled, cropped, recompressed or brighter. Thumbnails of two images are compared by the correlation of their
detail after registration (enhanced correlation coefficient: Evangelidis & Psarakis, IEEE TPAMI 30(10), 2008, doi:10.1109/TPAMI.2008.113).
Only detail is compared, since all lesions on bright skin are similar when blurred. The detail is divided by its local contrast, since
otherwise a dark vignette or one thick hair would dominate the correlation. Dark surroundings are cut off first (`trim`), and the texture
of the lesion decides where the correlation alone is in doubt (`compare_texture`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

# Thumbnail sides for the search of candidates and for the verification, px.
COARSE, FINE = 32, 64
# Number of flips and quarter turns, including the identity.
TURNS = 8
# Contrast (grey levels) below which detail has less weight.
NOISE = 8.0
# Standard deviation of detail (grey levels) below which an image is flat and not comparable.
FLAT = 1.0
# Number of frequencies of the cosine transform in each direction.
_FREQUENCIES = 8
_STEPS = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)
# Limits of a registration of two copies: largest stretch, smallest overlap.
_STRETCH, _OVERLAP = 1.35, 0.6
_WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
# Largest grey value of dark surroundings, largest share of brighter pixels in a row of them, and smallest share of the side that is kept.
DARK, _LIT, _LEAST = 30, 0.03, 0.0625
# Texture: standard deviations of the subtracted blur and of the window, px; contrast of a strong edge, in multiples of the median; smallest
# share of the image to compare; a variance (grey levels²) that is small against texture.
_TEXTURE, _WINDOW, _EDGE, _ENOUGH, _SMALL = 1.5, 2.0, 2.0, 0.005, 0.25

Floats = npt.NDArray[np.float32]
Thumbnails = npt.NDArray[np.uint8]

# (left, top, right, bottom) as shares of the image: the whole image, images with a margin cut on all or on two sides, and the centre square
# of a 4:3 image that was resized to a square (one data set contains the whole image, another one the centre).
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
    """Convert an RGB image (H, W, 3) to grey (side, side)."""
    return _scaled(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), side)


def _scaled(image: Any, side: int) -> Thumbnails:
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _fitted(part: Thumbnails, side: int) -> Thumbnails:
    # INTER_AREA repeats pixels when it enlarges, and their edges would look like texture.
    method = cv2.INTER_AREA if min(part.shape) >= side else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (side, side), interpolation=method), dtype=np.uint8)


def cut(thumb: Thumbnails, view: int, side: int) -> Thumbnails:
    """Return the crop `VIEWS[view]` of a thumbnail as uint8 (side, side)."""
    left, top, right, bottom = (round(share * len(thumb)) for share in VIEWS[view])
    return _fitted(thumb[top:bottom, left:right], side)


def turn(image: Floats, number: int) -> Floats:
    """Rotate square images (…, S, S) by `number` % 4 quarter turns.

    From 4 on, the images are mirrored too.
    """
    turned = np.rot90(image, number % 4, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if number >= 4 else turned)


def is_flat(thumbs: Iterable[Thumbnails]) -> npt.NDArray[np.bool_]:
    """Return which thumbnails (N, T, T) have no detail, bool (N,)."""
    return np.array([float(_detail(_scaled(thumb, COARSE)).std()) < FLAT for thumb in thumbs], dtype=bool)


def describe(thumbs: Thumbnails) -> Floats:
    """Compute descriptors that are invariant to flips, quarter turns and brightness.

    The descriptors are magnitudes of the low frequencies of a cosine transform of the grey values relative to their mean. A flip changes
    signs. A quarter turn swaps (u, v) and (v, u), so the descriptors are the larger and the smaller of both.

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
    """Return the detail of thumbnails as unit vectors, float32 (N, COARSE²).

    The dot product of two vectors is a correlation. `thumbs` is uint8 (N, COARSE, COARSE).
    """
    detail = np.stack([_detail(thumb) for thumb in thumbs]).reshape(len(thumbs), -1)
    detail -= detail.mean(axis=1, keepdims=True)
    return np.asarray(detail / (np.linalg.norm(detail, axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def _detail(thumb: Thumbnails) -> Floats:
    grey = thumb.astype(np.float32)
    return grey - _blurred(grey, len(grey) / 16)


def _blurred(image: Floats, sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.float32)


def trim(thumb: Thumbnails) -> Thumbnails:
    """Cut off dark surroundings of a thumbnail (S, S) and enlarge the rest.

    All images in one slide frame, and all lesions on black ground, are similar by their surroundings. Outermost rows and columns are cut
    off while nearly all of their pixels are dark. An image that is dark everywhere is returned as is.
    """
    lit = thumb > DARK
    rows, columns = (np.flatnonzero(lit.mean(axis=axis) > _LIT) for axis in (1, 0))
    if not rows.size or not columns.size:
        return thumb
    inside = thumb[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if inside.shape == thumb.shape or min(inside.shape) < _LEAST * len(thumb):
        return thumb
    return _fitted(inside, len(thumb))


def correlate(thumb: Thumbnails, other: Thumbnails, turned: int = 0) -> float:
    """Return the correlation of detail after affine registration, -1 to 1.

    The correlation is 0 if a thumbnail is flat, or if the registration fails or exceeds the limits of a copy.

    Args:
        thumb: uint8 (S, S).
        other: uint8 (S, S).
        turned: number of the `turn` of `thumb` before the registration.
    """
    first, second = turn(_detail(thumb), turned), _detail(other)
    warp = _register(first, second)
    if warp is None:
        return 0.0
    sigma = len(second) / 16
    shared = _overlap(warp, len(second))
    first, second = _warped(_level(first, sigma), warp)[shared], _level(second, sigma)[shared]
    first, second = first - first.mean(), second - second.mean()
    length = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / length if length > 1e-6 else 0.0


def compare_texture(thumb: Thumbnails, other: Thumbnails, turned: int = 0) -> float:
    """Return the lower quartile of the local correlations of texture, -1 to 1.

    Surroundings and outlines of two lesions may be alike, but not their texture. The correlation of fine detail is computed in a window
    around each pixel. Pixels without texture in both images and pixels at strong edges (outlines, frames, rulers) do not count. The result
    is 1 if too few pixels remain, and 0 if the registration fails.

    Args:
        thumb: uint8 (S, S).
        other: uint8 (S, S).
        turned: number of the `turn` of `thumb` before the registration.
    """
    warp = _register(turn(_detail(thumb), turned), _detail(other))
    if warp is None:
        return 0.0
    images = _warped(turn(thumb.astype(np.float32), turned), warp), other.astype(np.float32)
    first, second = (image - _blurred(image, _TEXTURE) for image in images)
    own, others, both = (_blurred(product, _WINDOW) for product in (first * first, second * second, first * second))
    counted = _overlap(warp, len(other)) & (np.maximum(own, others) > FLAT**2)
    if counted.any():
        counted &= own * others <= _EDGE**4 * np.median((own * others)[counted])
    if counted.mean() < _ENOUGH:
        return 1.0
    return float(np.quantile((both / np.sqrt(own * others + _SMALL))[counted], 0.25))


def _register(first: Floats, second: Floats) -> Floats | None:
    """Return the warp (2, 3) of two copies, None if they differ too much."""
    side, warp = len(second), np.eye(2, 3, dtype=np.float32)
    try:
        warp = np.asarray(cv2.findTransformECC(second, first, warp, cv2.MOTION_AFFINE, _STEPS)[1], dtype=np.float32)
    except cv2.error:
        # The registration does not converge.
        return None
    stretches = np.linalg.svd(warp[:, :2], compute_uv=False)
    if stretches.max() > _STRETCH or stretches.min() < 1 / _STRETCH or _overlap(warp, side).mean() < _OVERLAP:
        return None
    return warp


def _warped(image: Floats, warp: Floats) -> Floats:
    return np.asarray(cv2.warpAffine(image, warp, image.shape, flags=_WARP), dtype=np.float32)


def _overlap(warp: Floats, side: int) -> npt.NDArray[np.bool_]:
    """Return the pixels that a warped image covers, bool (S, S)."""
    return _warped(np.ones((side, side), np.float32), warp) > 0.99


def _level(detail: Floats, sigma: float) -> Floats:
    """Divide detail by its local contrast."""
    spread = np.sqrt(_blurred(detail * detail, sigma))
    return np.asarray(detail / (spread + NOISE), dtype=np.float32)
