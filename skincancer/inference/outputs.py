"""What a finished run's model says, whatever kind of model it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Answers:
    """What a model says of a batch of B images; None what its task does not say.

    `lesion` float32 (B, S, S), probabilities of a pixel to be lesion; `logits` float32 (B, C) and `probability` float64 (B, C) of
    the classes.
    """

    lesion: npt.NDArray[np.float32] | None
    logits: npt.NDArray[np.float32] | None
    probability: npt.NDArray[np.float64] | None
