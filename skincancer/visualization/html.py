"""Self-contained HTML pages, without scripts, requests or links to files.

A page has a title, warning bands, and sections of paragraphs, tables, images and blocks of fixed-width text. All strings are escaped, and
images are embedded. `page.html` next to this module contains the layout.
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
    """Text in a fixed-width font, with line breaks.

    The text is collapsed under its title until clicked, and expanded on paper.
    """

    title: str
    text: str


@dataclass(frozen=True)
class Picture:
    """An embedded image.

    Attributes:
        source: matplotlib figure (embedded as PNG, as `style.save` writes), image file (.png, .jpg, .svg; embedded unchanged), or RGB image
            uint8 (H, W, 3) (embedded as JPEG).
        alt: description for screen readers.
        caption: text below the image.
        width: width on the page in CSS pixels (96 per inch), at most the page width. None for the size of the image: inches if the file
            has a resolution, otherwise pixels.
    """

    source: Figure | Path | npt.NDArray[np.uint8]
    alt: str
    caption: str = ""
    width: int | None = None


Cell = str | int | float | Picture | None


@dataclass(frozen=True)
class Table:
    """A table, with a scroll bar if wider than the page.

    Columns of numbers (int, float, or strings of digits and signs) are aligned to the right. Integers have thousands separators and floats
    three decimals; use strings for another format. None, NaN and "" are printed as a dash.

    Attributes:
        title: text above the table.
        columns: C column names.
        rows: rows of C cells.
        caption: text below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


Part = Text | Code | Picture | Table


@dataclass(frozen=True)
class Section:
    """A heading with its content."""

    title: str
    parts: Sequence[Part] = field(default_factory=tuple)


def write_page(
    path: Path, title: str, subtitle: str, sections: Sequence[Section], bands: Sequence[str] = (), footer: str = ""
) -> Path:
    """Write an HTML page and return its path.

    Args:
        path: HTML file; its folder is created.
        title: title of the page.
        subtitle: text under the title.
        sections: sections in order; a section without parts is left out.
        bands: warnings, each in a coloured band at the top.
        footer: text at the end.

    Raises:
        ValueError: a table row has the wrong number of cells, or the source of a picture is no figure or image.
    """
    rendered = [
        {"title": section.title, "parts": [_render(part) for part in section.parts]}
        for section in sections
        if section.parts
    ]
    page = _template().render(title=title, subtitle=subtitle, bands=bands, sections=rendered, footer=footer)
    path.parent.mkdir(parents=True, exist_ok=True)
    # File names may contain bytes that are not UTF-8.
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")


def _render(part: Part) -> dict[str, Any]:
    """Return a part as variables of the template."""
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
                f"a row of the table {table.title!r} has {len(row)} cells; expected {len(table.columns)} columns"
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
    """Return data URI, width (px), alt text and caption of a picture."""
    source, width = picture.source, picture.width
    if isinstance(source, Figure):
        content, kind = encode_png(source), "image/png"
    elif isinstance(source, Path):
        if source.suffix.lower() not in _TYPES:
            raise ValueError(f"a picture is {source.name}; expected {', '.join(_TYPES)}")
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
    """Encode an RGB image uint8 (H, W, 3) as JPEG.

    Raises:
        ValueError: the image has another shape or dtype.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"a picture is {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
