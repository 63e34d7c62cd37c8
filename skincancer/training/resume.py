"""Resume an interrupted run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from skincancer.config.resolve import resolve
from skincancer.errors import RunError
from skincancer.runs.finished import FinishedRun
from skincancer.runs.lifecycle import check_resumable, find_resumed
from skincancer.runs.store import RunStore
from skincancer.schema.dotted_keys import flatten
from skincancer.schema.experiment import Experiment
from skincancer.system.launcher import is_rank_zero

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def load_resumed(run_id: str, name: str | None, flags: dict[str, Any], parser: ArgumentParser) -> Experiment:
    """Return the config of an interrupted run in the store `tracking.uri` of the flags.

    Raises:
        RunError: the run cannot be resumed, or the flags change its config.
    """
    store = RunStore(flags.get("tracking.uri"))
    # The other ranks start after rank 0 has marked the run as its own, which the check would refuse.
    record = (check_resumable if is_rank_zero() else find_resumed)(store.client, run_id)
    stored = FinishedRun(run_id, store, record).config
    kept, _ = resolve(None, {}, parser, base=flatten(stored))
    requested = kept
    if name or flags:
        requested, _ = resolve(name, flags, parser, base=None if name else flatten(stored))
    before, now = flatten(kept.to_dict()), flatten(requested.to_dict())
    changed = [
        f"{key}: the run has {before[key]!r}, requested is {now[key]!r}"
        for key in now
        if before.get(key) != now[key] and not key.startswith("tracking.")
    ]
    if changed:
        raise RunError(
            f"--resume {run_id}: the config differs:\n  " + "\n  ".join(changed) + "\nUse the config of the run "
            f"(python -m skincancer.fit --resume {run_id}), or start a new run."
        )
    # config.yaml has no password of the store, so the URI comes from the command line.
    return replace(requested, tracking=replace(requested.tracking, uri=flags.get("tracking.uri")))
