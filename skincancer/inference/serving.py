r"""Model that a run logs to MLflow: code and files, no pickle.

MLflow runs this file when it loads the model, which needs the package installed. `mlflow models serve` then serves it:

    curl localhost:5000/invocations -H 'Content-Type: application/json' \
      -d '{"dataframe_split": {"columns": ["image"], "data": [["<base64>"]]}}'
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model as MlflowModel
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from PIL import Image

from skincancer.errors import ConfigError, SkinCancerError
from skincancer.imaging.decode import ImageFile
from skincancer.inference.predictor import Prediction, Predictor, load_predictor
from skincancer.plugins import load_plugins
from skincancer.runs.artifacts import (
    BACKBONE_FILE,
    CLASSES_FILE,
    CLASSICAL_CHECKPOINT,
    CROPS_FILE,
    LOGGED_RUN,
    MASKS_FILE,
    MODEL_FILES,
    SEGMENTER,
)
from skincancer.runs.finished import FinishedRun
from skincancer.runs.lifecycle import RunWriter

COLUMN = "image"
LONGEST_PATH = 4096


class Model(PythonModel):
    """Model from images to probabilities, masks, or both.

    The input is a table with one column `image`: the bytes of an image file, their base64 text, or a path on the serving machine.
    The output has one row per image. A classifier returns `prediction` (the class) and `p_<class>`, float64. A segmenter returns
    `mask`, bytes of a PNG of the image's own size, 0 and 255 (base64 in JSON). A joint model returns both. Images are preprocessed
    and cropped as by `python -m skincancer.predict`.

    Runs on crops or hand-crafted features have the parameter `masks`: otsu for Otsu's threshold, empty for the mask source of the
    training images. Runs on true masks need the parameter.
    """

    def load_context(self, context: Any) -> None:
        """Load the model from the files of the run."""
        self.folder = str(context.artifacts["run"])
        self.predictors: dict[str, Predictor] = {}
        load_plugins(FinishedRun(self.folder).config.get("plugins", ()))
        try:
            self.predictors[""] = load_predictor(self.folder)
        except ConfigError as error:
            # The run was trained with true masks, so each request has to name another mask source.
            self.needs_masks = str(error)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row per image. MLflow has already checked the input against the signature.

        Raises:
            MlflowException: an image cannot be read. The message contains the row and the reason.
        """
        predictor = self._predictor(str((params or {}).get("masks") or ""))
        files = [_file(row, value) for row, value in enumerate(model_input[COLUMN])]
        rows = [self._row(predictor, row, prediction) for row, prediction in enumerate(predictor.predict(files))]
        return pd.DataFrame(rows, columns=columns(predictor.model.classes, predictor.model.segments))

    def _predictor(self, masks: str) -> Predictor:
        if masks not in ("", "otsu"):
            raise MlflowException.invalid_parameter_value(f"masks is {masks!r}; expected otsu or empty.")
        if masks not in self.predictors:
            if not masks:
                raise MlflowException.invalid_parameter_value(
                    f"{self.needs_masks} In a request, set the parameter masks to otsu."
                )
            try:
                self.predictors[masks] = load_predictor(self.folder, masks=masks)
            except SkinCancerError as error:
                raise MlflowException.invalid_parameter_value(str(error)) from error
        return self.predictors[masks]

    @staticmethod
    def _row(predictor: Predictor, row: int, prediction: Prediction) -> dict[str, Any]:
        if prediction.error:
            raise MlflowException.invalid_parameter_value(f"{COLUMN} of row {row} {prediction.error}")
        values: dict[str, Any] = {}
        if prediction.probability is not None:
            classes = predictor.model.classes
            values["prediction"] = classes[int(prediction.probability.argmax())]
            values |= {f"p_{name}": float(p) for name, p in zip(classes, prediction.probability, strict=True)}
        if prediction.lesion is not None:
            stream = io.BytesIO()
            Image.fromarray(predictor.mask(prediction).astype(np.uint8) * 255).save(stream, "png", optimize=True)
            values["mask"] = stream.getvalue()
        return values


