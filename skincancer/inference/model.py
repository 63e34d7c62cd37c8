"""A finished run's model on images of its own size: the one way from a run to answers, for predict, crops, serving and evaluate."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from skincancer.data.cache import Progress
from skincancer.data.mask_sources import RUN, Made
from skincancer.data.store import open_store
from skincancer.errors import RunError
from skincancer.imaging.cleaning.steps import check_clean
from skincancer.imaging.types import Box, Mask
from skincancer.inference.classical_model import ClassicalModel
from skincancer.inference.outputs import Answers
from skincancer.metrics.mask_scorer import MaskRecipe
from skincancer.models.factory import load_task
from skincancer.models.tasks.classification import ClassificationTask
from skincancer.models.tasks.joint import JointTask
from skincancer.models.tasks.segmentation import SegmentationTask
from skincancer.runs.artifacts import MODEL_FILES
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore
from skincancer.schema import DataConfig
from skincancer.system.hardware import keep_freed_memory
from skincancer.system.paths import cache_folder

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class TrainedModel:
    """A model from a finished run, on the best device; on a CPU the process keeps freed memory from then on (`allocator`).

    Attributes:
        settings: the run's config.yaml.
        classes: names in the order of the probabilities; of a segmenter none.
        segments: whether it gives masks.
        size, resize: of the square that it takes, px, and how images come to it.
        clean: steps of cleaning that its images went through first.
        batch_size: that of the run's own test: another may round otherwise in the last digit.
        digest: of the weights and of what turns their answer into a mask.

    Args:
        folder: holds config.yaml and checkpoints/best.ckpt.

    Raises:
        ConfigError: the config cannot be read, or names steps of cleaning that there are not.
        WeightsError: no checkpoint of a run, or one that would have to be unpickled.
    """

    def __init__(self, folder: Path) -> None:
        if not torch.cuda.is_available():
            keep_freed_memory()
        files = [folder / name for name in MODEL_FILES]
        self.settings = FinishedRun(folder).config
        self.task = load_task(files[1]).to("cuda" if torch.cuda.is_available() else "cpu")
        self.digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        self.classes = () if isinstance(self.task, SegmentationTask) else tuple(self.task.classes)
        self.segments = not isinstance(self.task, ClassificationTask)
        data = self.settings["data"]
        self.size, self.resize = int(data["size"]), str(data["resize"])
        self.clean: tuple[str, ...] = tuple(data.get("clean", ()))  # runs of older versions have none
        check_clean(self.clean)
        self.batch_size = int(data["batch_size"])
        self._half = _HALF.get(str(self.settings["trainer"]["precision"]))

    def answer(self, squares: npt.NDArray[np.uint8]) -> Answers:
        """Answer on a batch, with the run's precision and views (`model.tta`).

        Args:
            squares: uint8 (B, S, S, 3), images brought to `size` by `resize`, RGB.
        """
        task = self.task
        image = torch.from_numpy(squares).permute(0, 3, 1, 2).to(task.device).float().div_(255)
        lesion = logits = None
        with torch.inference_mode(), torch.autocast(task.device.type, dtype=self._half, enabled=self._half is not None):
            if isinstance(task, JointTask):
                masks, logits = task.predict_both(image)
                lesion = masks.sigmoid()
            elif isinstance(task, SegmentationTask):
                lesion = task.predict_probability(image)
            else:
                logits = task.predict_logits(image)
        logits = None if logits is None else logits.float().cpu()
        return Answers(
            None if lesion is None else lesion.float().cpu().numpy()[:, 0],
            None if logits is None else logits.numpy(),
            None if logits is None else torch.softmax(logits.double(), dim=1).numpy(),
        )

    def mask(self, lesion: npt.NDArray[np.float32], width: int, height: int, box: Box | None = None) -> Mask:
        """Bring probabilities of one image, float32 (S, S), to its mask, bool (height, width) of the original size, px.

        Outside the box of the original that the image showed, px, there is no lesion.
        """
        assert not isinstance(self.task, ClassificationTask), "whoever asks looks at `segments`"
        mask = self.settings["model"]["mask"]
        recipe = MaskRecipe(self.resize, mask["largest_component"], mask["fill_holes"])
        return recipe.mask(lesion, width, height, threshold=self.task.threshold, box=box)


AnyModel = TrainedModel | ClassicalModel


def load_model(folder: Path) -> AnyModel:
    """Load the model whose files lie in a folder (`artifacts.model_files`).

    Raises:
        ConfigError: the config cannot be read.
        WeightsError: the checkpoint cannot be used.
    """
    return TrainedModel(folder) if FinishedRun(folder).is_network else ClassicalModel(folder)


def load_trained(run: str, store: RunStore) -> AnyModel:
    """Load the model of a finished run.

    Args:
        run: run id, folder of artifacts, or registered model.
        store: MLflow store.

    Raises:
        RunError: no such run, or one that did not finish.
        WeightsError: its checkpoint cannot be used.
    """
    # The variable keeps the downloaded files until the model is loaded.
    finished = FinishedRun(run, store)
    return load_model(finished.model_folder)


def load_segmenter(run: str, store: RunStore, purpose: str) -> TrainedModel:
    """Load a finished run's model, which must give masks.

    Args:
        run: as `load_trained`.
        store: MLflow store.
        purpose: what asks for it, for the error.

    Raises:
        RunError: as `load_trained`, or not a segmenter's.
    """
    model = load_trained(run, store)
    if not isinstance(model, TrainedModel) or not model.segments:
        raise RunError(
            f"{purpose}: the task of run {run} is {model.settings['task']}; give a run of task segmentation or joint."
        )
    return model


def find_segmenter(config: DataConfig, uri: str | None) -> tuple[TrainedModel, pd.DataFrame] | None:
    """Load the segmenter that gives masks, where `data.masks` names one, and the split that it was trained on.

    Raises:
        RunError: the run is unknown, not finished, of another task, or lacks one of `artifacts.SEGMENTER_FILES`.
    """
    if not config.masks.startswith(RUN):
        return None
    run, store = config.masks.removeprefix(RUN), RunStore(uri)
    segmenter = load_segmenter(run, store, f"data.masks {config.masks}")
    return segmenter, FinishedRun(run, store).split


def predicted(
    segmenter: TrainedModel, index: pd.DataFrame, root: Path, use: Callable[[Mask], Made | None],
    progress: Callable[[str], Progress] | None, jobs: int,
) -> list[Made | None]:  # fmt: skip
    """Segment every image, prepared as the segmenter's own were, and return what `use` makes of each mask.

    A mask is bool (H, W), of the image's original size.

    Returns:
        An entry a row of the index; None where the image cannot be read.
    """
    store = open_store(
        index, root, cache_folder(), size=segmenter.size, resize=segmenter.resize, clean=segmenter.clean,
        progress=progress(f"preparing the images at {segmenter.size} px for the segmenter") if progress else None, jobs=jobs,
    )  # fmt: skip
    told = progress("segmenting") if progress else None
    sizes = list(zip(store.table["width"].astype(int), store.table["height"].astype(int), strict=True))
    shown = store.boxes
    made: list[Made | None] = [None] * len(index)
    good = np.flatnonzero(store.table["error"].to_numpy() == "")
    for start in range(0, len(good), segmenter.batch_size):
        rows = good[start : start + segmenter.batch_size]
        lesions = segmenter.answer(store.images[rows]).lesion
        assert lesions is not None
        for row, lesion in zip(rows, lesions, strict=True):
            width, height = sizes[row]
            made[row] = use(segmenter.mask(lesion, width, height, shown[row] if shown else None))
        if told:
            told(start + len(rows), len(good))
    return made
