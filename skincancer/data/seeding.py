"""Seeds of single steps. Every random stream of a run is a function of (seed, stream, rank, epoch, batch)."""

from __future__ import annotations

import numpy as np

MODEL_STREAM = 0  # dropout and whatever else the network draws
AUGMENT_STREAM = 1


def step_seed(seed: int, stream: int, rank: int, epoch: int, batch: int) -> int:
    """Return a 63-bit seed that differs for every combination of its arguments (numpy's SeedSequence)."""
    state = np.random.SeedSequence([seed, stream, rank, epoch, batch]).generate_state(1, np.uint64)[0]
    return int(state) & 0x7FFF_FFFF_FFFF_FFFF
