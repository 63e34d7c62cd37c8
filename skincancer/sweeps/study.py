"""Optuna study of a sweep: how workers claim, repeat and close trials.

Workers on any number of machines share a study only through its storage. A trial is RUNNING while its worker is alive. It counts towards
the total unless it was interrupted, its worker died, or it exceeded the total; then its point is queued again.

Sampling is reproducible: it depends on the seed, the number of counted trials, and the ended trials. With one worker, an interrupted and
resumed sweep therefore has the same trials as an uninterrupted one. With several workers, the trials depend on the order in which they end.
"""

from __future__ import annotations

import itertools
import math
import random
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from skincancer.config import search_space
from skincancer.errors import ConfigError, RunError
from skincancer.schema.dotted_keys import TYPES
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.samplers import build_pruner, build_sampler
from skincancer.sweeps.storage import open_storage, storage_errors
from skincancer.sweeps.trial_state import (
    DRAW,
    ENDED,
    HEARTBEAT,
    OWNER,
    PLANNED,
    REASON,
    TrialResult,
    counts_towards_total,
    is_repeated,
    point_of,
)
from skincancer.system.credentials import mask_password, mask_passwords
from skincancer.system.hardware import owner_alive, owner_tags

HEARTBEAT_SECONDS = 30.0
# Silence after which a worker on another machine is considered dead.
SILENT_SECONDS = 600.0
# A trial is created and assigned to its owner in two steps.
UNOWNED_SECONDS = 120.0
# Consecutive failures that abort a sweep without any success, and a sweep with earlier successes.
FIRST_FAILURES, CONSECUTIVE_FAILURES = 3, 10
# Waiting time of a joining worker, because the sweep may have to prepare its data first.
JOIN_SECONDS = 1800.0