def _file(row: int, value: Any) -> ImageFile:
    """Return the bytes or the path in a cell of the table."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str) and len(value) <= LONGEST_PATH and "\0" not in value and os.path.isfile(value):
        return Path(value)
    try:
        text = value.partition("base64,")[2] if value.startswith("data:") else value
        # Some encoders insert line breaks.
        return base64.b64decode("".join(text.split()), validate=True)
    except (AttributeError, TypeError, ValueError, binascii.Error) as error:
        text = f"{value[:40]!r}" if isinstance(value, str) else type(value).__name__
        raise MlflowException.invalid_parameter_value(
            f"{COLUMN} of row {row} is {text}; use the bytes of an image file, their base64 text, or a path of an image on this machine."
        ) from error


def columns(classes: Sequence[str], segments: bool) -> list[str]:
    """Return the columns of the output."""
    of_classes = ["prediction", *(f"p_{name}" for name in classes)] if classes else []
    return [*of_classes, *(["mask"] if segments else [])]


def signature(classes: Sequence[str], segments: bool, takes_masks: bool) -> ModelSignature:
    """Return the signature of the model.

    Args:
        classes: class names, empty for a segmenter.
        segments: whether the model predicts masks.
        takes_masks: whether the run has the parameter `masks` (trained on crops or hand-crafted features).
    """
    kinds = {"prediction": "string", "mask": "binary"}
    outputs = Schema([ColSpec(kinds.get(name, "double"), name) for name in columns(classes, segments)])
    # Bytes also pass as a string column, and MLflow does not decode base64 in one.
    images = Schema([ColSpec("string", COLUMN)])
    if not takes_masks:
        return ModelSignature(images, outputs)
    return ModelSignature(images, outputs, ParamSchema([ParamSpec("masks", "string", "")]))


def input_example(takes_masks: bool = False) -> pd.DataFrame | tuple[pd.DataFrame, dict[str, str]]:
    """Return a grey image, because the licence may forbid to publish a real one.

    Args:
        takes_masks: whether to add the parameter that a run on true masks needs.
    """
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (128, 128, 128)).save(stream, "png")
    images = pd.DataFrame({COLUMN: [base64.b64encode(stream.getvalue()).decode()]})
    return (images, {"masks": "otsu"}) if takes_masks else images


def log_model(run: RunWriter, signature: ModelSignature, requirements: list[str]) -> None:
    """Log the model `model` of a run, with the files that predictions need.

    The client of the run's store logs the model. MLflow's fluent API would use the tracking URI, run and experiment of the caller.
    """
    files = (*MODEL_FILES, CLASSICAL_CHECKPOINT, BACKBONE_FILE, CLASSES_FILE, CROPS_FILE, MASKS_FILE)
    names = [*files, *(f"{SEGMENTER}/{name}" for name in MODEL_FILES)]
    client, record = run.store.client, run.record
    model = client.create_logged_model(
        record.info.experiment_id, "model", source_run_id=run.run_id, params=record.data.params
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / LOGGED_RUN
        for name in names:
            if (run.folder / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(run.folder / name, folder / name)
        mlflow.pyfunc.save_model(
            f"{place}/model", python_model=__file__, artifacts={LOGGED_RUN: str(folder)}, signature=signature,
            input_example=input_example(signature.params is not None), pip_requirements=requirements,
            mlflow_model=MlflowModel(model.artifact_location, run.run_id, model_uuid=model.model_id, model_id=model.model_id),
        )  # fmt: skip
        client.log_model_artifacts(model.model_id, f"{place}/model")
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=0)])
    # MLflow's page of models lists the final metrics of their runs.
    client.log_batch(
        run.run_id, synchronous=True,
        metrics=[
            Metric(name, value, record.info.start_time, 0, model_id=model.model_id, run_id=run.run_id)
            for name, value in record.data.metrics.items()
            if name.startswith(("best/", "test/"))
        ],
    )  # fmt: skip


mlflow.models.set_model(Model())
