"""State of a trial: user attributes, result, and whether it counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

# User attributes of a trial. ENDED is the reason why a trial does not count, DRAW the seed of its point.
REASON, RUN_ID, THREADS, ENDED = "reason", "run_id", "threads", "ended"
OWNER, HEARTBEAT, PLANNED, DRAW = "owner", "heartbeat", "planned", "draw"
UNCOUNTED = ("interrupted", "dead", "surplus", "double")


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial: objective if complete, reason if failed."""

    state: Literal["complete", "pruned", "failed", "interrupted"]
    value: float = math.nan
    reason: str = ""


def counts_towards_total(trial: FrozenTrial) -> bool:
    """Return whether a trial counts towards the total.

    Running, complete, pruned and failed trials count. A trial without heartbeat may still finish before another worker closes
    it; its result then counts.
    """
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return True
    return trial.state != TrialState.WAITING and trial.user_attrs.get(ENDED) not in UNCOUNTED


def is_repeated(trial: FrozenTrial) -> bool:
    """Return whether the point of a closed trial must be queued again.

    Its trial was interrupted, its worker died, or it was a queued point beyond the total.
    """
    why = trial.user_attrs.get(ENDED)
    planned = trial.user_attrs.get(PLANNED) is not None
    return trial.state == TrialState.FAIL and (why in ("dead", "interrupted") or (why == "surplus" and planned))


def point_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return the point of a trial, also of a waiting trial."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}
