"""Test the images of a run as its inputs in MLflow."""

from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from skincancer.runs.dataset_inputs import log_dataset

DATA = SimpleNamespace(
    index_hash="a",
    root="/images",
    entry=SimpleNamespace(name="demo"),
    rows=lambda role: pd.DataFrame({"image_id": ["x"]}),
)
RACE = "(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id, datasets.name, datasets.digest"


@pytest.mark.parametrize(("message", "calls"), [(RACE, 2), ("the server is gone", 1)])
def test_only_a_race_for_the_same_data_is_repeated(message, calls, monkeypatch):
    logged = []

    def log_input(dataset, context):
        logged.append((dataset.digest, context))
        if len(logged) == 1:
            raise MlflowException(message)

    monkeypatch.setattr(mlflow, "log_input", log_input)
    if calls == 1:
        with pytest.raises(MlflowException, match="gone"):
            log_dataset(DATA, "train", "80:20")
    else:
        log_dataset(DATA, "train", "80:20")
    assert len(logged) == calls
    assert {context for _, context in logged} == {"training"}
