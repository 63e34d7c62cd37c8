"""Output of a trained model, the same for networks and classical classifiers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ModelOutput:
    """Output for a batch of B images, None where the task has none.

    Attributes:
        lesion: float32 (B, S, S), probability of each pixel to be lesion.
        logits, probability: float32 and float64 (B, C), of the C classes.
    """

    lesion: npt.NDArray[np.float32] | None
    logits: npt.NDArray[np.float32] | None
    probability: npt.NDArray[np.float64] | None
