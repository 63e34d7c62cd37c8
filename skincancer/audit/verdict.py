"""What the last audit of a data set found, kept in the cache for the fits on it."""

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
    """What a fit should be told.

    Attributes:
        day: of the audit.
        groups: image ids of each group of copies.
        other: the data set that it was compared with; "" for none.
        lesions: image ids of each lesion that several images show by the ids of `other`.
        label_conflicts: groups of copies with different diagnoses.
        copies_across_parts: groups of copies in several of the publisher's parts.
        lesions_across_parts: lesions there, by the publisher's ids and those of `other`.
        nuisance: area under the curve by nuisance features alone, and its interval; None where it was not measured.
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
    """Return where the verdict on the files of a key (`examination_key`) is kept."""
    return cache_folder() / "audits" / f"{key}.json"


def keep_verdict(key: str, verdict: Verdict, root: Path) -> None:
    """Keep what an audit found; one of these files alone leaves what an earlier one learned from another data set.

    Args:
        key: of the data set's files (`examination_key`): when they change, the verdict is of no use any more.
        verdict: on them.
        root: what the paths in the index are relative to.

    Raises:
        OSError: the cache cannot be written; what was kept before is still there.
    """
    path = verdict_file(key)
    if not verdict.other:
        with contextlib.suppress(OSError, ValueError, TypeError):
            before = _read(path)
            if before.other:
                told = ("other", "lesions", "lesions_across_parts")
                verdict = replace(verdict, **{name: getattr(before, name) for name in told})
    write_whole(path, json.dumps(asdict(verdict)))
    write_whole(_last_file(root), key)


def _read(path: Path) -> Verdict:
    """Read a verdict; one of earlier days tells less.

    Raises:
        OSError, ValueError, TypeError: it is broken.
    """
    kept = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(kept, dict):
        raise ValueError("no verdict")
    known = [field.name for field in fields(Verdict)]
    return Verdict(**{name: value for name, value in kept.items() if name in known})


def verdict_line(index: pd.DataFrame, root: Path, merged: bool = False) -> str:
    """Return one line about what the last audit of a data set found, and about copies that the split parts; "" without an audit.

    Args:
        index: image_id, image, mask, lesion_id and role of every image of the data set.
        root: what the paths in it are relative to.
        merged: groups are given (`data.groups`).
    """
    key = examination_key(index, root)
    path = verdict_file(key)
    if not path.is_file():
        audited = _last_file(root).is_file()
        return (
            "the files have changed since the last audit, which says nothing of them: run prepare --audit again"
            if audited
            else ""
        )
    try:
        verdict = _read(path)
        role_of = dict(zip(index["image_id"], index["role"], strict=True))
        return f"audit of {verdict.day}: {'; '.join(_told(verdict, role_of, merged))}"
    except (OSError, ValueError, TypeError):
        return f"the verdict of the last audit cannot be read ({path}): run prepare --audit again"


def _last_file(root: Path) -> Path:
    """Return the file that says that there has been an audit of a folder, whatever its files are now."""
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:32]
    return cache_folder() / "audits" / f"{digest}.last"


def _told(verdict: Verdict, role_of: Mapping[str, str], merged: bool) -> list[str]:
    told, parted = [], 0
    for groups, what in ((verdict.groups, "group of copies"), (verdict.lesions, f"lesion by {verdict.other}")):
        if groups:
            across = _parted(groups, role_of)
            parted += across
            told.append(f"{_count(len(groups), what)}, {across or 'none'} across train, val and test of this split")
    if not verdict.groups:
        told.insert(0, "no image is a copy of another")
    if parted and merged:
        told[-1] += ": data.groups does not name them, or data.split official keeps to the publisher's parts"
    elif parted:
        told[-1] += ": keep them together with --data.groups FILE, which prepare --audit --write-groups FILE writes"
    if verdict.label_conflicts:
        told.append(f"{_count(verdict.label_conflicts, 'group of copies')} with several diagnoses")
    across_parts = {"group of copies": verdict.copies_across_parts, "lesion": verdict.lesions_across_parts}
    if any(across_parts.values()):
        counts = " and ".join(_count(count, what) for what, count in across_parts.items() if count)
        told.append(f"{counts} in several of the publisher's parts")
    if verdict.nuisance:
        area, low, high = verdict.nuisance
        told.append(
            f"file, size, frame and edge alone tell the classes with an AUROC of {area:.3f} ({low:.3f} – {high:.3f})"
        )
    return told


def _count(count: int, what: str) -> str:
    first, *rest = what.split(" ", 1)
    return " ".join([f"{count} {first}{'' if count == 1 else 's'}", *rest])


def _parted(groups: Sequence[Sequence[str]], role_of: Mapping[str, str]) -> int:
    return sum(len({role_of.get(image_id, "") for image_id in group} - {""}) > 1 for group in groups)
