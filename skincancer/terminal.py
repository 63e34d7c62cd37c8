"""What a person sees: rich tables and progress bars on a terminal, plain whole tables in a pipe; errors without traceback."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from skincancer.addresses import hide
from skincancer.errors import RunError, SkinCancerError

# schedulers often send the same signal twice at once; a person who waits for a dead server sends another
HOLD_SECONDS = 5.0
_AGAIN_SECONDS = 0.05
_PIPE_WIDTH = 10_000  # in a pipe a table is as wide as its content, and no name is cut, unless COLUMNS says so


def make_console(stderr: bool = False) -> Console:
    """Return a console for standard output (or error); in a pipe it is as wide as $COLUMNS, where that is set."""
    stream = sys.stderr if stderr else sys.stdout
    told = os.environ.get("COLUMNS", "")  # as every terminal program reads it
    width = None if stream.isatty() else int(told) if told.isdecimal() and int(told) else _PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=not stream.isatty())


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Table:
    """Return a table; columns of numbers are right-aligned. Cell texts are taken literally."""
    table = Table(
        title=Text(title), caption=Text(caption) if caption else None, title_justify="left", caption_justify="left"
    )
    for number, column in enumerate(columns):
        numbers = number > 0 and all(re.fullmatch(r"[-–\d., %]*", str(row[number])) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def warn(console: Console, title: str, text: str) -> None:
    """Print what nobody may overlook: a box on a terminal, lines of their own in a pipe."""
    if console.is_terminal:
        console.print(Panel(Text(text), title=Text(title), border_style="bold yellow", title_align="left"))
    else:
        lines = "\n".join(f"!!! {line}" for line in [title, *text.splitlines()])
        console.print(Text(f"\n{lines}\n"))


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Yield a maker of progress callbacks: `bars(title)(done, total)`. In a pipe only the end of each is printed."""
    if not console.is_terminal:

        def plain(title: str) -> Callable[[int, int], None]:
            def update(done: int, total: int) -> None:
                if done == total:
                    console.print(Text(f"{title}: {total} done"))

            return update

        yield plain
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        def bar(title: str) -> Callable[[int, int], None]:
            task = progress.add_task(title, total=None, visible=False)

            def update(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total, visible=True)

            return update

        yield bar


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


def run_verb(verb: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code.

    0; 2 for what was asked wrongly; 1 for a run that failed; 130 or 143 for SIGINT or SIGTERM. Expected errors have no traceback.
    """
    try:
        with contextlib.suppress(BrokenPipeError):
            verb(sys.argv[1:] if argv is None else argv)
        return 0
    except SkinCancerError as error:
        make_console(stderr=True).print(Text(f"error: {hide(error)}"))
        return 1 if isinstance(error, RunError) else 2
    except KeyboardInterrupt:
        make_console(stderr=True).print("interrupted; the same command can be given again")
        return 130
    except Interrupted as interrupt:
        make_console(stderr=True).print(Text(f"interrupted by {interrupt}"))
        return interrupt.exit_code
