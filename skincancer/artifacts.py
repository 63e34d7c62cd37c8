"""Files of finished runs, from the tracking store or from a folder that holds them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from skincancer.errors import RunError
from skincancer.tracking import BEST_CHECKPOINT, connect

MODEL_FILES = ("config.yaml", BEST_CHECKPOINT)  # all that a model is rebuilt from
CLASSES_FILE = "classes.json"
CROPS_FILE = "crops.csv"
SPLIT_FILE = "split.csv"
SEGMENTER_FILES = (*MODEL_FILES, SPLIT_FILE)  # all that crops of other data are cut by
SEGMENTER = "segmenter"  # the folder of a run's copy of the segmenter behind its crops


def check_finished(client: MlflowClient, run_id: str) -> MlflowRun:
    """Return a run whose results can be used, or say why they cannot.

    Raises:
        RunError: unknown, or not FINISHED.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise RunError(f"run {run_id}: there is no such run in {client.tracking_uri}") from error
    if run.info.status != "FINISHED":
        raise RunError(
            f"run {run_id} is {run.info.status} and not FINISHED; finish it first (python -m skincancer.fit --resume {run_id})."
        )
    return run


def download(client: MlflowClient, run_id: str, name: str, folder: Path) -> Path:
    """Fetch the artifact `name` of a run into `folder` and return its path.

    Raises:
        RunError: the run or the artifact does not exist.
    """
    try:
        return Path(client.download_artifacts(run_id, name, str(folder)))
    except (MlflowException, OSError) as error:
        raise RunError(f"run {run_id} in {client.tracking_uri} has no artifact {name!r}: {error}") from error


def list_files(run: str, uri: str | None = None) -> set[str]:
    """Return the names of a run's artifacts, folders as they are; of a run's id, or of a folder that holds them."""
    source = Path(run).expanduser()
    if source.is_dir():
        return {path.name for path in source.iterdir()}
    client = connect(uri)
    check_finished(client, run)
    return {file.path for file in client.list_artifacts(run)}


def fetch_run(run: str, folder: Path, uri: str | None = None, names: Sequence[str] = MODEL_FILES) -> list[Path]:
    """Copy files of a finished run, each under its own name.

    Args:
        run: its id, or a folder that holds the files.
        folder: where to; made where it does not exist.
        uri: the tracking store.
        names: of artifacts.

    Returns:
        A path a name, in `folder`.

    Raises:
        RunError: no such run, or one that did not finish, or it lacks a file.
    """
    source = Path(run).expanduser()
    client = None if source.is_dir() else connect(uri)
    if client is not None:
        check_finished(client, run)
    paths = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if client is not None:
            download(client, run, name, path.parent)  # a download lands in its folder without its own
        elif (source / name).is_file():
            shutil.copy(source / name, path)
        else:
            raise RunError(f"{run}: the folder has no {name}; give a run's id, or a folder of its artifacts.")
        paths.append(path)
    return paths
