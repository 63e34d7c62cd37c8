"""Options and messages of reading a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.text import Text

from skincancer.system.console import warn

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Reading:
    """Messages about a data set that was read.

    Attributes:
        notes: lines to print.
        warnings: title and text of each warning.
    """

    notes: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def report(self, console: Console) -> None:
        """Print notes and warnings."""
        for note in self.notes:
            console.print(Text(note))
        for title, text in self.warnings:
            warn(console, title, text)
