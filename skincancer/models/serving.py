"""The model that a run logs to MLflow: code, not a pickle, over `config.yaml`, `classes.json` and the weights.

MLflow runs this file when the model is loaded; the package has to be installed there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel

if TYPE_CHECKING:
    from torch import Tensor


class Model(PythonModel):
    """Images float32 (B, 3, S, S), RGB in [0, 1]; of a run with `data.crop`, cropped to the lesion as its training images were.

    A classifier gives a table of probabilities, one column `p_<class>` a class; a segmenter maps of lesion probabilities, float32
    (B, 1, S, S); a joint model both, from one pass: a dict of `mask`, such maps, and `p_<class>`, float64 (B,), for each class.
    """

    def load_context(self, context: Any) -> None:
        """Read the three files that are the run's truth."""
        from skincancer.models.loading import load_task

        self.task = load_task(Path(context.artifacts["checkpoint"]))
        self.classes = json.loads(Path(context.artifacts["classes"]).read_text(encoding="utf-8"))["classes"]

    def predict(
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame | np.ndarray | dict[str, np.ndarray]:
        """Return probabilities."""
        import torch

        from skincancer.models.joint import JointTask
        from skincancer.models.tasks import SegmentationTask

        image = torch.as_tensor(np.asarray(model_input), dtype=torch.float32)
        with torch.inference_mode():
            if isinstance(self.task, SegmentationTask):
                return np.asarray(self.task.predict_probability(image))
            if isinstance(self.task, JointTask):
                masks, logits = self.task.predict_both(image)
                probabilities = self._probabilities(logits).items()
                return {"mask": masks.sigmoid().numpy()} | {str(name): np.asarray(p) for name, p in probabilities}
            return self._probabilities(self.task.predict_logits(image))

    def _probabilities(self, logits: Tensor) -> pd.DataFrame:
        probability = logits.double().softmax(dim=1).numpy()
        return pd.DataFrame(probability, columns=[f"p_{name}" for name in self.classes])


mlflow.models.set_model(Model())
