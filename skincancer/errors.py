"""Errors for the user, with key, value, allowed values and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SkinCancerError(Exception):
    """Base class of all expected errors.

    A verb prints the message without a traceback and exits with status 2.
    """


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
