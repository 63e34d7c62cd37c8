from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from html_pages import asks_for_nothing, read
from matplotlib.figure import Figure
from PIL import Image

from skincancer.visualization.html import Code, Picture, Section, Table, Text, write_page

NASTY = "<script>alert(1)</script> \"a\", 'b' & ü 皮膚.jpg"


def cells(path):
    """Return the text of every cell of a page, and whether the cell is a number."""
    matches = re.findall(r'<td( class="number")?>([^<]*)</td>', path.read_text(encoding="utf-8"))
    return [(text, bool(number)) for number, text in matches]


def test_every_string_of_a_page_is_escaped(tmp_path):
    picture = Picture(np.zeros((4, 4, 3), np.uint8), NASTY, NASTY)
    parts = [Text(NASTY), Code(NASTY, NASTY), picture, Table(NASTY, [NASTY, "p"], [[NASTY, 1], [picture, 2]], NASTY)]
    path = write_page(tmp_path / "page.html", NASTY, NASTY, [Section(NASTY, parts)], [NASTY], NASTY)
    page = read(path)
    assert "script" not in [tag for tag, _ in page.tags]
    # title twice, subtitle, band, heading, paragraph, code twice, caption, table: title, column, cell, its picture, caption; footer
    assert page.texts.count(NASTY) == 15
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [NASTY, NASTY]


def test_page_makes_no_requests(tmp_path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png", dpi=(192, 192))
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    parts = [Picture(figure, "f"), Picture(tmp_path / "a.png", "p"), Picture(np.full((5, 7, 3), 90, np.uint8), "a")]
    page = read(write_page(tmp_path / "new" / "page.html", "t", "", [Section("s", parts)]))
    assert asks_for_nothing(page)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    kinds, contents = zip(*(image["src"].removeprefix("data:").split(";base64,") for image in images), strict=True)
    assert kinds == ("image/png", "image/png", "image/jpeg")
    opened = [Image.open(io.BytesIO(base64.b64decode(content))) for content in contents]
    assert [image.size for image in opened[1:]] == [(8, 6), (7, 5)]
    assert images[1]["width"] == "4"  # 8 px at 192 dpi, with 96 CSS pixels per inch
    assert int(images[0]["width"]) == pytest.approx(opened[0].width * 96 / 150, abs=0.6)
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_numbers_are_aligned_right_and_missing_values_are_dashes(tmp_path):
    rows = [["nv", 12345, 0.12345, "0.80 – 0.91", None, True], ["mel", 7, float("nan"), "–", "", np.bool_(False)]]
    path = write_page(tmp_path / "p.html", "t", "", [Section("s", [Table("", list("abcdef"), rows)])])
    assert cells(path) == [
        ("nv", False), ("12,345", True), ("0.123", True), ("0.80 – 0.91", True), ("–", False), ("yes", False),
        ("mel", False), ("7", True), ("–", True), ("–", True), ("–", False), ("no", False),
    ]  # fmt: skip


def test_page_escapes_undecodable_names_and_drops_empty_sections(tmp_path):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    path = write_page(tmp_path / "p.html", "t", "", [Section("nothing", []), Section("some", [Text(name)])])
    assert read(path).texts == ["t", "t", "some", "caf\\udce9.jpg"]


@pytest.mark.parametrize(
    "part",
    [
        Table("wide", ["a", "b"], [[1]]),
        Picture(np.zeros((4, 4), np.uint8), ""),
        Picture(np.zeros((4, 4, 3)), ""),
    ],
)
def test_malformed_parts_fail(tmp_path, part):
    with pytest.raises(ValueError, match=r"table 'wide' has 1 cells; expected 2|expected uint8 \(H, W, 3\)"):
        write_page(tmp_path / "p.html", "t", "", [Section("s", [part])])
    with pytest.raises(ValueError, match=r"a\.gif; expected \.png"):
        write_page(tmp_path / "p.html", "t", "", [Section("s", [Picture(tmp_path / "a.gif", "")])])
