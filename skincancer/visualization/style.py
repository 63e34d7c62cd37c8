"""Colours, axes and files of figures."""

from __future__ import annotations

import io
import math
import struct
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

# Figures and printed tables show at most this many classes one by one.
MOST_CLASSES = 20
_DPI, _MOST_PIXELS = 150, 16_000_000
INK, FAINT = "#222222", "#8c8c8c"
_DASHES: tuple[LineStyleType, ...] = ("-", "--", ":", "-.")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG at 150 dpi and return its path.

    The folder must exist.
    """
    Path(path).write_bytes(encode_png(figure))
    return Path(path)


def encode_png(figure: Figure) -> bytes:
    """Encode a figure as PNG at 150 dpi and at most 16 megapixels."""
    content = _png(figure, _DPI)
    # The size of a figure with its legends is only known once it is drawn. Bytes 16 to 24 of a PNG are width and height.
    width, height = struct.unpack(">II", content[16:24])
    excess = width * height / _MOST_PIXELS
    return content if excess <= 1 else _png(figure, _DPI / math.sqrt(excess))


def _png(figure: Figure, dpi: float) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.1, facecolor="white")
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


def wrapped(text: str, columns: int = 24, lines: int | None = None) -> str:
    """Break long text into lines, at most `lines`, and escape $ (formulas)."""
    return "\n".join(textwrap.wrap(text, columns, max_lines=lines, placeholder="…")).replace("$", r"\$")


def class_label(name: str) -> str:
    """Return the name of a class in at most three lines."""
    return wrapped(name, lines=3)


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
