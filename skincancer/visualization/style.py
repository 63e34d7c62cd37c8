"""Colours, axes and files of figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType

# seaborn's "colorblind": told apart by people with the common colour deficiencies; pale ones last
PALETTE = (
    "#0173b2", "#d55e00", "#029e73", "#cc78bc", "#de8f05", "#56b4e9", "#949494", "#ca9161", "#ece133", "#fbafe4",
)  # fmt: skip

INK, FAINT = "#222222", "#8c8c8c"
_DASHES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG at 150 dpi, with nothing cut at the edges; the folder must exist. Returns the path."""
    Path(path).write_bytes(encode_png(figure))
    return Path(path)


def encode_png(figure: Figure) -> bytes:
    """Return what `save` writes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1, facecolor="white")
    return buffer.getvalue()


def class_styles(classes: Sequence[str]) -> list[tuple[str, LineStyleType]]:
    """Return (colour, line style) for each class by its position; past ten, colours repeat in another line style."""
    return [(PALETTE[i % len(PALETTE)], _DASHES[i // len(PALETTE) % len(_DASHES)]) for i in range(len(classes))]


def new_figure(size: tuple[float, float], title: str, note: str) -> Figure:
    """Return a figure of `size` inches without pyplot, with its title above and its note small at the bottom."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    columns = int(size[0] * 12)
    if title:
        figure.suptitle(wrapped(title, columns), fontsize=12)
    if note:
        # supxlabel and not text: the layout keeps room for it
        figure.supxlabel(wrapped(note, int(columns * 1.3)), x=0.01, ha="left", fontsize=8, color="#555555")
    return figure


def wrapped(text: str, columns: int = 24) -> str:
    """Break long text into lines, and keep $ from being read as a formula."""
    return "\n".join(textwrap.wrap(text, columns)).replace("$", r"\$")


def finish_axes(axes: Axes) -> None:
    """Take away what a chart does not need, and put a faint grid behind it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def legend_of_panels(figure: Figure) -> None:
    """Put one legend of all panels beside them: not above or below, where title and note are."""
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(entries.values()), list(entries), loc="outside right center", frameon=False, fontsize=9)
