"""Models of finished runs, and masks predicted by a segmenter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from skincancer.data.cache import ProgressBar
from skincancer.data.catalog import Dataset
from skincancer.data.mask_sources import BY_NAME, Made, MaskSource
from skincancer.data.overlap import count_overlap
from skincancer.data.store import open_store
from skincancer.errors import RunError
from skincancer.imaging.preprocessing import Preprocessing, View
from skincancer.imaging.types import Mask
from skincancer.inference.classical_model import ClassicalModel
from skincancer.inference.outputs import ModelOutput
from skincancer.metrics.mask_scorer import MaskRecipe
from skincancer.models.factory import load_task
from skincancer.models.tasks.segmentation import Segmenting
from skincancer.plugins import load_plugins
from skincancer.runs.artifacts import MODEL_FILES
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore
from skincancer.schema.data import RUN, DataConfig, segmenter_run
from skincancer.system.hardware import keep_freed_memory
from skincancer.system.paths import cache_folder

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class TrainedModel:
    """Network of a finished run, on the GPU if there is one.

    On a CPU the process keeps freed memory from then on (`hardware.keep_freed_memory`).

    Attributes:
        settings: config.yaml of the run.
        classes: names in the order of the probabilities, empty for a segmenter.
        segments: whether the model predicts masks.
        preprocessing: steps from an image file to the input, without a crop.
        batch_size: batch size of the run's own test. Another size may change the last digit.
        digest: SHA-256 of the weights and of the config, which together determine a mask.

    Args:
        folder: folder with config.yaml and checkpoints/best.ckpt.

    Raises:
        ConfigError: the config cannot be read, or names unknown cleaning steps.
        WeightsError: the checkpoint is not of a run, or would have to be unpickled.
    """

    def __init__(self, folder: Path) -> None:
        if not torch.cuda.is_available():
            keep_freed_memory()
        files = [folder / name for name in MODEL_FILES]
        self.settings = FinishedRun(folder).config
        load_plugins(self.settings.get("plugins", ()))
        self.task = load_task(files[1]).to("cuda" if torch.cuda.is_available() else "cpu")
        self.digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        self.classes, self.segments = tuple(self.task.classes), self.task.kind.has_masks
        self.preprocessing = Preprocessing.from_config(self.settings["data"])
        self.batch_size = int(self.settings["data"]["batch_size"])
        self._half = _HALF.get(str(self.settings["trainer"]["precision"]))

    def predict(self, squares: npt.NDArray[np.uint8]) -> ModelOutput:
        """Predict a batch with the precision and test-time augmentation of the run.

        Args:
            squares: preprocessed images, uint8 (B, S, S, 3) RGB.
        """
        task = self.task
        image = torch.from_numpy(squares).permute(0, 3, 1, 2).to(task.device).float().div_(255)
        with torch.inference_mode(), torch.autocast(task.device.type, dtype=self._half, enabled=self._half is not None):
            lesion, logits = task.predict(image)
        logits = None if logits is None else logits.float().cpu()
        return ModelOutput(
            None if lesion is None else lesion.float().cpu().numpy()[:, 0],
            None if logits is None else logits.numpy(),
            None if logits is None else torch.softmax(logits.double(), dim=1).numpy(),
        )

    def mask(self, lesion: npt.NDArray[np.float32], view: View) -> Mask:
        """Return the mask, bool (height, width), of probabilities float32 (S, S).

        The mask has the original size, and is empty outside the box of the view.
        """
        assert isinstance(self.task, Segmenting), "callers check `segments`"
        mask = self.settings["model"]["mask"]
        recipe = MaskRecipe(self.preprocessing, mask["largest_component"], mask["fill_holes"])
        return recipe.mask(lesion, view, self.task.threshold)


AnyModel = TrainedModel | ClassicalModel


def load_model(folder: Path) -> AnyModel:
    """Load a model from a folder with its files (`artifacts.model_files`).

    Raises:
        ConfigError: the config cannot be read.
        WeightsError: the checkpoint cannot be used.
    """
    return TrainedModel(folder) if FinishedRun(folder).is_network else ClassicalModel(folder)


def load_trained(run: str, store: RunStore) -> AnyModel:
    """Load the model of a run id, folder of artifacts, or registered model.

    Raises:
        RunError: the run is unknown or not finished.
        WeightsError: the checkpoint cannot be used.
    """
    # The variable keeps the downloaded files until the model is loaded.
    finished = FinishedRun(run, store)
    return load_model(finished.model_folder)


def load_segmenter(run: str, store: RunStore, purpose: str) -> TrainedModel:
    """Load the model of a finished run, which must predict masks.

    `purpose` is the key or flag that names the run, for the error.

    Raises:
        RunError: the run is unknown, not finished, or of another task.
    """
    model = load_trained(run, store)
    if not isinstance(model, TrainedModel) or not model.segments:
        raise RunError(
            f"{purpose}: the task of run {run} is {model.settings['task']}; use a run of task segmentation or joint."
        )
    return model


class SegmenterMasks:
    """Masks predicted by the segmenter of a finished run.

    Args:
        split: split.csv of the run.
    """

    def __init__(self, segmenter: TrainedModel, split: pd.DataFrame) -> None:
        self.segmenter, self.split = segmenter, split
        self.name = RUN + segmenter.digest

    def resolve(self, index: pd.DataFrame, entry: Dataset) -> MaskSource:
        """Return this source: the segmenter needs no true masks."""
        return self

    def find(
        self, index: pd.DataFrame, root: Path, use: Callable[[Mask], Made | None], progress: ProgressBar | None, jobs: int
    ) -> list[Path | Made | None]:  # fmt: skip
        """Segment every image, and apply `use` to each mask.

        Images are preprocessed as the segmenter's training images. A mask is bool (H, W), of the image's original size.

        Returns:
            One entry per row of the index, None where the image cannot be read.
        """
        segmenter, preprocessing = self.segmenter, self.segmenter.preprocessing
        bar = progress(f"preparing the images at {preprocessing.size} px for the segmenter") if progress else None
        store = open_store(index, root, cache_folder(), preprocessing, progress=bar, jobs=jobs)
        report = progress("segmenting") if progress else None
        views = store.views
        results: list[Path | Made | None] = [None] * len(index)
        good = np.flatnonzero(store.table["error"].to_numpy() == "")
        for start in range(0, len(good), segmenter.batch_size):
            rows = good[start : start + segmenter.batch_size]
            lesions = segmenter.predict(store.images[rows]).lesion
            assert lesions is not None
            for row, lesion in zip(rows, lesions, strict=True):
                results[row] = use(segmenter.mask(lesion, views[row]))
            if report:
                report(start + len(rows), len(good))
        return results

    def count_overlap(self, index: pd.DataFrame, entry: Dataset) -> int:
        """Count the test images that the segmenter was trained or selected on."""
        data = self.segmenter.settings["data"]
        return count_overlap(index, self.split, (data.get("name") or data["dataset"]) == entry.name)


def mask_source(config: DataConfig, store: RunStore | None = None) -> MaskSource:
    """Return the mask source that `data.masks` names, with the segmenter loaded.

    `store` contains the run of the segmenter (None for the default store).

    Raises:
        RunError: the run is unknown, not finished, of another task, or lacks one of `artifacts.SEGMENTER_FILES`.
    """
    run = segmenter_run(config.masks)
    if not run:
        return BY_NAME[config.masks]
    store = store or RunStore()
    segmenter = load_segmenter(run, store, f"data.masks {config.masks}")
    return SegmenterMasks(segmenter, FinishedRun(run, store).split)
