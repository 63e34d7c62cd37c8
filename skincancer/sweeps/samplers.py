"""Samplers and pruners of Optuna, by name."""

from __future__ import annotations

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

# Finished trials before the median rule prunes.
STARTUP_TRIALS = 5


def build_sampler(name: str, seed: int) -> BaseSampler:
    """Return a sampler: Optuna's TPE (Bergstra et al. 2011) or random.

    The points of a grid are queued, so its sampler is never used.
    """
    return TPESampler(seed=seed) if name == "tpe" else RandomSampler(seed=seed)


def build_pruner(name: str, max_epochs: int) -> BasePruner:
    """Return a pruner for `val/<monitor>` of each epoch, from 1.

    The median rule starts after a quarter of the epochs and `STARTUP_TRIALS` trials; Hyperband (Li et al. 2018) has brackets from one
    epoch to `max_epochs`.
    """
    if name == "median":
        return MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=max_epochs // 4)
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=max(1, max_epochs))
    return NopPruner()
