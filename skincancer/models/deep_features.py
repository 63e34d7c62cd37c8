"""Features of a frozen backbone: what a timm network with its first weights says of an image before it is classified."""

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
from skincancer.models.weights import Loaded, load_backbone
from skincancer.schema import Experiment
from skincancer.system.hardware import keep_freed_memory


class DeepFeatures:
    """A frozen backbone on the best device, in float32.

    Args:
        name: timm's.
        module: the backbone.
        accelerator: as `trainer.accelerator`; cpu leaves a GPU alone.
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
        """Return the features of some images: a row each, columns deep_0 ….

        Args:
            squares: uint8 (N, S, S, 3), such as those of a store.
            rows: which of them.
            batch_size: images at once.
            progress: called with (done, total).
        """
        parts = []
        for start in range(0, len(rows), batch_size):
            image = torch.from_numpy(np.array(squares[rows[start : start + batch_size]])).to(self.device)
            with torch.inference_mode():
                parts.append(self.module(image.permute(0, 3, 1, 2).float() / 255).cpu().numpy())
            if progress:
                progress(min(start + batch_size, len(rows)), len(rows))
        return deep_table(np.concatenate(parts))

    def digest(self) -> str:
        """Return what tells this backbone and its weights from others, 64 hex digits."""
        digest = hashlib.sha256(self.name.encode())
        for name, value in self.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the weights, which a run keeps: they may be gone where it is used."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().cpu() for name, value in self.backbone.state_dict().items()}, path)


def deep_table(values: npt.NDArray[np.float32]) -> pd.DataFrame:
    """Return features (N, F) as a table: a row an image, columns deep_0 …."""
    return pd.DataFrame(values, columns=[f"deep_{number}" for number in range(values.shape[1])])


def first_backbone(experiment: Experiment, checkpoint: Path | None = None) -> tuple[DeepFeatures, Loaded]:
    """Return an experiment's backbone with the weights that `model.weights` names, and where these really came from.

    Raises:
        WeightsError: they cannot be had.
    """
    model = experiment.model
    pl.seed_everything(experiment.seed, verbose=False)  # weights may be drawn
    loaded = load_backbone(model.backbone, experiment.data.size, model.weights, checkpoint)
    return DeepFeatures(model.backbone, loaded.backbone, experiment.trainer.accelerator), loaded


def kept_backbone(name: str, size: int, path: Path) -> DeepFeatures:
    """Return the backbone of a run with the weights that it kept.

    Args:
        name: timm's.
        size: side of the images, px.
        path: as `DeepFeatures.save` wrote it.

    Raises:
        WeightsError: no such file, or not of this backbone.
    """
    backbone = build_backbone(name, size)
    try:
        backbone.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise WeightsError(f"{path}: these are not the weights of {name}: {error}") from error
    return DeepFeatures(name, backbone)
