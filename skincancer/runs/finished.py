"""Files and MLflow record of a finished run."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException

from skincancer.data.catalog import Dataset
from skincancer.data.catalog import dataset as catalog_entry
from skincancer.data.overlap import Fingerprints, read_fingerprints
from skincancer.errors import DataError, RunError
from skincancer.metrics.names import has_digested_keys, positive_of, restore_names
from skincancer.metrics.prediction_files import read_predictions, read_table
from skincancer.runs import artifacts
from skincancer.runs.registry import find_version, is_registered
from skincancer.runs.store import RunStore
from skincancer.schema.dotted_keys import flatten
from skincancer.schema.parsing import parse_config
from skincancer.system.credentials import mask_passwords
from skincancer.system.paths import user_path
from skincancer.system.yaml_files import load_yaml


@dataclass(frozen=True)
class Validation:
    """Predictions of a run for its labelled validation images.

    Attributes:
        rows: image_id and lesion_id, N rows.
        label: int64 (N,).
        logits, probability: float64 (N, C), of the classes of the run.
    """

    rows: pd.DataFrame
    label: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]


class FinishedRun:
    """Reader of the files and the MLflow record of a run.

    Files of a run in MLflow are downloaded at their first use into a temporary folder, which is deleted together with this object.
    Files of a registered model come from the model, and only missing ones from the run, which may have been deleted.

    Attributes:
        name: the argument `run`.
        folder: local folder of the files that are already on this machine.

    Args:
        run: run id, folder of artifacts, or registered model (NAME@ALIAS, models:/NAME@ALIAS, models:/NAME/VERSION).
        store: MLflow store of the run. None for the default store, which a folder does not need.
        record: the run in MLflow, if the caller has read it. The run may still be running.

    Raises:
        RunError: the run or model is unknown, deleted or not FINISHED.
    """

    def __init__(self, run: str | Path, store: RunStore | None = None, record: MlflowRun | None = None) -> None:
        self.name, self._record, self._version = str(run), record, None
        self._names: dict[str, set[str]] = {}
        self.folder = user_path(run, "the run")
        self.is_folder = self.folder.is_dir()
        if self.is_folder:
            return
        self._store = store or RunStore()
        if is_registered(self.name):
            self._version = find_version(self._store.client, self.name)
        elif record is None:
            self._record = self._store.finished(self.name)
        self.folder = Path(tempfile.mkdtemp(prefix="skincancer-run-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @property
    def id(self) -> str:
        """Run id in MLflow, "" for a folder or a registered model without run."""
        if self._record is not None:
            return str(self._record.info.run_id)
        return str(self._version.run_id or "") if self._version else ""

    @property
    def record(self) -> MlflowRun:
        """The run in MLflow.

        Raises:
            RunError: the run is a folder, or was deleted after its model had been registered.
        """
        if self._record is None:
            if not self.id:
                raise RunError(f"{self.name} is not a run in MLflow; use a run id, which has params, tags and metrics.")
            self._record = self._store.finished(self.id)
        return self._record

    @property
    def params(self) -> dict[str, str]:
        """Params of the run in MLflow."""
        return self.record.data.params

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the run in MLflow."""
        return self.record.data.tags

    @property
    def metrics(self) -> dict[str, float]:
        """Last value of each metric in MLflow, by the real class names."""
        metrics = self.record.data.metrics
        return restore_names(metrics, self.classes) if has_digested_keys(metrics) else metrics

    def has(self, name: str) -> bool:
        """Return whether the run has a file or folder of this name."""
        if self.is_folder or (self.folder / name).exists():
            return (self.folder / name).exists()
        parent = "" if "/" not in name else name.rpartition("/")[0]
        if parent not in self._names:
            self._names[parent] = self._list(parent)
        return Path(name).name in self._names[parent]

    def file(self, name: str) -> Path:
        """Return the local path of a file of the run, downloaded if needed.

        Raises:
            RunError: the file is missing, or the artifacts of the run cannot be reached.
        """
        path = self.folder / name
        if not path.is_file():
            if self.is_folder:
                raise RunError(f"{self.name}: the folder has no {name}; use a run id, or a folder of all artifacts.")
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._version:
                self._download_registered(name, path.parent)
            else:
                self._download(name, path.parent)
        return path

    def table(self, name: str, *texts: str) -> pd.DataFrame | None:
        """Read a CSV file of the run with text columns `texts`, None if missing."""
        return read_table(self.file(name), *texts) if self.has(name) else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of config.yaml, with defaults for keys that are newer than the run."""
        path = self.file(artifacts.CONFIG_FILE)
        return parse_config(load_yaml(path), f"{self.name}: {path.name}")

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Config in dotted keys."""
        return flatten(self.config)

    @property
    def task(self) -> str:
        """Task of the run: classification, segmentation or joint."""
        return str(self.config["task"])

    @property
    def is_network(self) -> bool:
        """Whether the run trained a network, and not a classical classifier."""
        return bool(self.settings["model.classifier"] == "network")

    @property
    def dataset(self) -> Dataset:
        """Catalog entry of the run's data set, under its `data.name`."""
        return catalog_entry(self.settings["data.dataset"]).renamed(self.settings["data.name"])

    @cached_property
    def _classes(self) -> dict[str, list[str]]:
        with self._reading():
            content = json.loads(self.file(artifacts.CLASSES_FILE).read_text(encoding="utf-8"))
            names = content if isinstance(content, dict) else {}
            lists = {name: names.get(name, []) for name in ("classes", "malignant")}
            if any(not isinstance(texts, list) for texts in lists.values()) or not (
                lists["classes"] or self.task == "segmentation"
            ):
                raise ValueError(f"{artifacts.CLASSES_FILE} has no list of classes")
            return {name: [str(text) for text in texts] for name, texts in lists.items()}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order, none for a segmenter."""
        return () if self.task == "segmentation" else tuple(self._classes["classes"])

    @property
    def malignant(self) -> tuple[str, ...]:
        """Names of the malignant classes."""
        return tuple(self._classes["malignant"])

    @property
    def positive(self) -> str:
        """Positive class, the second of two classes, "" for other numbers of classes."""
        return positive_of(self.classes)

    @cached_property
    def split(self) -> pd.DataFrame:
        """Images with a role, from split.csv, as text, with `pixels` if digests exist."""
        with self._reading():
            split = pd.read_csv(self.file(artifacts.SPLIT_FILE), dtype=str, keep_default_na=False)
            if self.has_digests:
                digests = pd.read_csv(self.file(artifacts.DIGESTS_FILE), dtype=str)
                split = split.merge(digests, on="image_id", how="left", validate="1:1").fillna({"pixels": ""})
            return split[split["role"] != ""]

    @property
    def has_digests(self) -> bool:
        """Whether the run has digests of the pixels of its images."""
        return self.has(artifacts.DIGESTS_FILE)

    @cached_property
    def fingerprints(self) -> Fingerprints | None:
        """Thumbnails of whole images, None if the run has none."""
        if not self.has(artifacts.FINGERPRINTS_FILE):
            return None
        with self._reading():
            return read_fingerprints(self.file(artifacts.FINGERPRINTS_FILE))

    @cached_property
    def mask_sources(self) -> frozenset[str]:
        """Mask sources of the run's crops or hand-crafted features."""
        tables = [self.table(name, "masks") for name in (artifacts.CROPS_FILE, artifacts.MASKS_FILE)]
        with self._reading():
            return frozenset(name for table in tables if table is not None for name in table["masks"] if name)

    @cached_property
    def segmenter(self) -> Path | None:
        """Folder with the copy of the segmenter, None if there is none."""
        if not self.has(artifacts.SEGMENTER):
            return None
        for name in artifacts.SEGMENTER_FILES:
            self.file(f"{artifacts.SEGMENTER}/{name}")
        return self.folder / artifacts.SEGMENTER

    def predictions(self, part: str) -> pd.DataFrame:
        """Read the table of predictions of a subset, val or test."""
        texts = () if self.task == "segmentation" else ("label", "prediction")
        return read_table(self.file(artifacts.predictions_file(part)), "image_id", "lesion_id", *texts)

    @cached_property
    def validation(self) -> Validation | None:
        """Predictions for the labelled validation images, None for a segmenter.

        Raises:
            RunError: the table is malformed, or logits are not finite.
        """
        if self.task == "segmentation":
            return None
        try:
            table, label, probability = read_predictions(self.file(artifacts.predictions_file("val")), self.classes)
            logits = table[[f"logit_{name}" for name in self.classes]].to_numpy(dtype=np.float64)
        except (DataError, KeyError, ValueError) as error:
            raise RunError(f"run {self.name}: its validation predictions cannot be used: {error}") from error
        wrong = ~np.isfinite(logits).all(axis=1)
        if wrong.any():
            first = ", ".join(table["image_id"][wrong].head(3))
            raise RunError(
                f"run {self.name}: in {artifacts.predictions_file('val')} the logits of {int(wrong.sum())} images ({first} …) are not "
                "finite, so the file was changed; use another run."
            )
        known = label >= 0
        names = table.loc[known, ["image_id", "lesion_id"]].reset_index(drop=True)
        return Validation(names, label[known], logits[known], probability[known])

    @property
    def epochs(self) -> pd.DataFrame:
        """One row per epoch, empty for a classical classifier."""
        epochs = self.table(artifacts.EPOCHS_FILE)
        return pd.DataFrame() if epochs is None else epochs

    @property
    def intervals(self) -> pd.DataFrame:
        """Test metrics with confidence intervals: metric, value, low, high, n_resamples, note.

        Older runs have no notes.
        """
        return read_table(self.file(artifacts.INTERVALS_FILE), "metric")

    @property
    def report_path(self) -> Path:
        """Local path of report.html."""
        return self.file(artifacts.REPORT_FILE)

    @property
    def checkpoint(self) -> Path:
        """Local path of the best weights, or of the fitted classical classifier."""
        return self.file(artifacts.model_files(self.config)[1])

    @property
    def model_folder(self) -> Path:
        """Folder with all files that the model is rebuilt from."""
        for name in artifacts.model_files(self.config):
            self.file(name)
        return self.folder

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (DataError, KeyError, ValueError, RecursionError) as error:
            raise RunError(f"run {self.name}: its files cannot be read: {type(error).__name__}: {error}") from error

    def _list(self, parent: str) -> set[str]:
        files = []
        if self._version:
            with contextlib.suppress(MlflowException, OSError):
                files += list_artifacts(artifact_uri=f"{self._place}/{parent}", tracking_uri=self._store.uri)
        if self.id:
            with contextlib.suppress(*((MlflowException, OSError) if self._version else ())):
                files += self._store.client.list_artifacts(self.id, parent or None)
        return {Path(file.path).name for file in files}

    @cached_property
    def _place(self) -> str:
        """URI of the run's files in a registered model."""
        assert self._version is not None
        uri = self._store.client.get_model_version_download_uri(self._version.name, self._version.version)
        return f"{uri}/artifacts/{artifacts.LOGGED_RUN}"

    def _download(self, name: str, folder: Path) -> None:
        client, run_id = self._store.client, self.id
        try:
            client.download_artifacts(run_id, name, str(folder))
        except (MlflowException, OSError) as error:
            try:
                missing = not client.list_artifacts(run_id)
            except (MlflowException, OSError):
                missing = True
            if missing:
                raise RunError(
                    f"run {run_id} in {self._store}: its artifacts were deleted, or cannot be reached from here "
                    f"({client.get_run(run_id).info.artifact_uri}): {mask_passwords(error)}"
                ) from error
            raise RunError(
                f"run {run_id} in {self._store} has no artifact {name!r}: {mask_passwords(error)}"
            ) from error

    def _download_registered(self, name: str, folder: Path) -> None:
        try:
            uri = f"{self._place}/{name}"
            download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=self._store.uri)
        except (MlflowException, OSError) as error:
            if not self.id:
                assert self._version is not None
                model = f"models:/{self._version.name}/{self._version.version} in {self._store}"
                raise RunError(f"{model} has neither {name} nor a run with it: {mask_passwords(error)}") from error
            self._store.finished(self.id)
            self._download(name, folder)


@contextlib.contextmanager
def weights_file(weights: str, store: RunStore) -> Iterator[Path | None]:
    """Yield the local checkpoint of `run:RUN_ID`, None for other values of `model.weights`.

    Raises:
        RunError: the run is unknown or not finished, or has no network.
    """
    # The variable keeps the downloaded file until the block ends.
    run = FinishedRun(weights.removeprefix("run:"), store) if weights.startswith("run:") else None
    yield run.file(artifacts.BEST_CHECKPOINT) if run else None
