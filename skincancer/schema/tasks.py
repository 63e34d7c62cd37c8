"""Tasks, and what their models predict."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskKind:
    """What a task's model predicts: class probabilities, lesion masks, or both."""

    has_classes: bool
    has_masks: bool


TASKS = {"classification": TaskKind(True, False), "segmentation": TaskKind(False, True), "joint": TaskKind(True, True)}
