"""Images of a run as its inputs in MLflow, identified by a digest."""

from __future__ import annotations

import hashlib
import json

from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from skincancer.data.prepare import PreparedData
from skincancer.runs.lifecycle import RunWriter
from skincancer.system.interrupts import uninterrupted

CONTEXTS = {"train": "training", "val": "validation", "test": "test"}


def log_dataset(run: RunWriter, data: PreparedData, role: str, split: str) -> None:
    """Log the images of one role as an input of a run."""
    ids = "\n".join(data.rows(role)["image_id"])
    # Dataset digests of MLflow have 16 hex digits.
    digest = hashlib.sha256(f"{data.index_hash}\n{role}\n{ids}".encode()).hexdigest()[:16]
    source = json.dumps({"folder": str(data.root)})
    dataset = Dataset(f"{data.entry.name} {split} {role}", digest, source_type="folder", source=source)
    inputs = [DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, CONTEXTS[role])])]
    with uninterrupted():
        try:
            run.store.client.log_inputs(run.run_id, inputs)
        except MlflowException as error:
            # Two runs that log the same new data at once both insert its row, and MLflow fails in one of them. Then the row exists.
            if "unique constraint" not in str(error).lower():
                raise
            run.store.client.log_inputs(run.run_id, inputs)


def data_tags(data: PreparedData) -> dict[str, str]:
    """Return tags that identify the images, roles and lesions of a run."""
    return {
        "split_hash": data.split_hash, "index_hash": data.index_hash, "groups_hash": data.groups_hash,
        "synthetic": str(data.entry.synthetic).lower(),
    }  # fmt: skip
