"""A finished run's checkpoint back into a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from skincancer.errors import WeightsError
from skincancer.models.joint import JointTask
from skincancer.models.tasks import ClassificationTask, SegmentationTask
from skincancer.models.weights import load_checkpoint


def load_task(checkpoint: Path) -> ClassificationTask | SegmentationTask | JointTask:
    """Rebuild a model from `checkpoints/best.ckpt`, in evaluation mode, on the CPU.

    Raises:
        WeightsError: no checkpoint of a run, or its weights do not fit.
    """
    content = load_checkpoint(checkpoint)
    hyper_parameters = content.get("hyper_parameters")
    if not isinstance(hyper_parameters, dict) or "state_dict" not in content:
        raise WeightsError(f"{checkpoint}: no checkpoint of a run (hyper_parameters or state_dict are missing).")
    kind: type[ClassificationTask | SegmentationTask | JointTask] = ClassificationTask
    if "architecture" in hyper_parameters:
        kind = JointTask if "classes" in hyper_parameters else SegmentationTask
    try:
        task = kind(**cast(dict[str, Any], hyper_parameters))
    except (TypeError, KeyError) as error:
        raise WeightsError(f"{checkpoint}: no checkpoint of a model of this version: {error}") from error
    try:
        task.load_state_dict(cast(dict[str, Any], content["state_dict"]))
    except RuntimeError as error:
        raise WeightsError(f"{checkpoint}: its weights do not fit its own hyper-parameters: {error}") from error
    return task.eval()
