"""Test that docstrings are short and plain: the rules of CONTRIBUTING.md that a program can check."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "skincancer"
LONGEST = 14  # words of a first line
BANNED = re.compile(
    r"\b(told|tells?|lest|whose|mend(s|ed)?|on end|by hand|is gone|are gone|hand-made|be it|those that|them those"
    r"|a row an? \w+|a line an? \w+|without a word|stands? (in|beside)|goes on|taken for dead|hangs together|drawn at random)\b",
    re.IGNORECASE,
)
# modules whose docstrings are not yet plain; the list may only shrink
EXEMPT: set[str] = {
    "comparison/driver.py",
    "data/readers/demo.py",
    "runs/search.py",
}


def docstrings(path: Path) -> list[tuple[int, str]]:
    """Line number and text of every docstring of a module."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, documented)]
    return [(getattr(node, "lineno", 1), text) for node in nodes if (text := ast.get_docstring(node))]


def faults(path: Path) -> list[str]:
    """Rules that docstrings of a module break, with their line numbers."""
    found = []
    for line, text in docstrings(path):
        first = text.partition("\n")[0]
        if len(first.split()) > LONGEST:
            found.append(
                f"{path.name}:{line}: the first line has {len(first.split())} words, at most {LONGEST}: {first}"
            )
        if ";" in first:
            found.append(f"{path.name}:{line}: the first line has a semicolon: {first}")
        found += [f"{path.name}:{line}: banned words {match[0]!r}" for match in BANNED.finditer(text)]
    return found


def modules() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", modules())
def test_docstrings_are_plain(module):
    found = faults(PACKAGE / module)
    if module in EXEMPT:
        assert found, f"{module} is plain now: remove it from EXEMPT"
    else:
        assert not found, "\n".join(found)


def test_faults_are_found(tmp_path):
    long = " ".join(["word"] * 15)
    path = tmp_path / "faulty.py"
    path.write_text(f'"""{long}."""\n\n\ndef one():\n    """Do this; do that.\n\n    What it is told.\n    """\n')
    found = "\n".join(faults(path))
    assert "has 15 words" in found
    assert "has a semicolon: Do this; do that." in found
    assert "banned words 'told'" in found
