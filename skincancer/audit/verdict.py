"""Verdict of the last audit, cached for later fits."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd

from skincancer.data.file_facts import examination_key
from skincancer.system.files import write_whole
from skincancer.system.paths import cache_folder


@dataclass(frozen=True)
class Verdict:
    """Findings of an audit that a fit reports.

    Attributes:
        day: ISO date of the audit.
        groups: image ids of each group of copies.
        other: name of the data set for comparison, or "".
        lesions: image ids of each lesion with several images, by the ids of `other`.
        label_conflicts: number of groups of copies with different diagnoses.
        copies_across_parts: number of groups of copies in several of the publisher's subsets.
        lesions_across_parts: number of lesions in several subsets, by the ids of the publisher and of `other`.
        nuisance: AUROC of the confounding check with its interval (low, high), or None if unmeasured.
    """

    day: str
    groups: Sequence[Sequence[str]]
    other: str = ""
    lesions: Sequence[Sequence[str]] = ()
    label_conflicts: int = 0
    copies_across_parts: int = 0
    lesions_across_parts: int = 0
    nuisance: Sequence[float] | None = None


def verdict_file(key: str) -> Path:
    """Return the cache file of a verdict by `examination_key`."""
    return cache_folder() / "audits" / f"{key}.json"


def keep_verdict(key: str, verdict: Verdict, root: Path) -> None:
    """Save the verdict of an audit.

    An audit without another data set keeps the findings of an earlier audit with another data set.

    Args:
        key: key of the data files (`examination_key`), which changes with the files.
        verdict: verdict to save.
        root: base folder of the paths in the index.

    Raises:
        OSError: the cache cannot be written; the previous verdict stays.
    """
    path = verdict_file(key)
    if not verdict.other:
        with contextlib.suppress(OSError, ValueError, TypeError):
            before = _read(path)
            if before.other:
                by_other = ("other", "lesions", "lesions_across_parts")
                verdict = replace(verdict, **{name: getattr(before, name) for name in by_other})
    write_whole(path, json.dumps(asdict(verdict)))
    write_whole(_last_file(root), key)


def _read(path: Path) -> Verdict:
    """Read a verdict, which may lack fields of newer versions.

    Raises:
        OSError, ValueError, TypeError: the file is broken.
    """
    kept = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(kept, dict):
        raise ValueError("no verdict")
    known = [field.name for field in fields(Verdict)]
    return Verdict(**{name: value for name, value in kept.items() if name in known})


def verdict_line(index: pd.DataFrame, root: Path, merged: bool = False) -> str:
    """Return one line with the findings of the last audit, or "".

    The line also counts copies across the subsets of the current split.

    Args:
        index: image_id, image, mask, lesion_id and role of every image of the data set.
        root: base folder of the paths in the index.
        merged: `data.groups` is set.
    """
    key = examination_key(index, root)
    path = verdict_file(key)
    if not path.is_file():
        audited = _last_file(root).is_file()
        return "the files have changed since the last audit: rerun prepare --audit" if audited else ""
    try:
        verdict = _read(path)
        role_of = dict(zip(index["image_id"], index["role"], strict=True))
        return f"audit of {verdict.day}: {'; '.join(_describe(verdict, role_of, merged))}"
    except (OSError, ValueError, TypeError):
        return f"the verdict of the last audit cannot be read ({path}): rerun prepare --audit"


def _last_file(root: Path) -> Path:
    """Return the file that marks an audit of a folder."""
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]
    return cache_folder() / "audits" / f"{digest}.last"


def _describe(verdict: Verdict, role_of: Mapping[str, str], merged: bool) -> list[str]:
    texts, split_groups = [], 0
    for groups, what in ((verdict.groups, "group of copies"), (verdict.lesions, f"lesion by {verdict.other}")):
        if groups:
            across = _count_split(groups, role_of)
            split_groups += across
            texts.append(f"{_count(len(groups), what)}, {across or 'none'} across train, val and test of this split")
    if not verdict.groups:
        texts.insert(0, "no image is a copy of another")
    if split_groups and merged:
        texts[-1] += ": data.groups does not contain them, or data.split official keeps the publisher's subsets"
    elif split_groups:
        texts[-1] += ": keep them together with --data.groups FILE, which prepare --audit --write-groups FILE writes"
    if verdict.label_conflicts:
        texts.append(f"{_count(verdict.label_conflicts, 'group of copies')} with several diagnoses")
    across_parts = {"group of copies": verdict.copies_across_parts, "lesion": verdict.lesions_across_parts}
    if any(across_parts.values()):
        counts = " and ".join(_count(count, what) for what, count in across_parts.items() if count)
        texts.append(f"{counts} in several of the publisher's subsets")
    if verdict.nuisance:
        area, low, high = verdict.nuisance
        texts.append(
            f"file, size, frame and edge alone predict the classes with an AUROC of {area:.3f} ({low:.3f} – {high:.3f})"
        )
    return texts


def _count(count: int, what: str) -> str:
    first, *rest = what.split(" ", 1)
    return " ".join([f"{count} {first}{'' if count == 1 else 's'}", *rest])


def _count_split(groups: Sequence[Sequence[str]], role_of: Mapping[str, str]) -> int:
    return sum(len({role_of.get(image_id, "") for image_id in group} - {""}) > 1 for group in groups)
