"""All folds of a cross-validation as one split, `fold:*/k`."""

from __future__ import annotations

import re


def expand_folds(split: str) -> list[str]:
    """Return the k folds of `fold:*/k`, [] for another split."""
    match = re.fullmatch(r"fold:\*/([0-9]{1,4})", split)
    return [f"fold:{fold}/{match[1]}" for fold in range(int(match[1]))] if match else []
