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

# The palette "colorblind" of seaborn, which people with the common colour vision deficiencies can distinguish. Pale colours are last.
PALETTE = (
    "#0173b2", "#d55e00", "#029e73", "#cc78bc", "#de8f05", "#56b4e9", "#949494", "#ca9161", "#ece133", "#fbafe4",
)  # fmt: skip

INK, FAINT = "#222222", "#8c8c8c"
_DASHES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG at 150 dpi and return its path.

    The folder must exist.
    """
    Path(path).write_bytes(encode_png(figure))
    return Path(path)


def encode_png(figure: Figure) -> bytes:
    """Encode a figure as PNG at 150 dpi."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1, facecolor="white")
    return buffer.getvalue()


def class_styles(classes: Sequence[str]) -> list[tuple[str, LineStyleType]]:
    """Return (colour, line style) of each class by its position.

    After ten classes the colours repeat with another line style.
    """
    return [(PALETTE[i % len(PALETTE)], _DASHES[i // len(PALETTE) % len(_DASHES)]) for i in range(len(classes))]


def new_figure(size: tuple[float, float], title: str, note: str) -> Figure:
    """Return a figure of `size` inches with title and small note."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    columns = int(size[0] * 12)
    if title:
        figure.suptitle(wrapped(title, columns), fontsize=12)
    if note:
        # The layout reserves space for supxlabel, but not for text.
        figure.supxlabel(wrapped(note, int(columns * 1.3)), x=0.01, ha="left", fontsize=8, color="#555555")
    return figure


def wrapped(text: str, columns: int = 24) -> str:
    """Break long text into lines and escape $ (formulas)."""
    return "\n".join(textwrap.wrap(text, columns)).replace("$", r"\$")


def finish_axes(axes: Axes) -> None:
    """Remove the top and right spines and add a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def legend_of_panels(figure: Figure) -> None:
    """Add one legend for all panels, to the right of the figure."""
    entries = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(entries.values()), list(entries), loc="outside right center", frameon=False, fontsize=9)
