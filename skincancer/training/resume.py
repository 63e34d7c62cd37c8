"""Resume an interrupted run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skincancer.config.resolve import resolve
from skincancer.errors import RunError
from skincancer.schema import Experiment, flatten
from skincancer.system.launcher import is_rank_zero
from skincancer.system.yaml_files import load_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def load_resumed(run_id: str, name: str | None, flags: dict[str, Any], parser: ArgumentParser) -> Experiment:
    """Return the config of the run to go on with; refuse one that was changed, with both values shown."""
    from skincancer.runs.artifacts import download
    from skincancer.runs.lifecycle import check_resumable
    from skincancer.runs.store import connect

    client = connect(flags.get("tracking.uri"))
    if is_rank_zero():  # by the time other ranks look, rank 0 owns the run
        check_resumable(client, run_id)
    with tempfile.TemporaryDirectory() as folder:
        stored = load_yaml(download(client, run_id, "config.yaml", Path(folder)))
    kept, _ = resolve(None, {}, parser, base=flatten(stored))
    asked = kept
    if name or flags:
        asked, _ = resolve(name, flags, parser, base=None if name else flatten(stored))
    before, now = flatten(kept.to_dict()), flatten(asked.to_dict())
    changed = [
        f"{key}: the run has {before[key]!r}, asked is {now[key]!r}" for key in now if before.get(key) != now[key]
    ]
    changed = [line for line in changed if not line.startswith("tracking.")]
    if changed:
        raise RunError(
            f"--resume {run_id}: the config differs:\n  " + "\n  ".join(changed) + "\nResume with the run's own config "
            f"(python -m skincancer.fit --resume {run_id}), or start a new run."
        )
    # its config leaves out the password of its store, which is where it was found
    return replace(asked, tracking=replace(asked.tracking, uri=flags.get("tracking.uri")))
