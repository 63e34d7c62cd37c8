r"""The model that a run logs to MLflow: code, not a pickle, over a folder of the run's own files.

MLflow runs this file when the model is loaded; the package has to be installed there. `mlflow models serve` answers with it:

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
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.pyfunc.model import PythonModel
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from PIL import Image

from skincancer.errors import ConfigError, SkinCancerError
from skincancer.imaging.decode import ImageFile
from skincancer.inference.predictor import Answer, Answerer, load_answerer
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

COLUMN = "image"
LONGEST_PATH = 4096


class Model(PythonModel):
    """Images to probabilities, masks, or both.

    Takes a table with one column `image`: the bytes of an image file, their base64 text, or a path that the serving machine can read.
    Gives a row an image: of a classifier `prediction`, the class, and `p_<class>`, float64; of a segmenter `mask`, bytes of a PNG of
    the image's own size, 0 and 255 (base64 in JSON answers); of a joint model all of them. Images are brought to the model's size, and
    cut to their lesions where the training images were, as `python -m skincancer.predict` does it.

    A run on crops, or on hand-made features, takes the parameter `masks`: otsu takes those by Otsu's threshold; empty for the run's own
    way. A run on true masks has none, so it needs to be told.
    """

    def load_context(self, context: Any) -> None:
        """Read the run's files."""
        self.folder = str(context.artifacts["run"])
        self.answerers: dict[str, Answerer] = {}
        load_plugins(FinishedRun(self.folder).config.get("plugins", ()))
        try:
            self.answerers[""] = load_answerer(self.folder)
        except ConfigError as error:  # on true masks: a request may say by which others
            self.untold = str(error)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:  # what MLflow gives it has passed the signature
        """Return a row an image.

        Raises:
            MlflowException: an image cannot be read; says which row, and why.
        """
        answerer = self._answerer(str((params or {}).get("masks") or ""))
        files = [_file(row, value) for row, value in enumerate(model_input[COLUMN])]
        rows = [self._row(answerer, row, answer) for row, answer in enumerate(answerer.answers(files))]
        return pd.DataFrame(rows, columns=columns(answerer.model.classes, answerer.model.segments))

    def _answerer(self, masks: str) -> Answerer:
        if masks not in ("", "otsu"):
            raise MlflowException.invalid_parameter_value(f"masks is {masks!r}; give otsu, or nothing.")
        if masks not in self.answerers:
            if not masks:
                raise MlflowException.invalid_parameter_value(f"{self.untold} Here: the parameter masks, otsu.")
            try:
                self.answerers[masks] = load_answerer(self.folder, masks=masks)
            except SkinCancerError as error:
                raise MlflowException.invalid_parameter_value(str(error)) from error
        return self.answerers[masks]

    @staticmethod
    def _row(answerer: Answerer, row: int, answer: Answer) -> dict[str, Any]:
        if answer.error:
            raise MlflowException.invalid_parameter_value(f"{COLUMN} of row {row} {answer.error}")
        said: dict[str, Any] = {}
        if answer.probability is not None:
            classes = answerer.model.classes
            said["prediction"] = classes[int(answer.probability.argmax())]
            said |= {f"p_{name}": float(p) for name, p in zip(classes, answer.probability, strict=True)}
        if answer.lesion is not None:
            stream = io.BytesIO()
            Image.fromarray(answerer.mask(answer).astype(np.uint8) * 255).save(stream, "png", optimize=True)
            said["mask"] = stream.getvalue()
        return said


def _file(row: int, value: Any) -> ImageFile:
    """Return the bytes or the path that a cell holds."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str) and len(value) <= LONGEST_PATH and "\0" not in value and os.path.isfile(value):
        return Path(value)
    try:
        text = value.partition("base64,")[2] if value.startswith("data:") else value
        return base64.b64decode("".join(text.split()), validate=True)  # encoders break lines
    except (AttributeError, TypeError, ValueError, binascii.Error) as error:
        shown = f"{value[:40]!r}" if isinstance(value, str) else type(value).__name__
        raise MlflowException.invalid_parameter_value(
            f"{COLUMN} of row {row} is {shown}: give an image file's bytes, their base64 text, or a path of an image on this machine."
        ) from error


def columns(classes: Sequence[str], segments: bool) -> list[str]:
    """Return the columns of an answer."""
    of_classes = ["prediction", *(f"p_{name}" for name in classes)] if classes else []
    return [*of_classes, *(["mask"] if segments else [])]


def signature(classes: Sequence[str], segments: bool, takes_masks: bool) -> ModelSignature:
    """Return what the model takes and gives.

    Args:
        classes: of a segmenter none.
        segments: it gives masks.
        takes_masks: of a run on crops or hand-made features, which can be told whose masks to take.
    """
    kinds = {"prediction": "string", "mask": "binary"}
    given = Schema([ColSpec(kinds.get(name, "double"), name) for name in columns(classes, segments)])
    # MLflow leaves a column of texts alone: bytes pass, and base64 is not decoded behind our back
    images = Schema([ColSpec("string", COLUMN)])
    if not takes_masks:
        return ModelSignature(images, given)
    return ModelSignature(images, given, ParamSchema([ParamSpec("masks", "string", "")]))


def input_example(takes_masks: bool = False) -> pd.DataFrame | tuple[pd.DataFrame, dict[str, str]]:
    """Return a grey image, not a real one: the data may be under a licence that the run's readers do not hold.

    Args:
        takes_masks: with the parameter that a run on true masks needs.
    """
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (128, 128, 128)).save(stream, "png")
    images = pd.DataFrame({COLUMN: [base64.b64encode(stream.getvalue()).decode()]})
    return (images, {"masks": "otsu"}) if takes_masks else images


def log_model(run: Path, signature: ModelSignature, requirements: list[str]) -> ModelInfo:
    """Log the model `model` to the active run.

    Args:
        run: a folder with the run's files; of these the model takes what answers need.
        signature: as `signature` makes it.
        requirements: for pip.
    """
    own = (*MODEL_FILES, CLASSICAL_CHECKPOINT, BACKBONE_FILE, CLASSES_FILE, CROPS_FILE, MASKS_FILE)
    names = [*own, *(f"{SEGMENTER}/{name}" for name in MODEL_FILES)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / LOGGED_RUN
        for name in names:
            if (run / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(run / name, folder / name)
        return mlflow.pyfunc.log_model(
            name="model", python_model=__file__, artifacts={LOGGED_RUN: str(folder)}, signature=signature,
            input_example=input_example(signature.params is not None), pip_requirements=requirements,
        )  # fmt: skip


mlflow.models.set_model(Model())
