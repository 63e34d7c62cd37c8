"""Test the images of a run as its inputs in MLflow."""

from types import SimpleNamespace

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
def test_only_a_race_for_the_same_data_is_repeated(message, calls):
    logged = []

    def log_inputs(run_id, datasets):
        (dataset,) = datasets
        logged.append((run_id, dataset.dataset.digest, dataset.tags[0].value))
        if len(logged) == 1:
            raise MlflowException(message)

    run = SimpleNamespace(run_id="r", store=SimpleNamespace(client=SimpleNamespace(log_inputs=log_inputs)))
    if calls == 1:
        with pytest.raises(MlflowException, match="gone"):
            log_dataset(run, DATA, "train", "80:20")
    else:
        log_dataset(run, DATA, "train", "80:20")
    assert len(logged) == calls
    assert {(run_id, context) for run_id, _, context in logged} == {("r", "training")}
