"""How good a photograph is: one number each for what makes it hard to read (the rules that flag images: `quality_rules`).

Every measure is taken from the image at `SIDE` px (its longer side), so that images of different sizes can be compared. None of them is a
diagnosis of the photograph: a rule says what is suspicious, and a person looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from skincancer.errors import ConfigError, nearest

SIDE = 256  # longer side, px, at which everything but the resolution is measured
BLACK = 40  # grey value below which a pixel at the edge is frame
HAIR_WIDTH, HAIR_LENGTH = 9, 20  # px at SIDE: thinner is hair, shorter is not
HAIR_CONTRAST = 14  # grey levels
SMOOTH = 2.0  # px at SIDE
INK_EDGE = 0.2  # share of a side in which ink is looked for
INK_GAP = 9  # px at SIDE, between parts of one blue lesion
EDGE = 0.14  # share of a side in which rulers are looked for
TICKS = (4, 24)  # distance of a ruler's ticks, px at SIDE

Pixels = npt.NDArray[np.uint8]
Frame = npt.NDArray[np.bool_]  # (H, W): the black border


def measure(image: Pixels) -> dict[str, float]:
    """Measure an RGB image uint8 (H, W, 3); return every column of `COLUMNS`.

    What is smaller than `SIDE` is enlarged for all but the sharpness: that would call blurred what only has few pixels, for which there
    is the resolution. Sharpness of so small images is still not to be compared with that of larger ones.
    """
    scale = SIDE / max(image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    sides = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = np.asarray(cv2.resize(np.ascontiguousarray(image), sides, interpolation=method), dtype=np.uint8)
    frame = border(small)
    values = {column: function(small, frame) for column, function in _MEASURES.items()}
    if scale > 1:
        values["quality_sharpness"] = sharpness(image, border(image))
    return {"quality_resolution": float(min(image.shape[:2])), **values}


def sharpness(image: Pixels, frame: Frame) -> float:
    """Return the variance of the Laplacian (Pech-Pacheco et al., ICPR 2000), of grey values 0–255; not of a black border and its edge."""
    edges = cv2.Laplacian(_grey(image), cv2.CV_32F)
    inside = ~cv2.dilate(frame.view(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    return float(edges[inside].var()) if inside.any() else 0.0


def exposure(image: Pixels, frame: Frame) -> float:
    """Return the median grey value inside a black border, 0 to 1."""
    inside = _grey(image)[~frame]
    return float(np.median(inside)) / 255 if inside.size else 0.0


def contrast(image: Pixels, frame: Frame) -> float:
    """Return the distance between the percentiles 0.5 and 99.5 of grey, smoothed, inside a black border, 0 to 1.

    A small lesion is more than half a percent of an image, grain and single hairs are smoothed away.
    """
    inside = cv2.GaussianBlur(_grey(image), (0, 0), SMOOTH)[~frame]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0, 0)
    return float(high - low) / 255


def saturation(image: Pixels, frame: Frame) -> float:
    """Return the mean saturation (HSV) inside a black border, 0 to 1."""
    inside = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1][~frame]
    return float(inside.mean()) / 255 if inside.size else 0.0


def cast(image: Pixels, frame: Frame) -> float:
    """Return how far the mean colour lies from grey: its chroma in CIELAB, 0 to about 130. Skin itself has 10 to 30."""
    inside = image[~frame]
    if not inside.size:
        return 0.0
    mean = inside.mean(axis=0, dtype=np.float32).reshape(1, 1, 3) / 255
    return float(np.linalg.norm(cv2.cvtColor(mean, cv2.COLOR_RGB2LAB)[0, 0, 1:]))


def border(image: Pixels) -> Frame:
    """Return the black frame or vignette, (H, W): dark parts that hold a corner of the image."""
    dark = (image.max(axis=2) < BLACK).astype(np.uint8)
    count, parts = cv2.connectedComponents(dark, connectivity=4)
    framing = np.zeros(count, dtype=bool)
    framing[parts[[0, 0, -1, -1], [0, -1, 0, -1]]] = True
    framing[0] = False
    return framing[parts]


def border_share(image: Pixels, frame: Frame) -> float:
    """Return the share of the image that `border` takes."""
    return float(frame.mean())


def hair_share(image: Pixels) -> float:
    """Return the share of the image that thin, long, dark structures cover: a closing's excess over grey, by its components.

    Not `hair.find_hair`, which leaves an image alone that is full of hair; such a one is to be flagged.
    """
    grey = _grey(image)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (HAIR_WIDTH, HAIR_WIDTH))
    thin = (cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, kernel) > HAIR_CONTRAST).astype(np.uint8)
    thin[border(image)] = 0
    _, _, found, _ = cv2.connectedComponentsWithStats(thin, connectivity=8)
    length = np.hypot(found[:, cv2.CC_STAT_WIDTH], found[:, cv2.CC_STAT_HEIGHT])
    area = found[:, cv2.CC_STAT_AREA]
    # a hair is as many pixels as it is long, times its few pixels of width; a net of hairs fills little of its box, a blob much
    box = found[:, cv2.CC_STAT_WIDTH] * found[:, cv2.CC_STAT_HEIGHT]
    hairs = (length >= HAIR_LENGTH) & ((area <= 4 * length) | (area <= 0.3 * box))
    return float(area[1:][hairs[1:]].sum() / grey.size)


def ink_share(image: Pixels, frame: Frame) -> float:
    """Return the share of pixels near the edges of a strong blue, green or violet: a pen's ink, plasters, stickers; no skin has these.

    Not in the middle, where lesions may be blue, nor what hangs together with it.
    """
    hue, strength, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    coloured = (hue > 35) & (hue < 145) & (strength > 90) & (value > 60)
    _, part = cv2.connectedComponents(cv2.dilate(coloured.view(np.uint8), np.ones((INK_GAP, INK_GAP), np.uint8)))
    height, width = coloured.shape
    lesion = np.unique(part[2 * height // 5 : height - 2 * height // 5, 2 * width // 5 : width - 2 * width // 5])
    coloured &= ~np.isin(part, lesion[lesion > 0])
    top, left = (int(INK_EDGE * side) for side in coloured.shape)
    coloured[top : height - top, left : width - left] = False
    return float(coloured.mean())


def ruler_score(image: Pixels, frame: Frame) -> float:
    """Return how regularly thin dark marks follow each other along the image's edges: an autocorrelation, 0 to 1."""
    grey = _grey(image)
    if min(grey.shape) < 4 * TICKS[1]:
        return 0.0
    marks = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, np.ones((5, 5), np.uint8)).astype(np.float32)
    marks[frame] = 0
    best = 0.0
    for turned in range(4):
        side = np.rot90(marks, turned)
        profile = side[: int(EDGE * len(side))].mean(axis=0)
        profile -= cv2.blur(profile.reshape(1, -1), (2 * TICKS[1] + 1, 1))[0]
        energy = float((profile**2).mean())
        if energy < 0.3:  # nothing but noise
            continue
        lags = range(1, TICKS[1] + 1)
        repeated = np.array([float((profile[lag:] * profile[:-lag]).mean()) / energy for lag in lags])
        for lag in range(TICKS[0], TICKS[1]):
            peak = repeated[lag - 1]
            # a peak, and a valley before it: what only varies slowly repeats itself at every small lag
            if peak >= repeated[lag - 2] and peak >= repeated[lag] and repeated[: lag - 1].min() < 0.5 * peak:
                best = max(best, float(peak))
    return min(best, 1.0)


