"""Pages as their readers see them."""

from __future__ import annotations

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Keeps the elements of a page with their attributes, every text, and the texts of each element."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.elements, self._open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.elements.append((tag, dict(attrs).get("class", ""), []))
            self._open.append(self.elements[-1])

    def handle_data(self, data):
        if data.strip() and self._open and self._open[-1][0] != "style":
            self.texts.append(data.strip())
            self._open[-1][2].append(data.strip())

    def handle_endtag(self, tag):
        while self._open and self._open.pop()[0] != tag:
            pass

    def of(self, tag, kind=None):
        """Return the texts of all elements of a kind."""
        return [" ".join(texts) for found, kinds, texts in self.elements if found == tag and kind in (None, kinds)]

    def rows(self):
        """Return the texts of the cells of every row of every table."""
        rows = []
        for tag, _, texts in self.elements:
            if tag == "tr":
                rows.append([])
            elif tag in ("td", "th"):
                rows[-1].append(" ".join(texts))
        return rows


def read(path):
    """Read a page."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def asks_for_nothing(page):
    """Say whether a page runs nothing and asks for nothing that is not in it."""
    running = {"script", "link", "iframe", "object", "embed", "base", "form"}
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    events = [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    inside = all(address.startswith(("data:", "#")) for address in addresses)
    return running.isdisjoint(tag for tag, _ in page.tags) and inside and not events
