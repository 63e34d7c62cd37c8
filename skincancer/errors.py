"""Errors for the user, with key, value, allowed values and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Longer words, such as a value of 5,000 letters, are shortened in messages. No file name is longer.
_LONGEST_WORD = 300


class SkinCancerError(Exception):
    """Base class of all expected errors.

    A verb prints the message without a traceback and exits with status 2.
    """

    def __str__(self) -> str:
        """Return the message, with long words shortened and control characters escaped."""
        text = re.sub(
            rf"\S{{{_LONGEST_WORD},}}",
            lambda word: f"{word[0][:40]}…{word[0][-20:]} ({len(word[0]):,} characters)",
            super().__str__(),
        )
        return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda character: ascii(character[0])[1:-1], text)


class ConfigError(SkinCancerError):
    """Wrong key, type or value in an experiment file or a flag."""


class UnusedKey(ConfigError):
    """A value without effect, since its option is not selected.

    Args:
        key: dotted key of the experiment, such as `model.dropout`.
        text: the error message.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class DataError(SkinCancerError):
    """A missing data set, an unexpected folder layout, or unreadable files."""


class NoDiagnoses(DataError):
    """Data set without diagnoses for a task with classes."""


class SplitError(DataError):
    """A split with too few images in a class or subset."""


class WeightsError(SkinCancerError):
    """Weights that are unavailable, unsafe, or do not fit the model."""


class RunError(SkinCancerError):
    """A run that cannot be started, continued or resumed."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return a hint such as " Did you mean 'nv'?", or ""."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
