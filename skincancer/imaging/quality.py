"""Image quality measures, and the rules that flag images (`data.quality_rules`).

All measures except the resolution are computed on the image at `SIDE` px (longer side), so that images of different sizes are
comparable. A rule marks an image as suspicious; a person has to check the image.
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

# Longer side of the image for all measures except the resolution, px. All other lengths in px refer to this size.
SIDE = 256
# Grey value below which a pixel at the edge belongs to the black border.
BLACK = 40
# Largest width and smallest length of a hair (px), and contrast of a hair (grey levels).
HAIR_WIDTH, HAIR_LENGTH, HAIR_CONTRAST = 9, 20, 14
# Standard deviation of the smoothing before the contrast, px.
SMOOTH = 2.0
# Share of each side that is searched for ink, and largest gap within one blue lesion (px).
INK_EDGE, INK_GAP = 0.2, 9
# Share of each side that is searched for rulers, and distance of the ticks of a ruler (px).
EDGE, TICKS = 0.14, (4, 24)

Pixels = npt.NDArray[np.uint8]
# Mask of the black border, (H, W).
Frame = npt.NDArray[np.bool_]


def measure(image: Pixels) -> dict[str, float]:
    """Compute all `COLUMNS` of an RGB image uint8 (H, W, 3).

    Images smaller than `SIDE` are enlarged, except for the sharpness: an enlarged image would count as blurred, although it only has few
    pixels, which the resolution measures. The sharpness of such small images is not comparable with larger images.
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
    """Return the variance of the Laplacian of grey values 0–255.

    Pech-Pacheco et al., ICPR 2000. The black border and its edge are left out.
    """
    edges = cv2.Laplacian(_grey(image), cv2.CV_32F)
    inside = ~cv2.dilate(frame.view(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    return float(edges[inside].var()) if inside.any() else 0.0


def exposure(image: Pixels, frame: Frame) -> float:
    """Return the median grey value inside the black border, 0 to 1."""
    inside = _grey(image)[~frame]
    return float(np.median(inside)) / 255 if inside.size else 0.0


def contrast(image: Pixels, frame: Frame) -> float:
    """Return the range of smoothed grey values, 0 to 1.

    The range is from percentile 0.5 to 99.5 inside the black border. A small lesion covers more than 0.5 % of an image, and smoothing
    removes grain and hairs.
    """
    inside = cv2.GaussianBlur(_grey(image), (0, 0), SMOOTH)[~frame]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0, 0)
    return float(high - low) / 255


def saturation(image: Pixels, frame: Frame) -> float:
    """Return the mean saturation (HSV) inside the black border, 0 to 1."""
    inside = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1][~frame]
    return float(inside.mean()) / 255 if inside.size else 0.0


def cast(image: Pixels, frame: Frame) -> float:
    """Return the CIELAB chroma of the mean colour, 0 to about 130.

    Grey has a chroma of 0, skin of 10 to 30.
    """
    inside = image[~frame]
    if not inside.size:
        return 0.0
    mean = inside.mean(axis=0, dtype=np.float32).reshape(1, 1, 3) / 255
    return float(np.linalg.norm(cv2.cvtColor(mean, cv2.COLOR_RGB2LAB)[0, 0, 1:]))


def border(image: Pixels) -> Frame:
    """Return the mask (H, W) of the black border or vignette.

    The border consists of the dark components that contain a corner of the image.
    """
    dark = (image.max(axis=2) < BLACK).astype(np.uint8)
    count, components = cv2.connectedComponents(dark, connectivity=4)
    framing = np.zeros(count, dtype=bool)
    framing[components[[0, 0, -1, -1], [0, -1, 0, -1]]] = True
    framing[0] = False
    return framing[components]


def border_share(image: Pixels, frame: Frame) -> float:
    """Return the share of the black border, 0 to 1."""
    return float(frame.mean())


def hair_share(image: Pixels) -> float:
    """Return the share of thin, long, dark structures, 0 to 1.

    The structures are components of a black-hat of the grey image. `hair.find_hair` is unsuitable, since it ignores images full of hair,
    which should be flagged.
    """
    grey = _grey(image)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (HAIR_WIDTH, HAIR_WIDTH))
    thin = (cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, kernel) > HAIR_CONTRAST).astype(np.uint8)
    thin[border(image)] = 0
    _, _, stats, _ = cv2.connectedComponentsWithStats(thin, connectivity=8)
    length = np.hypot(stats[:, cv2.CC_STAT_WIDTH], stats[:, cv2.CC_STAT_HEIGHT])
    area = stats[:, cv2.CC_STAT_AREA]
    # The area of a hair is its length times a few pixels. A net of hairs fills little of its bounding box, a blob fills much.
    box = stats[:, cv2.CC_STAT_WIDTH] * stats[:, cv2.CC_STAT_HEIGHT]
    hairs = (length >= HAIR_LENGTH) & ((area <= 4 * length) | (area <= 0.3 * box))
    return float(area[1:][hairs[1:]].sum() / grey.size)


