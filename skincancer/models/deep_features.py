"""Deep features: outputs of a frozen timm backbone before the classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytorch_lightning as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from skincancer.errors import WeightsError
from skincancer.models.backbones import build_backbone, normalisation
from skincancer.models.tasks.base import Normalise
from skincancer.models.weights import LoadedWeights, load_backbone
from skincancer.schema.experiment import Experiment
from skincancer.system.hardware import keep_freed_memory


class DeepFeatures:
    """Frozen backbone on the best device, in float32.

    Args:
        name: timm's name.
        module: the backbone.
        accelerator: as `trainer.accelerator`; cpu does not use a GPU.
    """

    def __init__(self, name: str, module: torch.nn.Module, accelerator: str = "auto") -> None:
        gpu = torch.cuda.is_available() and accelerator != "cpu"
        self.name, self.device = name, torch.device("cuda" if gpu else "cpu")
        if not gpu:
            keep_freed_memory()
        self.backbone = module
        self.module = torch.nn.Sequential(Normalise(*normalisation(name)), module).eval().to(self.device)

    def measure(
        self, squares: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], batch_size: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Return the features of images: one row per image, columns deep_0 ….

        Args:
            squares: uint8 (N, S, S, 3), such as the images of a store.
            rows: positions of the images to measure.
            batch_size: number of images per batch.
            progress: called with (done, total).
        """
        batches = []
        for start in range(0, len(rows), batch_size):
            image = torch.from_numpy(np.array(squares[rows[start : start + batch_size]])).to(self.device)
            with torch.inference_mode():
                batches.append(self.module(image.permute(0, 3, 1, 2).float() / 255).cpu().numpy())
            if progress:
                progress(min(start + batch_size, len(rows)), len(rows))
        return deep_table(np.concatenate(batches))

    def digest(self) -> str:
        """Return the SHA-256 digest of the name and weights, 64 hex digits."""
        digest = hashlib.sha256(self.name.encode())
        for name, value in self.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the weights, so that prediction needs no hub."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().cpu() for name, value in self.backbone.state_dict().items()}, path)


def deep_table(values: npt.NDArray[np.float32]) -> pd.DataFrame:
    """Return features (N, F) as a table: one row per image, columns deep_0 …."""
    return pd.DataFrame(values, columns=[f"deep_{number}" for number in range(values.shape[1])])


def first_backbone(experiment: Experiment, checkpoint: Path | None = None) -> tuple[DeepFeatures, LoadedWeights]:
    """Return the backbone of an experiment, and the origin of its weights.

    Raises:
        WeightsError: the weights of `model.weights` are not available.
    """
    model = experiment.model
    # Weights may be random.
    pl.seed_everything(experiment.seed, verbose=False)
    loaded = load_backbone(model.backbone, experiment.data.size, model.weights, checkpoint)
    return DeepFeatures(model.backbone, loaded.backbone, experiment.trainer.accelerator), loaded


def kept_backbone(name: str, size: int, path: Path) -> DeepFeatures:
    """Return the backbone of a run, with the weights saved in the run.

    Args:
        name: timm's name.
        size: image side, px.
        path: file of `DeepFeatures.save`.

    Raises:
        WeightsError: no such file, or weights of another backbone.
    """
    backbone = build_backbone(name, size)
    try:
        backbone.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(f"{path}: these are not the weights of {name}: {error}") from error
    return DeepFeatures(name, backbone)
