"""A finished run's files, and its checkpoint back into a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from skincancer import tracking
from skincancer.errors import RunError, WeightsError
from skincancer.models.joint import JointTask
from skincancer.models.tasks import ClassificationTask, SegmentationTask
from skincancer.models.weights import load_checkpoint

RUN_FILES = ("config.yaml", tracking.BEST_CHECKPOINT)  # all that a model is rebuilt from


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


def fetch_run(run: str, folder: Path, uri: str | None = None, names: Sequence[str] = RUN_FILES) -> list[Path]:
    """Fetch files of a finished run: those that a model is rebuilt from, or others.

    Args:
        run: its id, or a folder that holds them (they are then returned as they lie).
        folder: for downloads; made where it does not exist.
        uri: the tracking store.
        names: of artifacts.

    Returns:
        A path a name.

    Raises:
        RunError: no such run, or one that did not finish, or it lacks a file.
    """
    if Path(run).is_dir():
        for name in names:
            if not (Path(run) / name).is_file():
                raise RunError(f"--run {run}: the folder has no {name}; give a run's id, or a folder of its artifacts.")
        return [Path(run) / name for name in names]
    client = tracking.connect(uri)
    tracking.check_finished(client, run)
    paths = []
    for name in names:
        place = (folder / name).parent  # a download lands in its folder without its own
        place.mkdir(parents=True, exist_ok=True)
        paths.append(tracking.download(client, run, name, place))
    return paths
