"""Seeds of training steps: a function of (seed, stream, rank, epoch, batch)."""

from __future__ import annotations

import numpy as np

# MODEL_STREAM seeds dropout and other random layers of the network.
MODEL_STREAM, AUGMENT_STREAM = 0, 1


def step_seed(seed: int, stream: int, rank: int, epoch: int, batch: int) -> int:
    """Return a 63-bit seed for one step, by numpy's SeedSequence."""
    state = np.random.SeedSequence([seed, stream, rank, epoch, batch]).generate_state(1, np.uint64)[0]
    return int(state) & 0x7FFF_FFFF_FFFF_FFFF
