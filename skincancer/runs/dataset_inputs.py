"""Images of a run as its inputs in MLflow, identified by a digest."""

from __future__ import annotations

import hashlib
from typing import Any

import mlflow
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException

from skincancer.data.prepare import PreparedData
from skincancer.system.interrupts import uninterrupted

CONTEXTS = {"train": "training", "val": "validation", "test": "test"}


def log_dataset(data: PreparedData, role: str, split: str) -> None:
    """Log the images of one role as an input of the active run."""
    ids = "\n".join(data.rows(role)["image_id"])
    # Dataset digests of MLflow have 16 hex digits.
    digest = hashlib.sha256(f"{data.index_hash}\n{role}\n{ids}".encode()).hexdigest()[:16]
    source = _FolderSource(str(data.root))
    # MLflow declares `profile` abstract, but creates such objects itself.
    dataset = MetaDataset(source, name=f"{data.entry.name} {split} {role}", digest=digest)  # type: ignore[abstract]
    with uninterrupted():
        try:
            mlflow.log_input(dataset, context=CONTEXTS[role])
        except MlflowException as error:
            # Two runs that log the same new data at once both insert its row, and MLflow fails in one of them. Then the row exists.
            if "unique constraint" not in str(error).lower():
                raise
            mlflow.log_input(dataset, context=CONTEXTS[role])


class _FolderSource(DatasetSource):
    """Folder of the images. The local source of MLflow would read the files."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @staticmethod
    def _get_source_type() -> str:
        return "folder"

    def load(self, **kwargs: Any) -> str:
        """Return the folder."""
        return self.folder

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> _FolderSource:
        return cls(str(raw_source))

    def to_dict(self) -> dict[str, str]:
        """Return the folder as a dict."""
        return {"folder": self.folder}

    @classmethod
    def from_dict(cls, source_dict: dict[str, str]) -> _FolderSource:
        """Create a source from the dict of `to_dict`."""
        return cls(source_dict["folder"])


def data_tags(data: PreparedData) -> dict[str, str]:
    """Return tags that identify the images, roles and lesions of a run."""
    return {
        "split_hash": data.split_hash, "index_hash": data.index_hash, "groups_hash": data.groups_hash,
        "synthetic": str(data.entry.synthetic).lower(),
    }  # fmt: skip
