"""Optuna study of a sweep: the driver asks for trials, ends and repeats them.

One process, the driver, writes to a study. A trial counts towards the total unless it was interrupted or its driver died; then its point
is queued again.

Sampling is reproducible: it depends on the seed, the number of counted trials, and the ended trials. With one trial at a time, an
interrupted and resumed sweep therefore has the same trials as an uninterrupted one. With several, the trials depend on the order in which
they end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from skincancer.config import search_space
from skincancer.engines.orders import Result
from skincancer.errors import ConfigError
from skincancer.schema.dotted_keys import TYPES
from skincancer.sweeps.plan import Plan
from skincancer.sweeps.samplers import build_pruner, build_sampler
from skincancer.sweeps.storage import open_storage, storage_errors
from skincancer.sweeps.trial_state import ENDED, PLANNED, REASON, counts_towards_total, is_repeated, point_of
from skincancer.system.credentials import mask_password, mask_passwords

# Consecutive failures that abort a sweep without any success, and a sweep with earlier successes.
FIRST_FAILURES, CONSECUTIVE_FAILURES = 3, 10


class Sweep:
    """Study of a sweep, from the view of its driver.

    Args:
        study: opened Optuna study.
        url: URL of the storage.
    """

    def __init__(self, study: optuna.Study, url: str) -> None:
        self.study, self.url = study, url
        self.plan = Plan(**study.user_attrs["plan"])
        self.base = self.plan.resolve({}, {})
        self.distributions = search_space.distributions(self.plan.search, TYPES)
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

    def ask(self) -> Trial | None:
        """Start a trial, or return None if the total is reached.

        Queued points come before sampled ones.

        Raises:
            RunError: The storage is unavailable.
        """
        with storage_errors(self.url):
            count = sum(map(counts_towards_total, self.trials()))
            if count >= self.total:
                return None
            # Queued points come first, so the count is new for each sampled point. The two zeros keep the draws of earlier versions.
            seed = np.random.SeedSequence([self.base.seed, count, 0, 0]).generate_state(1)[0]
            self.study.sampler = build_sampler(self.plan.sampler, int(seed))
            return self.study.ask(self.distributions)

    def end(self, trial: Trial, result: Result) -> None:
        """Record the result of a trial, and queue an interrupted trial again."""
        with storage_errors(self.url):
            if result.state == "interrupted":
                self._repeat(trial, "interrupted")
            elif result.state == "pruned":
                self.study.tell(trial, state=TrialState.PRUNED)
            elif result.state == "complete" and math.isfinite(result.value):
                self.study.tell(trial, result.value)
            else:
                reason = mask_passwords(result.reason) or f"its objective is {result.value}"
                trial.set_user_attr(REASON, reason)
                self.study.tell(trial, state=TrialState.FAIL)

    def _repeat(self, trial: Trial | FrozenTrial, why: str) -> None:
        """Close a running trial that does not count, and queue its point again."""
        # Optuna has no public function to write to a trial of an earlier process.
        self.study._storage.set_trial_user_attr(trial._trial_id, ENDED, why)
        self.study.tell(trial.number, state=TrialState.FAIL)
        self._queue_again(next(known for known in self.trials() if known.number == trial.number))

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

    def begin(self, trials: int) -> list[FrozenTrial]:
        """Set the total, and queue the points of a grid and of lost trials.

        Returns:
            Trials of an earlier driver that died, now closed.

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
                    # The driver was killed after closing this trial, before queueing it.
                    self._queue_again(trial)
            dead = [trial for trial in known if trial.state == TrialState.RUNNING]
            for trial in dead:
                self._repeat(trial, "dead")
            self.study.set_user_attr("trials", min(trials, len(points)) if points else trials)
        return dead

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
