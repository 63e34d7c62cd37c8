"""Options and messages of reading a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from skincancer.schema.data import DataConfig
from skincancer.system.console import warn

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Reading:
    """Options of reading a data set, and messages about the result.

    Attributes:
        where: condition on the rows (`data.where`), None for all rows.
        images: folder of the images of a table (`data.images`), None for the folder of the table.
        notes: lines to print.
        warnings: title and text of each warning.
    """

    where: str | None = None
    images: Path | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def from_config(cls, config: DataConfig) -> Reading:
        """Return the options of a config."""
        return cls(config.where, Path(config.images) if config.images else None)

    def report(self, console: Console) -> None:
        """Print notes and warnings."""
        for note in self.notes:
            console.print(Text(note))
        for title, text in self.warnings:
            warn(console, title, text)
