"""Files of finished runs: from the tracking store, from a registered model, or from a folder that holds them."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.artifacts import download_artifacts
from mlflow.entities import Run as MlflowRun
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from skincancer.errors import RunError
from skincancer.runs.registry import find_version, is_registered
from skincancer.runs.store import connect
from skincancer.schema import DEEP
from skincancer.system.credentials import hide, shown
from skincancer.system.yaml_files import load_yaml

CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = f"{CHECKPOINTS}/last.ckpt"
BEST_CHECKPOINT = f"{CHECKPOINTS}/best.ckpt"


MODEL_FILES = ("config.yaml", BEST_CHECKPOINT)  # all that a model is rebuilt from
CLASSICAL_CHECKPOINT = "checkpoints/best.skops"
BACKBONE_FILE = "checkpoints/backbone.safetensors"  # of a classical classifier on deep features
CLASSES_FILE = "classes.json"
CROPS_FILE = "crops.csv"
MASKS_FILE = "masks.csv"  # whose masks hand-made features were measured in
SPLIT_FILE = "split.csv"
AUDIT_FILE = "audit.txt"  # the line of the verdict on the data, where there was one
SEGMENTER_FILES = (*MODEL_FILES, SPLIT_FILE)  # all that crops of other data are cut by
SEGMENTER = "segmenter"  # the folder of a run's copy of the segmenter behind its crops
LOGGED_RUN = "run"  # the folder of a logged model that holds its run's files


def model_files(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of all that a run's model is rebuilt from, config.yaml first.

    Args:
        settings: config.yaml.
    """
    model = settings.get("model") or {}
    if model.get("classifier", "network") == "network":  # older runs do not say so
        return MODEL_FILES
    backbone = [BACKBONE_FILE] if DEEP in model["classical"]["features"] else []
    return MODEL_FILES[0], CLASSICAL_CHECKPOINT, CLASSES_FILE, *backbone


def check_finished(client: MlflowClient, run_id: str) -> MlflowRun:
    """Return a run whose results can be used, or say why they cannot.

    Raises:
        RunError: unknown, deleted, or not FINISHED.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise RunError(f"run {run_id}: there is no such run in {shown(client.tracking_uri)}") from error
    if run.info.lifecycle_stage == "deleted":
        raise RunError(
            f"run {run_id} in {shown(client.tracking_uri)} is deleted; bring it back (mlflow runs restore --run-id {run_id}), or "
            "use another run."
        )
    if run.info.status != "FINISHED":
        raise RunError(
            f"run {run_id} is {run.info.status} and not FINISHED; finish it first (python -m skincancer.fit --resume {run_id})."
        )
    return run


def download(client: MlflowClient, run_id: str, name: str, folder: Path) -> Path:
    """Fetch the artifact `name` of a run into `folder` and return its path.

    Raises:
        RunError: the run or the artifact does not exist, or all its artifacts are gone.
    """
    try:
        return Path(client.download_artifacts(run_id, name, str(folder)))
    except (MlflowException, OSError) as error:
        try:
            gone = not client.list_artifacts(run_id)
        except (MlflowException, OSError):
            gone = True
        if gone:
            raise RunError(
                f"run {run_id} in {shown(client.tracking_uri)}: its artifacts are gone, or cannot be reached from here "
                f"({client.get_run(run_id).info.artifact_uri}): {hide(error)}"
            ) from error
        raise RunError(
            f"run {run_id} in {shown(client.tracking_uri)} has no artifact {name!r}: {hide(error)}"
        ) from error


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

    A registered model has those files that answers on images need; others come from the run that it was made by.

    Args:
        run: its id; a folder that holds the files; or a registered model: NAME@ALIAS, models:/NAME@ALIAS or models:/NAME/VERSION.
        folder: where to; made where it does not exist.
        uri: the tracking store.
        names: of artifacts.

    Returns:
        A path a name, in `folder`.

    Raises:
        RunError: no such run or model, a run that was deleted or did not finish, or a file is missing.
    """
    source = Path(run).expanduser()
    if source.is_dir():
        return [_copy(run, source / name, folder / name) for name in names]
    client = connect(uri)
    version = find_version(client, run) if is_registered(run) else None
    if version is None:
        check_finished(client, run)
    paths = []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if version is None:
            download(client, run, name, path.parent)  # a download lands in its folder without its own
        else:
            _download_registered(client, version, name, path.parent)
        paths.append(path)
    return paths


def fetch_model(run: str, folder: Path, uri: str | None = None) -> list[Path]:
    """Copy all that a finished run's model is rebuilt from, as `fetch_run`; config.yaml is the first.

    Raises:
        ConfigError: config.yaml cannot be read.
        RunError: as `fetch_run`.
    """
    (settings,) = fetch_run(run, folder, uri, MODEL_FILES[:1])
    return [settings, *fetch_run(run, folder, uri, model_files(load_yaml(settings))[1:])]


def _copy(run: str, source: Path, path: Path) -> Path:
    if not source.is_file():
        raise RunError(
            f"{run}: the folder has no {source.relative_to(Path(run).expanduser())}; give a run's id, or a folder of its artifacts."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(source, path))


def _download_registered(client: MlflowClient, version: ModelVersion, name: str, folder: Path) -> None:
    """Fetch a file from the model itself, which outlives its run, else from that run."""
    try:
        place = client.get_model_version_download_uri(version.name, version.version)
        download_artifacts(
            artifact_uri=f"{place}/artifacts/{LOGGED_RUN}/{name}",
            dst_path=str(folder),
            tracking_uri=client.tracking_uri,
        )
    except (MlflowException, OSError) as error:
        if not version.run_id:
            raise RunError(
                f"models:/{version.name}/{version.version} in {shown(client.tracking_uri)} has no {name}, and names no run: {hide(error)}"
            ) from error
        check_finished(client, version.run_id)
        download(client, version.run_id, name, folder)


def classes_json(classes: Sequence[str], malignant: Sequence[str]) -> str:
    """Return the content of classes.json: the names in the order of the labels, and which of them are known to be malignant."""
    return json.dumps({"classes": list(classes), "malignant": list(malignant)}, indent=1)


@contextlib.contextmanager
def local_weights(weights: str, uri: str | None) -> Iterator[tuple[str, str]]:
    """Download the checkpoint of `run:RUN_ID` for the time of the context.

    Args:
        weights: as `model.weights`.
        uri: the tracking store.

    Yields:
        The path of the checkpoint and `weights`. Where `weights` names no run: `weights` and "".

    Raises:
        RunError: as `fetch_run`.
    """
    if not weights.startswith("run:"):
        yield weights, ""
        return
    with tempfile.TemporaryDirectory() as folder:
        (checkpoint,) = fetch_run(weights.removeprefix("run:"), Path(folder), uri, (BEST_CHECKPOINT,))
        yield str(checkpoint), weights
