"""A sweep's Optuna study: what it is of, which of its trials count, and how workers claim, repeat and close them.

Any number of workers on any number of machines share a study through its storage alone. A trial is RUNNING while its worker lives. It
counts against the sweep's total unless it was interrupted, its worker died, or it was one too many; then its point is queued again.

Draws are repeatable: what the sampler draws is a function of the seed, of how many trials count, and of those that have ended. With one
worker a sweep that was stopped and started again therefore has the same trials as one that was not; with several, the order in which
trials end decides.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from skincancer.config import search_space
from skincancer.errors import ConfigError, RunError
from skincancer.schema import TYPES
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.samplers import build_pruner, build_sampler
from skincancer.sweeps.storage import open_storage, storage_errors
from skincancer.system.credentials import hide, shown
from skincancer.system.hardware import owner_alive, owner_tags

HEARTBEAT_SECONDS = 30.0
SILENT_SECONDS = 600.0  # after which a worker that cannot be seen from here is taken for dead
UNOWNED_SECONDS = 120.0  # a trial is asked for and signed in two steps
FIRST_FAILURES = 3  # of a sweep in which nothing has succeeded
FAILURES_ON_END = 10  # one after the other, where something had succeeded: a disk is full, or a server gone
JOIN_SECONDS = 1800.0  # the sweep may have to prepare its data first

REASON, RUN_ID, THREADS = "reason", "run_id", "threads"  # a trial's own words
ENDED = "ended"  # why a trial does not count
_OWNER, _HEARTBEAT, _PLANNED = "owner", "heartbeat", "planned"
_DRAW = "draw"  # beside the owner: what a point was drawn by
_UNCOUNTED = ("interrupted", "dead", "surplus", "double")


@dataclass(frozen=True)
class Ended:
    """How a trial ended: its objective's value where it is complete, the reason where it failed."""

    state: Literal["complete", "pruned", "failed", "interrupted"]
    value: float = math.nan
    reason: str = ""


