"""The verdict of the last audit is one line, even with a broken or missing file."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from pictures import picture

from skincancer import prepare
from skincancer.audit import verdict
from skincancer.audit.verdict import Verdict, keep_verdict, verdict_line

KEY = "0" * 32
ROOT = Path("somewhere")


@pytest.fixture
def line(tmp_path, monkeypatch):
    """Return a function for the verdict line of a data set of six images, a and b in training, the others in test."""
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path))
    monkeypatch.setattr(verdict, "examination_key", lambda index, root: KEY)
    index = pd.DataFrame({"image_id": list("abcdef"), "role": ["train"] * 2 + ["test"] * 4})
    return lambda merged=False: verdict_line(index, ROOT, merged)


def test_verdict_line_contains_all_findings(line):
    assert line() == ""
    keep_verdict(KEY, Verdict(
        day="2030-01-02", groups=[["a", "b"], ["a", "c"]], other="ham10000", lesions=[["d", "e"]], label_conflicts=1,
        copies_across_parts=3, lesions_across_parts=7, nuisance=(0.8921, 0.8791, 0.9031),
    ), ROOT)  # fmt: skip
    assert line() == (
        "audit of 2030-01-02: 2 groups of copies, 1 across train, val and test of this split; "
        "1 lesion by ham10000, none across train, val and test of this split: "
        "keep them together with --data.groups FILE, which prepare --audit --write-groups FILE writes; "
        "1 group of copies with several diagnoses; 3 groups of copies and 7 lesions in several of the publisher's subsets; "
        "file, size, frame and edge alone predict the classes with an AUROC of 0.892 (0.879 – 0.903)"
    )


def test_verdict_without_newer_fields_is_read(line):
    verdict.verdict_file(KEY).parent.mkdir(parents=True)
    verdict.verdict_file(KEY).write_text(json.dumps({"day": "2020-01-02", "groups": [["a", "b"]]}))
    assert line() == "audit of 2020-01-02: 1 group of copies, none across train, val and test of this split"


def test_audit_without_another_data_set_keeps_its_earlier_findings(line):
    keep_verdict(KEY, Verdict("2030-01-02", [], other="ham10000", lesions=[["b", "c"]], lesions_across_parts=1), ROOT)
    keep_verdict(KEY, Verdict("2030-01-03", [["d", "e"]], nuisance=(0.6, 0.5, 0.7)), ROOT)
    assert line() == (
        "audit of 2030-01-03: 1 group of copies, none across train, val and test of this split; "
        "1 lesion by ham10000, 1 across train, val and test of this split: "
        "keep them together with --data.groups FILE, which prepare --audit --write-groups FILE writes; "
        "1 lesion in several of the publisher's subsets; "
        "file, size, frame and edge alone predict the classes with an AUROC of 0.600 (0.500 – 0.700)"
    )
    keep_verdict(KEY, Verdict("2030-01-04", [], other="ph2"), ROOT)
    assert line() == "audit of 2030-01-04: no image is a copy of another", (
        "findings of a newer data set replace the earlier ones"
    )


@pytest.mark.parametrize(
    "content", ['{"day": "2030-01-02", "gro', "", "[]", '{"groups": []}', '{"day": "x", "groups": 3}', "\x00\xff"]
)
def test_broken_verdict_is_reported_without_an_error(line, content):
    path = verdict.verdict_file(KEY)
    path.parent.mkdir(parents=True)
    path.write_bytes(content.encode("latin-1"))
    assert line() == f"the verdict of the last audit cannot be read ({path}): rerun prepare --audit"


def test_verdict_is_written_atomically(line, monkeypatch):
    keep_verdict(KEY, Verdict("2030-01-02", []), ROOT)
    before = line()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        keep_verdict(KEY, Verdict("2031-01-02", [["a", "b"]]), ROOT)
    assert line() == before
    kept = [path for path in verdict.verdict_file(KEY).parent.iterdir() if path.suffix != ".last"]
    assert kept == [verdict.verdict_file(KEY)]


def test_changed_files_ask_for_a_new_audit(line, monkeypatch):
    keep_verdict(KEY, Verdict("2030-01-02", []), ROOT)
    monkeypatch.setattr(verdict, "examination_key", lambda index, root: "1" * 32)
    assert line() == "the files have changed since the last audit: rerun prepare --audit"
    assert verdict_line(pd.DataFrame({"image_id": [], "role": []}), Path("elsewhere")) == "", "never audited"


def test_verdict_line_with_groups_does_not_recommend_groups(line):
    keep_verdict(KEY, Verdict("2030-01-02", [["a", "c"]]), ROOT)
    assert "keep them together with --data.groups FILE" in line()
    merged = line(merged=True)
    assert "keep them together" not in merged
    assert "data.groups does not contain them, or data.split official keeps the publisher's subsets" in merged


def test_audit_is_printed_if_its_verdict_cannot_be_saved(tmp_path, monkeypatch, capsys):
    for number in range(3):
        picture(600 + number).save(tmp_path / f"{number}.png")
    (tmp_path / "index.csv").write_text("image,diagnosis\n0.png,nv\n1.png,nv\n2.png,mel\n")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/audits").write_text("in the way")
    monkeypatch.setenv("SKINCANCER_CACHE", str(tmp_path / "cache"))
    assert prepare.main(["csv", f"--data.root={tmp_path}", "--audit", f"--out={tmp_path / 'out'}"]) == 0
    printed = capsys.readouterr().out
    assert "fits will not report this audit, because it cannot be saved: [Errno" in printed
    assert (tmp_path / "out/csv_audit.csv").is_file()
