"""What the last audit of a data set found, kept in the cache for the fits on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from skincancer.data.examination import examination_key
from skincancer.paths import cache_folder


def _file(key: str) -> Path:
    return cache_folder() / "audits" / f"{key}.json"


def keep_verdict(key: str, day: str, groups: Sequence[Sequence[str]]) -> None:
    """Keep the groups of copies that an audit found.

    Args:
        key: of the data set's files (`examination_key`): when they change, the verdict is of no use any more.
        day: of the audit.
        groups: image ids of each group.
    """
    path = _file(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"day": day, "groups": [list(group) for group in groups]}), encoding="utf-8")


def verdict_line(index: pd.DataFrame, root: Path) -> str:
    """Return one line about the copies in a data set by its last audit, and about those that the split parts; "" without an audit.

    Args:
        index: image_id, image, mask, lesion_id and role of every image of the data set.
        root: what the paths in it are relative to.
    """
    path = _file(examination_key(index, root))
    if not path.is_file():
        return ""
    verdict = json.loads(path.read_text(encoding="utf-8"))
    groups = verdict["groups"]
    said = f"audit of {verdict['day']}:"
    if not groups:
        return f"{said} no image is a copy of another"
    role_of = dict(zip(index["image_id"], index["role"], strict=True))
    parted = sum(len({role_of.get(image_id, "") for image_id in group} - {""}) > 1 for group in groups)
    count = f"{said} {len(groups)} group{'s' if len(groups) > 1 else ''} of copies"
    if not parted:
        return f"{count}, none across train, val and test of this split"
    return (
        f"{count}, {parted} across train, val and test of this split; "
        "keep them together with --data.groups FILE, which prepare --audit --write-groups FILE writes"
    )
