"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from skincancer.system.files import write_whole


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path):
    path = tmp_path / "new/best.yaml"
    for text in ("first: é\n", "second\n"):
        write_whole(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(path.parent) == ["best.yaml"]


def test_what_was_there_survives_a_write_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "best.yaml"
    write_whole(path, "first")

    def half(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(text.encode()[:3])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["best.yaml"]
