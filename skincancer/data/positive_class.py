"""Positive class of two classes: the class of sensitivity, specificity, precision and average precision."""

from __future__ import annotations

import re
from collections.abc import Collection

from skincancer.errors import ConfigError, nearest

# Words of class names that mark the positive class.
POSITIVE_WORDS = frozenset(
    ("melanoma", "malignant", "cancer", "carcinoma", "mel", "bcc", "scc", "akiec", "positive", "1")
)
# "not malignant" and "non-melanoma" are no positive classes.
NEGATIONS = frozenset(("non", "not", "no", "without"))


def find_positive(
    classes: tuple[str, ...], malignant: Collection[str] = (), chosen: str | None = None
) -> tuple[str, str]:
    """Return the positive class of two classes, and what decides.

    `data.positive` decides first, then the single malignant class, then the single class with one of `POSITIVE_WORDS` in its name.

    Args:
        classes: class names. The positive class exists only for two.
        malignant: malignant classes, empty if unknown.
        chosen: value of `data.positive`, None if not set.

    Returns:
        The class and the deciding fact, both "" if nothing decides, or if there are not two classes.

    Raises:
        ConfigError: `data.positive` is no class, contradicts the malignant classes, or is set for a number of classes other than two.
    """
    marked = [name for name in classes if name in malignant]
    if chosen is not None:
        if len(classes) != 2:
            raise ConfigError(
                f"data.positive is {chosen!r}; it is for two classes, and these are {len(classes)}: {', '.join(classes)}. Leave it out."
            )
        if chosen not in classes:
            raise ConfigError(
                f"data.positive is {chosen!r}; expected one of the classes {', '.join(classes)}.{nearest(chosen, classes)}"
            )
        if len(marked) == 1 and marked != [chosen]:
            raise ConfigError(
                f"data.positive is {chosen!r}, but {marked[0]!r} is the malignant class; expected the same class. Leave data.positive "
                "out, or change data.malignant."
            )
        return chosen, "set by data.positive"
    if len(classes) != 2:
        return "", ""
    if len(marked) == 1:
        return marked[0], "the malignant class"
    named = [name for name in classes if _is_named_positive(name)]
    return (named[0], "by its name") if len(named) == 1 else ("", "")


def _is_named_positive(name: str) -> bool:
    text = name.casefold().strip()
    words = set(re.split(r"[\W_]+", text))
    # A digit is a class name, and not a grade or type in a longer name.
    return text == "1" or bool(words & (POSITIVE_WORDS - {"1"}) and not words & NEGATIONS)


def order_classes(classes: tuple[str, ...], positive: str) -> tuple[str, ...]:
    """Return the classes with the positive class last. "" keeps their order."""
    return (*(name for name in classes if name != positive), positive) if positive else classes


def check_positive(classes: tuple[str, ...], malignant: Collection[str], chosen: str | None) -> None:
    """Check that one of two classes is known to be positive.

    Raises:
        ConfigError: nothing decides which class is positive, or `data.positive` does not fit (`find_positive`).
    """
    positive, _ = find_positive(classes, malignant, chosen)
    if len(classes) == 2 and not positive:
        raise ConfigError(
            f"data.positive is not set, and the names of the two classes {' and '.join(classes)} do not decide which one is positive. "
            f"Sensitivity is the recall of the positive class. Set --data.positive to {classes[0]!r} or {classes[1]!r}."
        )
