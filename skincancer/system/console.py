"""Console output: tables, warnings, progress bars and exit codes.

In a pipe, tables are plain text and are never cut.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from skincancer.errors import RunError, SkinCancerError
from skincancer.system.credentials import mask_passwords
from skincancer.system.interrupts import Interrupted
from skincancer.system.launcher import check_numbers

# In a pipe a table is as wide as its content, so that no name is cut, unless COLUMNS is set.
_PIPE_WIDTH = 10_000


class _Console(Console):
    """Console that continues without a reader, as in `fit … | head -1`."""

    def on_broken_pipe(self) -> None:
        """Discard all further output. rich would exit, which would end a running fit."""
        self.quiet = True
        _discard(sys.stderr if self.stderr else sys.stdout)


def _discard(stream: TextIO) -> None:
    """Send a stream to the null device, where Python flushes it at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def prepare_streams() -> None:
    """Let output never fail: reopen closed streams, and replace characters that the encoding lacks."""
    # A file that is opened later must not take the number of a closed stream, because libraries write to 1 and 2.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        # A notebook and a test have streams of other classes. UTF-8 lacks only the bytes of file names that are not UTF-8.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace" if stream.encoding.lower().startswith("utf") else "replace")


def make_console(stderr: bool = False) -> Console:
    """Return a console for standard output or error.

    In a pipe the width is $COLUMNS if the variable is set. In a notebook the console writes HTML.
    """
    prepare_streams()
    if (notebook := Console(stderr=stderr, highlight=False)).is_jupyter:
        return notebook
    stream = sys.stderr if stderr else sys.stdout
    columns = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else int(columns) if columns.isdecimal() and int(columns) else _PIPE_WIDTH
    return _Console(stderr=stderr, width=width, highlight=False, soft_wrap=not stream.isatty())


def is_live(console: Console) -> bool:
    """Return whether output can be redrawn, as in a terminal or a notebook."""
    return console.is_terminal or console.is_jupyter


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> Table:
    """Return a table with numeric columns aligned to the right.

    Cell texts are printed literally, without rich markup.
    """
    table = Table(
        title=Text(title), caption=Text(caption) if caption else None, title_justify="left", caption_justify="left"
    )
    for number, column in enumerate(columns):
        numbers = number > 0 and all(re.fullmatch(r"[-–\d., %]*", str(row[number])) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def clock(seconds: float | None) -> str:
    """Return a duration as h:mm:ss, "–" if unknown."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def warn(console: Console, title: str, text: str) -> None:
    """Print a warning: a box, or lines with `!!!` in a pipe."""
    if is_live(console):
        console.print(Panel(Text(text), title=Text(title), border_style="bold yellow", title_align="left"))
    else:
        lines = "\n".join(f"!!! {line}" for line in [title, *text.splitlines()])
        console.print(Text(f"\n{lines}\n"))


@contextlib.contextmanager
def optional(console: Console, what: str) -> Iterator[None]:
    """Print a warning instead of raising if a figure or page cannot be written.

    A finished training must not fail here. Libraries that draw raise errors of many types.
    """
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {mask_passwords(error)}. The run continues, and its other files are written."
        warn(console, f"{what} could not be written", text)


@contextlib.contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Yield a factory of progress callbacks, called as `bars(title)(done, total)`.

    In a pipe only the end of each task is printed.
    """
    if not is_live(console):

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


def program(verb: str) -> str:
    """Return the command that started a verb, for its usage line."""
    # The script that pip installs, or `python -m skincancer`.
    by_name = any(Path(word.removesuffix(".exe")).name == "skincancer" for word in sys.orig_argv[1:3])
    return f"skincancer {verb}" if by_name else f"python -m skincancer.{verb}"


def run_verb(verb: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code.

    0 is success, 1 a failed run, 2 a wrong request, 130 SIGINT and 143 SIGTERM. Expected errors are printed without a traceback.
    """
    prepare_streams()
    try:
        check_numbers()
        verb(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        _discard(sys.stdout)
        return 0
    except SkinCancerError as error:
        make_console(stderr=True).print(Text(f"error: {mask_passwords(error)}"))
        return 1 if isinstance(error, RunError) else 2
    except (OSError, MemoryError) as error:
        # The machine lacks something, such as space, memory or permission: a traceback would not explain more.
        make_console(stderr=True).print(Text(f"error: {mask_passwords(error) or 'the memory is full'}"))
        return 1
    except KeyboardInterrupt:
        make_console(stderr=True).print("interrupted; rerun the same command to start again")
        return 130
    except Interrupted as interrupt:
        make_console(stderr=True).print(Text(f"interrupted by {interrupt}"))
        return interrupt.exit_code
