"""Optuna's samplers and pruners, by the names that a sweep is started with."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

STARTUP_TRIALS = 5  # finished before the median prunes


def build_sampler(name: str, seed: int) -> BaseSampler:
    """Return a sampler: Optuna's TPE (Bergstra et al. 2011) or random; a grid's points are queued, so it draws nothing."""
    return TPESampler(seed=seed) if name == "tpe" else RandomSampler(seed=seed)


def build_pruner(name: str, max_epochs: int) -> BasePruner:
    """Return a pruner that is fed `val/<monitor>` at the end of each epoch (from 1).

    The median rule starts after a quarter of the epochs and `STARTUP_TRIALS` trials; Hyperband (Li et al. 2018) has brackets from one
    epoch to `max_epochs`.
    """
    if name == "median":
        return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=max_epochs // 4)
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=max(1, max_epochs))
    return NopPruner()
