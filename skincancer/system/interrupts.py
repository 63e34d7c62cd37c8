"""SIGINT and SIGTERM as exceptions."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

# Schedulers often send the same signal twice at once. A user who waits for an unresponsive server sends another one later.
HOLD_SECONDS = 5.0
_AGAIN_SECONDS = 0.05


class Interrupted(BaseException):
    """SIGINT or SIGTERM as an exception, with exit code 130 or 143.

    A BaseException, so that no library handles the signal as an ordinary error. Lightning would end a KeyboardInterrupt with exit code 1.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.exit_code = 128 + signum


class _Arrived:
    """State of SIGINT and SIGTERM in this process."""

    holds = 0
    held: int | None = None
    held_at = 0.0
    raised = False
    dropped: int | None = None


@contextlib.contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Raise `Interrupted` for the first SIGINT or SIGTERM.

    Later signals are ignored, so that the end of the run can be recorded. Python drops exceptions inside a callback of a weak
    reference or a `__del__`, and signals do arrive there: during `torch.save`, garbage collection is the first Python code to run in a
    while. An `Interrupted` that was dropped there is raised again outside.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Arrived.holds, _Arrived.held, _Arrived.raised, _Arrived.dropped = 0, None, False, None

    def handle(signum: int, _: Any) -> None:
        if _Arrived.raised:
            return
        if _Arrived.holds and _Arrived.held is None:
            _Arrived.held, _Arrived.held_at = signum, time.monotonic()
        if _Arrived.holds and time.monotonic() - _Arrived.held_at < HOLD_SECONDS:
            return
        _Arrived.raised = True
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
            signum, _Arrived.dropped, _Arrived.raised = _Arrived.dropped, None, False
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


@contextlib.contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Record an interrupted run as KILLED, then raise the exceptions that a notebook expects.

    Raises:
        KeyboardInterrupt: SIGINT arrived.
        SystemExit: SIGTERM arrived.
    """
    try:
        with signals_as_interrupts():
            yield
    except Interrupted as interrupt:
        if interrupt.signum == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(interrupt.exit_code) from None


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM until the end of `signals_as_interrupts`.

    Call before recording the known end of a run, so that a late signal cannot interrupt the recording.
    """
    _Arrived.raised = True


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay a signal until the block ends.

    A second signal interrupts the block if the first one has waited for `HOLD_SECONDS`. Use for writes to the tracking store: an
    interrupted database statement keeps the database locked, and the end of the run could not be recorded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Arrived.holds += 1
    try:
        yield
    finally:
        _Arrived.holds -= 1
        if not _Arrived.holds and _Arrived.held is not None and not _Arrived.raised:
            _Arrived.raised = True
            raise Interrupted(_Arrived.held)
