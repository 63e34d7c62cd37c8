"""SIGINT and SIGTERM as exceptions."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

# schedulers often send the same signal twice at once; a person who waits for a dead server sends another
HOLD_SECONDS = 5.0
_AGAIN_SECONDS = 0.05


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; `exit_code` is what a shell expects (130 or 143).

    A BaseException, so that no library takes it for an error of its own; Lightning would end a KeyboardInterrupt with exit code 1.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.exit_code = 128 + signum


class _Arrived:
    """What became of SIGINT and SIGTERM in this process."""

    holds = 0
    held: int | None = None
    held_at = 0.0
    told = False
    dropped: int | None = None


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `Interrupted`; later ones are ignored, so that the end can be written.

    Python drops whatever is raised inside a callback of a weak reference or a `__del__`, and signals do arrive there: garbage
    collected during `torch.save` is the first Python code to run in a while. Such an `Interrupted` is raised again outside.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Arrived.holds, _Arrived.held, _Arrived.told, _Arrived.dropped = 0, None, False, None

    def handle(signum: int, _: Any) -> None:
        if _Arrived.told:
            return
        if _Arrived.holds and _Arrived.held is None:
            _Arrived.held, _Arrived.held_at = signum, time.monotonic()
        if _Arrived.holds and time.monotonic() - _Arrived.held_at < HOLD_SECONDS:
            return
        _Arrived.told = True
        raise Interrupted(signum)

    def on_dropped(what: sys.UnraisableHookArgs) -> None:
        if isinstance(what.exc_value, Interrupted):
            _Arrived.dropped = what.exc_value.signum
            before.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, once_more))
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            report_dropped(what)

    def once_more(_: int, frame: Any) -> None:
        if _Arrived.dropped is not None:
            signum, _Arrived.dropped, _Arrived.told = _Arrived.dropped, None, False
            handle(signum, frame)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    report_dropped, sys.unraisablehook = sys.unraisablehook, on_dropped
    try:
        yield
    finally:
        _Arrived.dropped = None
        if signal.SIGALRM in before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = report_dropped
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM until the end of `signals_as_interrupts`, so that an end that is already known can be written."""
    _Arrived.told = True


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold a signal back until the block ends; a second one breaks in if the first has waited for `HOLD_SECONDS`.

    For calls that write to the tracking store: a database statement that is broken off half-way keeps the database locked, and the
    run's end could not be written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Arrived.holds += 1
    try:
        yield
    finally:
        _Arrived.holds -= 1
        if not _Arrived.holds and _Arrived.held is not None and not _Arrived.told:
            _Arrived.told = True
            raise Interrupted(_Arrived.held)
