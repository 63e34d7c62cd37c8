"""Store addresses without their passwords, for output and logs.

Call `remember_password(uri)` before opening a store. `mask_passwords` and tracebacks of this process then mask the password.
"""

from __future__ import annotations

import re
import sys
import traceback
from types import TracebackType
from urllib.parse import quote, unquote

from skincancer.errors import SkinCancerError

HIDDEN = "***"
# A password may contain '/' and '@' that should have been written as %2F and %40. Digits before a '/' are a port.
_PASSWORD = re.compile(r"^([\w+.-]+://[^:/?#@]*):(?!\d*/)([^@]*(?:@[^@/?#]*(?=@))*)@")
_IN_QUERY = re.compile(r"([?&][^=&#]*(?:pass|secret|token)[^=&#]*=)([^&#]*)", re.IGNORECASE)
_known: set[str] = set()


def mask_password(uri: str) -> str:
    """Return an address with *** in place of its password."""
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _PASSWORD.sub(rf"\1:{HIDDEN}@", uri))


def remove_password(uri: str) -> str:
    """Return an address for files, without its password."""
    return _IN_QUERY.sub(r"\1", _PASSWORD.sub(r"\1@", uri))


def mask_passwords(text: object, *uris: str) -> str:
    """Mask the passwords of `uris` and remembered addresses in a text."""
    masked = str(text)
    for uri in uris:
        masked = masked.replace(uri, mask_password(uri))
    for secret in sorted(_known.union(*map(_secrets, uris)), key=len, reverse=True):
        masked = masked.replace(secret, HIDDEN)
    return masked


def format_error(error: BaseException) -> str:
    """Return an error message without passwords.

    The message of an unexpected error starts with the type of the error.
    """
    return mask_passwords(error if isinstance(error, SkinCancerError) else f"{type(error).__name__}: {error}")


def remember_password(uri: str) -> None:
    """Mask the password of an address in later error output."""
    secrets = _secrets(uri)
    if secrets and not _known:
        sys.excepthook = _print_traceback
    _known.update(secrets)


def _secrets(uri: str) -> set[str]:
    """Return the passwords of an address, each as written, percent-decoded and percent-encoded."""
    secrets = [match[2] for match in _PASSWORD.finditer(uri)] + [match[2] for match in _IN_QUERY.finditer(uri)]
    return {text for secret in secrets for text in (secret, unquote(secret), quote(unquote(secret), safe="")) if text}


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an uncaught exception without passwords."""
    sys.stderr.write(mask_passwords("".join(traceback.format_exception(kind, error, trace))))
