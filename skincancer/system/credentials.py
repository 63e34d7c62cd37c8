"""Addresses of stores as they may be printed and kept: without their passwords.

Whoever opens a store calls `remember`; from then on `hide` knows its password, and tracebacks of this process do not tell it either.
"""

from __future__ import annotations

import re
import sys
import traceback
from types import TracebackType
from urllib.parse import quote, unquote

from skincancer.errors import SkinCancerError

HIDDEN = "***"
# a password may hold '/' and '@' that should have been written %2F and %40; digits before a '/' are a port
_PASSWORD = re.compile(r"^([\w+.-]+://[^:/?#@]*):(?!\d*/)([^@]*(?:@[^@/?#]*(?=@))*)@")
_IN_QUERY = re.compile(r"([?&][^=&#]*(?:pass|secret|token)[^=&#]*=)([^&#]*)", re.IGNORECASE)
_known: set[str] = set()


def shown(uri: str) -> str:
    """Return an address as it may be printed and logged: with *** for its password."""
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1:{HIDDEN}@", uri))


def without_password(uri: str) -> str:
    """Return an address as it may be kept: its password is left out, and has to come from elsewhere."""
    return _IN_QUERY.sub(r"\1", _PASSWORD.sub(r"\1@", uri))


def hide(text: object, *uris: str) -> str:
    """Return a text, such as an error's, without the passwords of `uris` and of all addresses that were remembered."""
    found = str(text)
    for uri in uris:
        found = found.replace(uri, shown(uri))
    for secret in sorted(_known.union(*map(_secrets, uris)), key=len, reverse=True):
        found = found.replace(secret, HIDDEN)
    return found


def tell_error(error: BaseException) -> str:
    """Return an error's words without passwords, with its type where it is not one of ours."""
    return hide(error if isinstance(error, SkinCancerError) else f"{type(error).__name__}: {error}")


def remember(uri: str) -> None:
    """Have the password of an address hidden wherever this process tells an error."""
    secrets = _secrets(uri)
    if secrets and not _known:
        sys.excepthook = _tell
    _known.update(secrets)


def _secrets(uri: str) -> set[str]:
    """Return a password in every way of writing it that an error may have."""
    given = [match[2] for match in _PASSWORD.finditer(uri)] + [match[2] for match in _IN_QUERY.finditer(uri)]
    return {text for secret in given for text in (secret, unquote(secret), quote(unquote(secret), safe="")) if text}


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what ends this process, as Python does, without passwords."""
    sys.stderr.write(hide("".join(traceback.format_exception(kind, error, trace))))
