"""User attributes of a trial, and whether it counts."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial, TrialState

# ENDED is the reason why a trial does not count, PLANNED the number of the trial that it repeats (−1 for a point of a grid).
REASON, RUN_ID, THREADS, ENDED, PLANNED, PLACE = "reason", "run_id", "threads", "ended", "planned", "place"


def counts_towards_total(trial: FrozenTrial) -> bool:
    """Return whether a trial counts: running, complete, pruned and failed trials do."""
    return trial.state != TrialState.WAITING and not trial.user_attrs.get(ENDED)


def is_repeated(trial: FrozenTrial) -> bool:
    """Return whether the point of a closed trial must be queued again."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get(ENDED) in ("interrupted", "dead")


def point_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the point of a trial, also of a waiting trial."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}
