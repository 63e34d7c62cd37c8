"""Self-contained HTML pages: one file without scripts, requests or links to files, for screens, phones and paper.

A page is a title, bands for what nobody may overlook, and sections of parts: paragraphs, tables, pictures, blocks of fixed-width
text. Every string is escaped, wherever it comes from; pictures are embedded. The look is in `page.html`, beside this module.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.figure import Figure
from PIL import Image

from skincancer.visualization.style import encode_png

EMPTY = "–"
JPEG_QUALITY = 85
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}
_CSS_DPI = 96
_NUMBER = re.compile(r"(?=.*\d)[\d.,\s<>=±×%()+\-–−eE]*|[–-]?|nan|inf")


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    paragraph: str


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font, with its line breaks; folded under its title until it is clicked (unfolded on paper)."""

    title: str
    text: str


@dataclass(frozen=True)
class Picture:
    """An image, embedded.

    Attributes:
        source: A matplotlib figure (embedded as PNG, as `figures.save` writes it), an image file (.png, .jpg, .svg; embedded as it
            is), or an RGB image uint8 (H, W, 3) (embedded as JPEG).
        alt: What it shows, for those who do not see it.
        caption: Below it.
        width: Pixels on the page, of 96 an inch; None for its own: inches where it has them, else pixels. Never wider than the page.
    """

    source: Figure | Path | npt.NDArray[np.uint8]
    alt: str
    caption: str = ""
    width: int | None = None


Cell = str | int | float | Picture | None


@dataclass(frozen=True)
class Table:
    """A table, in a box that scrolls where it is wider than the page.

    A column of numbers is aligned to the right: of int, float, or strings of digits and the signs around them. Integers get
    thousands separators and floats three decimals; give strings for other digits. None, NaN and "" are shown as a dash.

    Attributes:
        title: Above it.
        columns: C names.
        rows: C cells each.
        caption: Below it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


Part = Text | Code | Picture | Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part] = field(default_factory=tuple)


def write_page(
    path: Path, title: str, subtitle: str, sections: Sequence[Section], bands: Sequence[str] = (), footer: str = ""
) -> Path:
    """Write a page.

    Args:
        path: the file; its folder is made.
        title: of the page.
        subtitle: under it.
        sections: in order; one without parts is left out.
        bands: warnings, each in a loud band above everything.
        footer: at the end.

    Returns:
        `path`.

    Raises:
        ValueError: a row of a table has not as many cells as there are columns, or a picture is neither a figure nor an image.
    """
    shown = [
        {"title": section.title, "parts": [_render(part) for part in section.parts]}
        for section in sections
        if section.parts
    ]
    page = _template().render(title=title, subtitle=subtitle, bands=bands, sections=shown, footer=footer)
    path.parent.mkdir(parents=True, exist_ok=True)
    # file names may hold bytes that are no text
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")


def _render(part: Part) -> dict[str, Any]:
    """Turn a part into what the template takes."""
    match part:
        case Text():
            return {"kind": "text", "text": part.paragraph}
        case Code():
            return {"kind": "code", "title": part.title, "text": part.text}
        case Picture():
            return {"kind": "picture", "picture": _embed(part)}
        case Table():
            return _render_table(part)


def _render_table(table: Table) -> dict[str, Any]:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(
                f"a row of the table {table.title!r} has {len(row)} cells, but there are {len(table.columns)} columns"
            )
    texts = [[None if isinstance(cell, Picture) else _text(cell) for cell in row] for row in table.rows]
    numeric = [
        any(row[column] not in (EMPTY, None) for row in texts)
        and all(text is not None and _NUMBER.fullmatch(text) for text in (row[column] for row in texts))
        for column in range(len(table.columns))
    ]
    rows = [
        [
            {"picture": _embed(cell) if isinstance(cell, Picture) else None, "text": text, "number": number}
            for cell, text, number in zip(row, row_texts, numeric, strict=True)
        ]
        for row, row_texts in zip(table.rows, texts, strict=True)
    ]
    columns = [{"text": name, "number": number} for name, number in zip(table.columns, numeric, strict=True)]
    return {"kind": "table", "title": table.title, "columns": columns, "rows": rows, "caption": table.caption}


def _text(cell: str | int | float | None) -> str:
    if cell is None or cell == "":
        return EMPTY
    if isinstance(cell, (bool, np.bool_)):
        return "yes" if cell else "no"
    if isinstance(cell, (int, np.integer)):
        return f"{cell:,}"
    if isinstance(cell, (float, np.floating)):
        return EMPTY if math.isnan(cell) else f"{cell:.3f}"
    return str(cell)


def _embed(picture: Picture) -> dict[str, Any]:
    """Return the data URI of a picture, its width on the page in px (None for its own), alt text and caption."""
    source, width = picture.source, picture.width
    if isinstance(source, Figure):
        content, kind = encode_png(source), "image/png"
    elif isinstance(source, Path):
        if source.suffix.lower() not in _TYPES:
            raise ValueError(f"a picture is {source.name}; a page takes {', '.join(_TYPES)}")
        content, kind = source.read_bytes(), _TYPES[source.suffix.lower()]
    else:
        content, kind = encode_jpeg(source), "image/jpeg"
    if width is None and kind == "image/png":
        with Image.open(io.BytesIO(content)) as image:
            dpi = image.info.get("dpi")
            width = round(image.width * _CSS_DPI / float(dpi[0])) if dpi and dpi[0] else None
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"uri": uri, "width": width, "alt": picture.alt, "caption": picture.caption}


def encode_jpeg(image: npt.NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """Return an RGB image uint8 (H, W, 3) as the bytes of a JPEG file.

    Raises:
        ValueError: another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"a picture must be uint8 (H, W, 3), given {image.dtype} {image.shape}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