def ink_share(image: Pixels, frame: Frame) -> float:
    """Return the share of saturated blue, green or violet edge pixels.

    Only pixels near the edges of the image count. These are the colours of ink, plasters and stickers, and not of skin. Components that
    reach the centre do not count, because lesions may be blue.
    """
    hue, strength, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    coloured = (hue > 35) & (hue < 145) & (strength > 90) & (value > 60)
    _, component = cv2.connectedComponents(cv2.dilate(coloured.view(np.uint8), np.ones((INK_GAP, INK_GAP), np.uint8)))
    height, width = coloured.shape
    lesion = np.unique(component[2 * height // 5 : height - 2 * height // 5, 2 * width // 5 : width - 2 * width // 5])
    coloured &= ~np.isin(component, lesion[lesion > 0])
    top, left = (int(INK_EDGE * side) for side in coloured.shape)
    coloured[top : height - top, left : width - left] = False
    return float(coloured.mean())


def ruler_score(image: Pixels, frame: Frame) -> float:
    """Return the regularity of dark marks along the edges, 0 to 1.

    The regularity is the highest peak of the autocorrelation of a dark-mark profile along an edge.
    """
    grey = _grey(image)
    if min(grey.shape) < 4 * TICKS[1]:
        return 0.0
    marks = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, np.ones((5, 5), np.uint8)).astype(np.float32)
    marks[frame] = 0
    best = 0.0
    for turns in range(4):
        side = np.rot90(marks, turns)
        profile = side[: int(EDGE * len(side))].mean(axis=0)
        profile -= cv2.blur(profile.reshape(1, -1), (2 * TICKS[1] + 1, 1))[0]
        energy = float((profile**2).mean())
        # Below this energy the profile is noise.
        if energy < 0.3:
            continue
        lags = range(1, TICKS[1] + 1)
        repeated = np.array([float((profile[lag:] * profile[:-lag]).mean()) / energy for lag in lags])
        for lag in range(TICKS[0], TICKS[1]):
            peak = repeated[lag - 1]
            # A peak needs a valley at a smaller lag, since a slowly varying profile correlates at every small lag.
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
# Column names in published tables.
NAMES = {
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


# Column of the index with the names of the violated rules, separated by "; ".
FLAGS = "quality_flags"


@dataclass(frozen=True)
class Rule:
    """Rule that flags images with `column` below or above a threshold."""

    column: str
    side: Literal["below", "above"]
    reason: str

    def breaks(self, values: Any, threshold: float) -> Any:
        """Return whether values (a number or an array) violate the rule.

        Missing values do not violate a rule.
        """
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


# Largest value of columns with an upper limit.
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
    """Return the reasons why an image is flagged, by rule.

    A reason is a text such as "blurred (sharpness 4.2, below 8)".

    Args:
        values: columns of `measure`.
        rules: thresholds by the names of the active rules.
    """
    reasons = {}
    for name, threshold in rules.items():
        rule = RULES[name]
        value = float(values[rule.column])
        if rule.breaks(value, threshold):
            measured = rule.column.removeprefix("quality_")
            reasons[name] = f"{rule.reason} ({measured} {value:.3g}, {rule.side} {threshold:g})"
    return reasons


def check(rules: Mapping[str, float]) -> None:
    """Check `data.quality_rules`.

    Raises:
        ConfigError: there is no rule, a rule is unknown, or a threshold is out of range.
    """
    if not rules:
        raise ConfigError(
            f"data.quality_rules is empty; expected rules with thresholds. Set one of {', '.join(RULES)}."
        )
    for name, threshold in rules.items():
        if name not in RULES:
            raise ConfigError(
                f"data.quality_rules contains {name!r}, which is no rule.{nearest(name, RULES)} Use {', '.join(RULES)}."
            )
        column = RULES[name].column
        highest = HIGHEST.get(column, math.inf)
        if not 0 <= threshold <= highest or math.isinf(threshold):
            allowed = "a finite number of 0 or more" if math.isinf(highest) else f"a number from 0 to {highest:g}"
            raise ConfigError(
                f"data.quality_rules.{name} is {threshold!r}; expected {allowed} for {column}. To disable a rule, leave its name out."
            )
