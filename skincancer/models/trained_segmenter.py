"""A finished run's segmenter at work on images: the one way from image to mask, for predict and for crops to the lesion."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from skincancer.artifacts import fetch_run
from skincancer.config import load_yaml
from skincancer.errors import RunError
from skincancer.evaluation.mask_scoring import MaskRecipe
from skincancer.models.joint import JointTask
from skincancer.models.loading import load_task
from skincancer.models.tasks import SegmentationTask

Mask = npt.NDArray[np.bool_]

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class TrainedSegmenter:
    """A segmenter from a finished run.

    Args:
        run: its id, or a folder with config.yaml and checkpoints/best.ckpt.
        uri: the tracking store.
        purpose: what asks for it, for the error.

    Raises:
        RunError: no such run, one that did not finish, or not a segmenter's.
    """

    def __init__(self, run: str, uri: str | None, purpose: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            files = fetch_run(run, Path(folder), uri)
            task, self.settings = load_task(files[1]), load_yaml(files[0])
            # of the weights and of what turns their answer into a mask
            self.digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        if not isinstance(task, SegmentationTask | JointTask):
            raise RunError(
                f"{purpose}: the task of run {run} is {self.settings['task']}; give a run of task segmentation or joint."
            )
        self.task = task
        data, mask = self.settings["data"], self.settings["model"]["mask"]
        self.size, self.resize = int(data["size"]), str(data["resize"])
        # that of the run's own test: another may round otherwise in the last digit
        self.batch_size = int(data["batch_size"])
        self.recipe = MaskRecipe(self.resize, mask["largest_component"], mask["fill_holes"])

    def masks(self, squares: npt.NDArray[np.uint8], sizes: Sequence[tuple[int, int]]) -> list[Mask]:
        """Segment a batch, on the best device.

        Args:
            squares: uint8 (B, S, S, 3), images brought to `size` by `resize`.
            sizes: width and height of each original, px.

        Returns:
            A mask an image, bool (height, width) of its original size.
        """
        self.task.to("cuda" if torch.cuda.is_available() else "cpu")
        image = torch.from_numpy(squares).permute(0, 3, 1, 2).to(self.task.device).float().div_(255)
        half = _HALF.get(self.settings["trainer"]["precision"])
        with torch.inference_mode(), torch.autocast(self.task.device.type, dtype=half, enabled=half is not None):
            probability = self.task.predict_probability(image).float().cpu().numpy()[:, 0]
        threshold = self.task.threshold
        return [
            self.recipe.mask(values, *size, threshold=threshold)
            for values, size in zip(probability, sizes, strict=True)
        ]
