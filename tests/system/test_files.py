"""Text files are written completely or not at all."""

import os
from pathlib import Path

import pytest

from skincancer.system.files import write_whole


def test_write_replaces_the_file_and_leaves_no_other_file(tmp_path: Path):
    path = tmp_path / "new/best.yaml"
    for text in ("first: é\n", "second\n"):
        write_whole(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert os.listdir(path.parent) == ["best.yaml"]


def test_previous_content_survives_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
