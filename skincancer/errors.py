"""Errors that a person reads: each says what was given, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SkinCancerError(Exception):
    """Base of every error raised on purpose; a verb prints its text and exits with status 2, without a traceback."""


class ConfigError(SkinCancerError):
    """A wrong key, name, type or value in an experiment file or on the command line."""


class UnusedKey(ConfigError):
    """A value that would be silently ignored, as what it belongs to is not chosen.

    Args:
        key: dotted.
        text: the message.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class DataError(SkinCancerError):
    """A data set that is missing, laid out differently, or holds files that cannot be read."""


class SplitError(DataError):
    """A split that the images do not allow: too few of a class, or of a part."""


class WeightsError(SkinCancerError):
    """Weights that cannot be had, cannot be trusted, or do not fit the model."""


class RunError(SkinCancerError):
    """A run that cannot be started, resumed or carried on."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return a hint such as " Did you mean 'nv'?", or "" where nothing allowed is close to what was given."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