class Sweep:
    """One study, as a worker sees it.

    Args:
        study: opened.
        url: of its storage.
        joined: this process is not the one that started the sweep; its draws are then its own.
    """

    def __init__(self, study: optuna.Study, url: str, joined: bool = False) -> None:
        self.study, self.url = study, url
        attributes = study.user_attrs
        self.plan = Plan(**attributes["plan"])
        self.base = self.plan.resolve({}, {})
        self.distributions = search_space.distributions(self.plan.search, TYPES)
        self._asking = threading.Lock()
        self._owner = owner_tags()
        self._draws_of = zlib.crc32(f"{self._owner['host']} {self._owner['pid']}".encode()) if joined else 0
        self._ended_before = {trial.number for trial in self.trials() if trial.state.is_finished()}
        study.pruner = build_pruner(self.plan.pruner, self.base.trainer.max_epochs)

    @property
    def parent(self) -> str:
        """The MLflow run of the sweep."""
        return str(self.study.user_attrs["parent_run"])

    @property
    def total(self) -> int:
        """How many trials the sweep is to have."""
        return int(self.study.user_attrs["trials"])

    def trials(self) -> list[FrozenTrial]:
        """Return every trial, also those that do not count.

        Raises:
            RunError: the storage is lost.
        """
        with storage_errors(self.url):
            return self.study.get_trials(deepcopy=False)

    def claim(self, slot: int) -> Trial | None:
        """Start a trial that is this worker's own, or return None where no more are to be started now.

        Args:
            slot: number of the worker in this process, from 0.
        """
        with self._asking:
            trials = self.trials()
            count = sum(map(counts, trials))
            if count >= self.total:
                return None
            draw = self._next_draw(trials, count, slot)
            self.study.sampler = build_sampler(
                self.plan.sampler, int(np.random.SeedSequence([self.base.seed, *draw]).generate_state(1)[0])
            )
            try:
                trial = self.study.ask(self.distributions)
                drawn = {} if _PLANNED in trial.user_attrs else {_DRAW: draw}
                trial.set_user_attr(_OWNER, {**self._owner, **drawn})
            except optuna.exceptions.UpdateFinishedTrialError:
                return None  # so slow that another worker has taken it for dead
            repeats = trial.user_attrs.get(_PLANNED, -1)
            if repeats >= 0 and any(
                known.number < trial.number and known.user_attrs.get(_PLANNED) == repeats for known in self.trials()
            ):
                # a sweep that begins again may queue a point that a worker, having closed its trial, is about to queue
                self._close(trial, "double")
                return None
            if self._fits(trial):
                return trial
            # another machine's worker was quicker
            self.release(trial, "surplus")
        time.sleep(random.random())
        return None

    def _next_draw(self, trials: Sequence[FrozenTrial], count: int, slot: int) -> list[int]:
        """Return what the next point's draw is seeded by, beside the seed; no draw that has a whole point is made again.

        The count of trials alone would not do: it falls where another worker's trial is closed and not yet repeated.
        """
        made = [
            trial.user_attrs.get(_OWNER, {}).get(_DRAW)
            for trial in trials
            if set(trial.params) == set(self.distributions)
        ]
        first = [count, slot, self._draws_of]
        others = ([*first, again] for again in itertools.count(1))
        return next(draw for draw in itertools.chain([first], others) if draw not in made)

    def _fits(self, mine: Trial) -> bool:
        """Say whether a trial is within the total, counting those of others that claimed before or at the same time.

        Of two new trials the lower number goes first. A queued point has an old number, so it counts all that run; and a new trial
        goes after points that are queued to be repeated.
        """
        trials = self.trials()
        planned = {trial.number for trial in trials if trial.user_attrs.get(_PLANNED) is not None}
        before = [
            trial
            for trial in trials
            if trial.number != mine.number
            and counts(trial)
            and (
                trial.state != TrialState.RUNNING
                or trial.number < mine.number
                or not planned.isdisjoint((trial.number, mine.number))
            )
        ]
        queued = sum(trial.state == TrialState.WAITING and trial.user_attrs.get(_PLANNED, -1) >= 0 for trial in trials)
        if mine.number in planned:
            queued = 0
        return len(before) + queued < self.total

    def beat(self, trial: Trial) -> None:
        """Say that the trial's worker lives, for those who look from other machines."""
        trial.set_user_attr(_HEARTBEAT, datetime.now(UTC).isoformat(timespec="seconds"))

    def end(self, trial: Trial, ended: Ended) -> None:
        """Write down how a trial ended; an interrupted one is queued again."""
        if ended.state == "interrupted":
            self.release(trial, "interrupted")
            return
        complete = ended.state == "complete" and math.isfinite(ended.value)
        try:
            if ended.state == "pruned":
                self.study.tell(trial, state=TrialState.PRUNED)
            elif complete:
                self.study.tell(trial, ended.value)
            else:
                trial.set_user_attr(REASON, hide(ended.reason) or f"its objective is {ended.value}")
                self.study.tell(trial, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return  # silent for so long that another worker has taken it for dead, and repeats it

    def release(self, trial: Trial | FrozenTrial, why: str) -> bool:
        """Close a running trial that does not count, and queue its point again; False where another worker was quicker."""
        if not self._close(trial, why):
            return False
        closed = next(known for known in self.trials() if known.number == trial.number)
        if _is_repeated(closed):
            self._queue_again(closed)
        return True

    def _close(self, trial: Trial | FrozenTrial, why: str) -> bool:
        try:
            # Optuna has no public way to write to another worker's trial
            self.study._storage.set_trial_user_attr(trial._trial_id, ENDED, why)
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        return True

    def _queue_again(self, trial: FrozenTrial) -> None:
        """Queue a trial's point; one that was broken off while its point was drawn has none, and another is drawn instead."""
        point = _point(trial)
        if set(point) == set(self.distributions):
            self.study.enqueue_trial(point, user_attrs={_PLANNED: trial.number})

    def _key(self, point: Mapping[str, Any]) -> tuple[float | None, ...]:
        """Return what is the same for the same point alone; `skip_if_exists` of Optuna looks at every trial for each."""
        return tuple(
            distribution.to_internal_repr(point[key]) if key in point else None
            for key, distribution in self.distributions.items()
        )

    def reap(self) -> list[FrozenTrial]:
        """Close the running trials of dead workers, queue their points again, and return them."""
        running = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
        return [trial for trial in running if not self._is_alive(trial) and self.release(trial, "dead")]

    def begin(self, trials: int) -> None:
        """Set how many trials there are to be, and queue what is to be tried: a grid, and points that were cut off and lost.

        Raises:
            ConfigError: a grid of too many points.
            RunError: the storage is lost.
        """
        points = search_space.grid(self.plan.search, TYPES) if self.plan.sampler == "grid" else []
        with storage_errors(self.url):
            known = self.trials()
            there = {self._key(_point(trial)) for trial in known}
            for point in points:
                if self._key(point) not in there:
                    self.study.enqueue_trial(point, user_attrs={_PLANNED: -1})
            repeated = {trial.user_attrs.get(_PLANNED) for trial in known}
            for trial in known:
                if _is_repeated(trial) and trial.number not in repeated:
                    self._queue_again(trial)  # a worker was killed between closing it and queueing it
            self.study.set_user_attr("trials", min(trials, len(points)) if points else trials)

    def should_prune(self, trial: Trial) -> bool:
        """Say whether the pruner wants no more of a trial; one thread at a time, for Hyperband makes its brackets at the first call."""
        with self._asking:
            return trial.should_prune()

    def _is_alive(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(_OWNER)
        started = trial.datetime_start or datetime.now()
        if owner is None:
            return datetime.now() - started < timedelta(seconds=UNOWNED_SECONDS)
        alive = owner_alive(owner)
        if alive is not None:
            return alive
        beat = trial.user_attrs.get(_HEARTBEAT)
        last = datetime.fromisoformat(beat) if beat else started.astimezone()
        return datetime.now(UTC) - last < timedelta(seconds=SILENT_SECONDS)

    def hopeless(self) -> str | None:
        """Return why the sweep had better stop: its first trials, or many on end, failed since this process began; None otherwise."""
        ended = [trial for trial in self.trials() if trial.state.is_finished() and counts(trial)]
        # those before this start may have had a reason that is mended
        since = [trial for trial in ended if trial.number not in self._ended_before]
        since.sort(key=lambda trial: trial.datetime_complete or datetime.min)
        never = all(trial.state == TrialState.FAIL for trial in ended)
        enough = min(FIRST_FAILURES, self.total - len(ended) + len(since)) if never else FAILURES_ON_END
        last = since[-enough:]
        if not last or len(last) < enough or any(trial.state != TrialState.FAIL for trial in last):
            return None
        return f"the last {len(last)} trials all failed, the last one with: {last[-1].user_attrs.get(REASON, 'no reason given')}"

    def is_over(self) -> bool:
        """Say whether as many trials as asked for have ended."""
        return sum(counts(trial) and trial.state.is_finished() for trial in self.trials()) >= self.total

    def best(self) -> FrozenTrial | None:
        """Return the best complete trial, the first of equals; None where there is none."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        sign = 1 if self.study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
        return max(complete, key=lambda trial: (sign * float(trial.value or 0), -trial.number), default=None)


def counts(trial: FrozenTrial) -> bool:
    """Say whether a trial counts against the total: it runs, or it ended by itself, be it in failure.

    One may have been taken for dead, and have ended before it was closed as that.
    """
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        return True
    return trial.state != TrialState.WAITING and trial.user_attrs.get(ENDED) not in _UNCOUNTED


def _is_repeated(trial: FrozenTrial) -> bool:
    """Say whether a closed trial's point is to be queued again: it was cut off, or it was one too many of a point that was queued."""
    why = trial.user_attrs.get(ENDED)
    planned = trial.user_attrs.get(_PLANNED) is not None
    return trial.state == TrialState.FAIL and (why in ("dead", "interrupted") or (why == "surplus" and planned))


def _point(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's point; of one that waits, what it will be."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def create(url: str, name: str, plan: Plan, trials: int, *, maximize: bool) -> Sweep:
    """Open the study `name`, creating it where it is not there; `Sweep.begin` then starts it.

    Args:
        url: of the storage.
        name: of the study.
        plan: what it is to be of.
        trials: how many it is to have in all.
        maximize: the objective, else minimize it.

    Raises:
        ConfigError: it is of something else (both are shown), or has more trials already.
        RunError: the storage cannot be used.
    """
    storage = open_storage(url)
    with storage_errors(url):
        try:
            study = optuna.create_study(
                study_name=name, storage=storage, direction="maximize" if maximize else "minimize"
            )
            study.set_user_attr("plan", asdict(plan))
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(study_name=name, storage=storage)
        stored = study.user_attrs.get("plan")
        if stored is None:
            raise ConfigError(
                f"--study {name}: the study in {shown(url)} is not one of ours, or its start was broken off. Give another name."
            )
        if differences := Plan(**stored).differences(plan):
            raise ConfigError(
                f"--study {name} in {shown(url)} is of something else:\n  "
                + "\n  ".join(differences)
                + "\nGive another "
                "--study, or go on with the values that it has."
            )
        done = sum(counts(trial) and trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        if trials < done:
            raise ConfigError(
                f"--trials is {trials}, a total, but {done} trials of the study {name} have ended already. Give {done} or more."
            )
        return Sweep(study, url)


def join(
    url: str, name: str, wait_seconds: float = JOIN_SECONDS, tell: Callable[[str], None] = lambda text: None
) -> Sweep:
    """Open a study that a sweep has started, waiting for it where workers start before the sweep.

    Args:
        url: of the storage.
        name: of the study.
        wait_seconds: how long.
        tell: told once that it waits, and which studies there are.

    Raises:
        RunError: it does not come, is not one of ours, or the storage cannot be used.
    """
    storage = open_storage(url)
    until, told = time.monotonic() + wait_seconds, False
    with storage_errors(url):
        while True:
            names: Sequence[str] = optuna.get_all_study_names(storage)
            if name in names:
                study = optuna.load_study(study_name=name, storage=storage)
                if {"parent_run", "trials"} <= set(study.user_attrs):
                    return Sweep(study, url, joined=True)
            there = f"there is no started study {name} in {shown(url)} (there: {', '.join(names) or 'none'})"
            if time.monotonic() >= until:
                break
            if not told:
                tell(f"waiting up to {wait_seconds / 60:.0f} minutes: {there}")
                told = True
            time.sleep(min(1.0, wait_seconds / 10))
    raise RunError(
        f"--worker: {there}, and none came in {wait_seconds / 60:.1f} minutes. Start the sweep first: python -m skincancer.sweep "
        f"--experiment NAME --trials N --study {name} --storage URL"
    )