class Sweep:
    """Study of a sweep, from the view of one worker.

    Args:
        study: Opened Optuna study.
        url: URL of the storage.
        joined: Another process started the sweep, so this process samples with separate seeds.
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
        """MLflow run id of the sweep."""
        return str(self.study.user_attrs["parent_run"])

    @property
    def total(self) -> int:
        """Total number of trials."""
        return int(self.study.user_attrs["trials"])

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, including uncounted trials.

        Raises:
            RunError: The storage is unavailable.
        """
        with storage_errors(self.url):
            return self.study.get_trials(deepcopy=False)

    def claim(self, slot: int) -> Trial | None:
        """Claim a new trial, or return None if none can be started now.

        Args:
            slot: Number of the worker in this process, from 0.
        """
        with self._asking:
            trials = self.trials()
            count = sum(map(counts_towards_total, trials))
            if count >= self.total:
                return None
            draw = self._next_draw(trials, count, slot)
            self.study.sampler = build_sampler(
                self.plan.sampler, int(np.random.SeedSequence([self.base.seed, *draw]).generate_state(1)[0])
            )
            try:
                trial = self.study.ask(self.distributions)
                drawn = {} if PLANNED in trial.user_attrs else {DRAW: draw}
                trial.set_user_attr(OWNER, {**self._owner, **drawn})
            except optuna.exceptions.UpdateFinishedTrialError:
                # Another worker has closed this trial, because this worker was silent for too long.
                return None
            repeats = trial.user_attrs.get(PLANNED, -1)
            if repeats >= 0 and any(
                known.number < trial.number and known.user_attrs.get(PLANNED) == repeats for known in self.trials()
            ):
                # A restarted sweep and a worker may both queue the point of a closed trial.
                self._close(trial, "double")
                return None
            if self._fits(trial):
                return trial
            # A worker on another machine was faster.
            self.release(trial, "surplus")
        time.sleep(random.random())
        return None

    def _next_draw(self, trials: Sequence[FrozenTrial], count: int, slot: int) -> list[int]:
        """Return the sampling seed of the next point, which no complete point has used.

        The number of trials is not sufficient, because it decreases when a trial of another worker is closed and not yet repeated.
        """
        made = [
            trial.user_attrs.get(OWNER, {}).get(DRAW)
            for trial in trials
            if set(trial.params) == set(self.distributions)
        ]
        first = [count, slot, self._draws_of]
        others = ([*first, again] for again in itertools.count(1))
        return next(draw for draw in itertools.chain([first], others) if draw not in made)

    def _fits(self, claimed: Trial) -> bool:
        """Return whether this trial stays within the total.

        Trials that other workers claimed earlier or concurrently are included. Of two new trials, the lower number has priority. A
        queued point has an old number, so all running trials count before it. Queued points have priority over new trials.
        """
        trials = self.trials()
        planned = {trial.number for trial in trials if trial.user_attrs.get(PLANNED) is not None}
        before = [
            trial
            for trial in trials
            if trial.number != claimed.number
            and counts_towards_total(trial)
            and (
                trial.state != TrialState.RUNNING
                or trial.number < claimed.number
                or not planned.isdisjoint((trial.number, claimed.number))
            )
        ]
        queued = sum(trial.state == TrialState.WAITING and trial.user_attrs.get(PLANNED, -1) >= 0 for trial in trials)
        if claimed.number in planned:
            queued = 0
        return len(before) + queued < self.total

    def beat(self, trial: Trial) -> None:
        """Record a heartbeat of the trial, for workers on other machines."""
        trial.set_user_attr(HEARTBEAT, datetime.now(UTC).isoformat(timespec="seconds"))

    def end(self, trial: Trial, ended: TrialResult) -> None:
        """Record the result of a trial, and queue an interrupted trial again."""
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
                trial.set_user_attr(REASON, mask_passwords(ended.reason) or f"its objective is {ended.value}")
                self.study.tell(trial, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            # Another worker has closed and repeated this trial, because this worker was silent for too long.
            return

    def release(self, trial: Trial | FrozenTrial, why: str) -> bool:
        """Close a running trial that does not count, and queue its point again.

        Returns:
            False if another worker has already closed the trial.
        """
        if not self._close(trial, why):
            return False
        closed = next(known for known in self.trials() if known.number == trial.number)
        if is_repeated(closed):
            self._queue_again(closed)
        return True

    def _close(self, trial: Trial | FrozenTrial, why: str) -> bool:
        try:
            # Optuna has no public function to write to a trial of another worker.
            self.study._storage.set_trial_user_attr(trial._trial_id, ENDED, why)
            self.study.tell(trial.number, state=TrialState.FAIL)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            return False
        return True

    def _queue_again(self, trial: FrozenTrial) -> None:
        """Queue the point of a trial, unless it was interrupted during sampling."""
        point = point_of(trial)
        if set(point) == set(self.distributions):
            self.study.enqueue_trial(point, user_attrs={PLANNED: trial.number})

    def _key(self, point: Mapping[str, Any]) -> tuple[float | None, ...]:
        """Return a key that identifies a point.

        `skip_if_exists` of Optuna compares every trial for each point, which is slow.
        """
        return tuple(
            distribution.to_internal_repr(point[key]) if key in point else None
            for key, distribution in self.distributions.items()
        )

    def reap(self) -> list[FrozenTrial]:
        """Close, queue again and return the running trials of dead workers."""
        running = [trial for trial in self.trials() if trial.state == TrialState.RUNNING]
        return [trial for trial in running if not self._is_alive(trial) and self.release(trial, "dead")]

    def begin(self, trials: int) -> None:
        """Set the total, and queue the points of a grid and of lost trials.

        Raises:
            ConfigError: The grid has too many points.
            RunError: The storage is unavailable.
        """
        points = search_space.grid(self.plan.search, TYPES) if self.plan.sampler == "grid" else []
        with storage_errors(self.url):
            known = self.trials()
            there = {self._key(point_of(trial)) for trial in known}
            for point in points:
                if self._key(point) not in there:
                    self.study.enqueue_trial(point, user_attrs={PLANNED: -1})
            repeated = {trial.user_attrs.get(PLANNED) for trial in known}
            for trial in known:
                if is_repeated(trial) and trial.number not in repeated:
                    # A worker was killed after closing this trial, before queueing it.
                    self._queue_again(trial)
            self.study.set_user_attr("trials", min(trials, len(points)) if points else trials)

    def should_prune(self, trial: Trial) -> bool:
        """Return whether the pruner stops a trial.

        Only one thread may call the pruner, because Hyperband creates its brackets in the first call.
        """
        with self._asking:
            return trial.should_prune()

    def _is_alive(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(OWNER)
        started = trial.datetime_start or datetime.now()
        if owner is None:
            return datetime.now() - started < timedelta(seconds=UNOWNED_SECONDS)
        alive = owner_alive(owner)
        if alive is not None:
            return alive
        beat = trial.user_attrs.get(HEARTBEAT)
        last = datetime.fromisoformat(beat) if beat else started.astimezone()
        return datetime.now(UTC) - last < timedelta(seconds=SILENT_SECONDS)

    def abort_reason(self) -> str | None:
        """Return a reason to abort the sweep, None otherwise.

        A sweep aborts if its first trials, or many consecutive trials, failed since the start of this process.
        """
        ended = [trial for trial in self.trials() if trial.state.is_finished() and counts_towards_total(trial)]
        # The cause of earlier failures may be fixed.
        since = [trial for trial in ended if trial.number not in self._ended_before]
        since.sort(key=lambda trial: trial.datetime_complete or datetime.min)
        never = all(trial.state == TrialState.FAIL for trial in ended)
        enough = min(FIRST_FAILURES, self.total - len(ended) + len(since)) if never else CONSECUTIVE_FAILURES
        last = since[-enough:]
        if not last or len(last) < enough or any(trial.state != TrialState.FAIL for trial in last):
            return None
        return f"the last {len(last)} trials all failed, the last one with: {last[-1].user_attrs.get(REASON, 'no recorded reason')}"

    def is_over(self) -> bool:
        """Return whether all requested trials have ended."""
        return sum(counts_towards_total(trial) and trial.state.is_finished() for trial in self.trials()) >= self.total

    def best(self) -> FrozenTrial | None:
        """Return the best complete trial (the first of equals), or None."""
        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        sign = 1 if self.study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
        return max(complete, key=lambda trial: (sign * float(trial.value or 0), -trial.number), default=None)


def create(url: str, name: str, plan: Plan, trials: int, *, maximize: bool) -> Sweep:
    """Open or create a study, which `Sweep.begin` then starts.

    Args:
        url: URL of the storage.
        name: Name of the study.
        plan: Requested plan.
        trials: Total number of trials.
        maximize: Maximize the objective instead of minimizing it.

    Raises:
        ConfigError: The study has another plan (with the differences), or more ended trials.
        RunError: The storage cannot be used.
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
                f"--study {name}: the study in {mask_password(url)} is not from skincancer, or its start was interrupted. Use another name."
            )
        if differences := Plan(**stored).differences(plan):
            raise ConfigError(
                f"--study {name} in {mask_password(url)} has other settings:\n  "
                + "\n  ".join(differences)
                + "\nUse another --study, or the settings of the study."
            )
        done = sum(
            counts_towards_total(trial) and trial.state.is_finished() for trial in study.get_trials(deepcopy=False)
        )
        if trials < done:
            raise ConfigError(
                f"--trials is {trials}, but {done} trials of the study {name} have already ended; expected a total of {done} or more."
            )
        return Sweep(study, url)


def join(
    url: str, name: str, wait_seconds: float = JOIN_SECONDS, say: Callable[[str], None] = lambda text: None
) -> Sweep:
    """Open the study of a started sweep, or wait for its start.

    Args:
        url: URL of the storage.
        name: Name of the study.
        wait_seconds: Longest waiting time.
        say: Prints once that the worker waits, and the existing studies.

    Raises:
        RunError: The study does not start in time, or the storage cannot be used.
    """
    storage = open_storage(url)
    until, reported = time.monotonic() + wait_seconds, False
    with storage_errors(url):
        while True:
            names: Sequence[str] = optuna.get_all_study_names(storage)
            if name in names:
                study = optuna.load_study(study_name=name, storage=storage)
                if {"parent_run", "trials"} <= set(study.user_attrs):
                    return Sweep(study, url, joined=True)
            missing = f"the study {name} has not been started in {mask_password(url)} (existing studies: {', '.join(names) or 'none'})"
            if time.monotonic() >= until:
                break
            if not reported:
                say(f"waiting up to {wait_seconds / 60:.0f} minutes: {missing}")
                reported = True
            time.sleep(min(1.0, wait_seconds / 10))
    raise RunError(
        f"--worker: {missing}, also after {wait_seconds / 60:.1f} minutes. Start the sweep first: python -m skincancer.sweep "
        f"--experiment NAME --trials N --study {name} --storage URL"
    )