def _grey(image: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


_MEASURES: dict[str, Callable[[Pixels, Frame], float]] = {
    "quality_sharpness": sharpness,
    "quality_exposure": exposure,
    "quality_contrast": contrast,
    "quality_saturation": saturation,
    "quality_cast": cast,
    "quality_border": border_share,
    "quality_hair": lambda image, _: hair_share(image),
    "quality_ink": ink_share,
    "quality_ruler": ruler_score,
}
COLUMNS = ("quality_resolution", *_MEASURES)
NAMES = {  # of the columns in tables for people
    "quality_resolution": "shorter_side_px",
    "quality_sharpness": "sharpness_laplacian_variance",
    "quality_exposure": "exposure_median_grey",
    "quality_contrast": "contrast_grey_range",
    "quality_saturation": "saturation_mean",
    "quality_cast": "colour_cast_chroma",
    "quality_border": "black_border_share",
    "quality_hair": "hair_share",
    "quality_ink": "ink_share",
    "quality_ruler": "ruler_regularity",
}


FLAGS = "quality_flags"  # column of the index: names of the rules that an image breaks, "; " between


@dataclass(frozen=True)
class Rule:
    """Flag images whose `column` is below or above the threshold of the rule. `says` is the reason."""

    column: str
    side: Literal["below", "above"]
    says: str

    def breaks(self, values: Any, threshold: float) -> Any:
        """Say whether values (a number, an array) break the rule; a value that is missing breaks none."""
        return values < threshold if self.side == "below" else values > threshold


RULES: dict[str, Rule] = {
    "resolution": Rule("quality_resolution", "below", "too few pixels"),
    "blurred": Rule("quality_sharpness", "below", "blurred"),
    "dark": Rule("quality_exposure", "below", "too dark"),
    "bright": Rule("quality_exposure", "above", "too bright"),
    "flat": Rule("quality_contrast", "below", "hardly any contrast"),
    "grey": Rule("quality_saturation", "below", "hardly any colour"),
    "cast": Rule("quality_cast", "above", "a strong colour cast"),
    "border": Rule("quality_border", "above", "a wide black border"),
    "hair": Rule("quality_hair", "above", "covered by hair"),
    "ink": Rule("quality_ink", "above", "ink or a coloured object"),
    "ruler": Rule("quality_ruler", "above", "a ruler at the edge"),
}


# the largest value of the columns that have one
HIGHEST = dict.fromkeys(
    (
        "quality_exposure",
        "quality_contrast",
        "quality_saturation",
        "quality_border",
        "quality_hair",
        "quality_ink",
        "quality_ruler",
    ),
    1.0,
)


def flags(values: Mapping[str, Any], rules: Mapping[str, float]) -> dict[str, str]:
    """Return why an image is flagged: by each broken rule's name a text such as "blurred (sharpness 4.2, below 8)".

    Args:
        values: the columns of `measure`.
        rules: threshold of each rule that counts.
    """
    found = {}
    for name, threshold in rules.items():
        rule = RULES[name]
        value = float(values[rule.column])
        if rule.breaks(value, threshold):
            measured = rule.column.removeprefix("quality_")
            found[name] = f"{rule.says} ({measured} {value:.3g}, {rule.side} {threshold:g})"
    return found


def check(rules: Mapping[str, float]) -> None:
    """Check `data.quality_rules`.

    Raises:
        ConfigError: there is none, one that is not known, or a threshold that no image can be beyond.
    """
    if not rules:
        raise ConfigError(f"data.quality_rules is empty; name rules with their thresholds: {', '.join(RULES)}.")
    for name, threshold in rules.items():
        if name not in RULES:
            raise ConfigError(
                f"data.quality_rules names {name!r}, which is no rule.{nearest(name, RULES)} The rules are {', '.join(RULES)}."
            )
        column = RULES[name].column
        highest = HIGHEST.get(column, math.inf)
        if not 0 <= threshold <= highest or math.isinf(threshold):
            allowed = "a number from 0 on" if math.isinf(highest) else f"a number from 0 to {highest:g}"
            raise ConfigError(
                f"data.quality_rules: {name} is {threshold!r}; {column} is {allowed}. To leave a rule out, name the others alone."
            )
