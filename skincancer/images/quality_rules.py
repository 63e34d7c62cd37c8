"""The rules by which images are flagged for their quality; imports nothing heavy, as the schema holds their thresholds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from skincancer.errors import ConfigError, nearest

FLAGS = "quality_flags"  # column of the index: names of the rules that an image breaks, "; " between


@dataclass(frozen=True)
class Rule:
    """Flag an image whose `column` is below, or above, a threshold; `says` is the reason in words."""

    column: str
    side: Literal["below", "above"]
    threshold: float
    says: str

    def breaks(self, values: Any, threshold: float) -> Any:
        """Say whether values (a number, an array) break the rule; a value that is missing breaks none."""
        return values < threshold if self.side == "below" else values > threshold


# thresholds: chosen by eye on HAM10000 (contrast, ink, brightness on ISIC 2018 Task 1 too), so that each flags what a reader would name
RULES: dict[str, Rule] = {
    "resolution": Rule("quality_resolution", "below", 64, "too few pixels"),
    "blurred": Rule("quality_sharpness", "below", 7, "blurred"),
    "dark": Rule("quality_exposure", "below", 0.24, "too dark"),
    "bright": Rule("quality_exposure", "above", 0.96, "too bright"),
    "flat": Rule("quality_contrast", "below", 0.12, "hardly any contrast"),
    "grey": Rule("quality_saturation", "below", 0.07, "hardly any colour"),
    "cast": Rule("quality_cast", "above", 50, "a strong colour cast"),
    "border": Rule("quality_border", "above", 0.1, "a wide black border"),
    "hair": Rule("quality_hair", "above", 0.12, "covered by hair"),
    "ink": Rule("quality_ink", "above", 0.01, "ink or a coloured object"),
    "ruler": Rule("quality_ruler", "above", 0.5, "a ruler at the edge"),
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


def default_rules() -> dict[str, float]:
    """Return each rule's name and threshold, as `data.quality_rules` holds them."""
    return {name: rule.threshold for name, rule in RULES.items()}


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
