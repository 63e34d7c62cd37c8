"""Predictions of a finished run for image files, preprocessed as in training."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from skincancer.data.feature_table import measure
from skincancer.data.mask_sources import used_mask_source
from skincancer.errors import ConfigError
from skincancer.imaging.crop import Crop
from skincancer.imaging.decode import BadImage, ImageFile, MissingExtra, count_pixels
from skincancer.imaging.mask_operations import mask_extent
from skincancer.imaging.preprocessing import Preprocessing, View
from skincancer.imaging.types import Box, Mask
from skincancer.inference.classical_model import ClassicalModel
from skincancer.inference.model import AnyModel, TrainedModel, load_model, load_segmenter
from skincancer.runs.artifacts import MODEL_FILES, SEGMENTER
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore
from skincancer.schema.data import segmenter_run

Item = TypeVar("Item")
Result = TypeVar("Result")

# Images of at least so many pixels are processed one at a time, so that memory does not grow with the number of threads.
LARGE = 25_000_000
_large = threading.Lock()
# View of an image that cannot be read.
NOTHING = View(0, 0, (0, 0, 0, 0))


@dataclass(frozen=True)
class Prediction:
    """Prediction of a run for one image.

    Attributes:
        error: reason why there is no prediction, "" otherwise.
        pixels: uint8 (S, S, 3), input of a network.
        features: float32 (F,), input of a classifier on hand-crafted features.
        view: part of the original, upright by its EXIF orientation, that the input shows.
        masks: mask source of a crop or of features (otsu, segmenter; empty if the mask contains no lesion), "" of whole images.
        lesion, logits, probability: float32 (S, S), float32 (C,) and float64 (C,), as in `ModelOutput`.
    """

    file: ImageFile
    error: str = ""
    pixels: npt.NDArray[np.uint8] | None = None
    features: npt.NDArray[np.float32] | None = None
    view: View = NOTHING
    masks: str = ""
    lesion: npt.NDArray[np.float32] | None = None
    logits: npt.NDArray[np.float32] | None = None
    probability: npt.NDArray[np.float64] | None = None


class Predictor:
    """Predictor of a finished run, with constant memory for any number of images.

    Args:
        crop: crop of the images. None for whole images.
        segmenter: model for the masks of crops and of hand-crafted features. None for masks by Otsu's threshold.
    """

    def __init__(self, model: AnyModel, crop: Crop | None = None, segmenter: TrainedModel | None = None) -> None:
        self.model, self.segmenter = model, segmenter
        self.preprocessing = replace(model.preprocessing, crop=crop)

    @property
    def measures(self) -> bool:
        """Whether the input of the model is hand-crafted features."""
        return isinstance(self.model, ClassicalModel) and bool(self.model.families)

    def predict(self, files: Iterable[ImageFile]) -> Iterator[Prediction]:
        """Yield one prediction per image, in order. Unreadable images have an error."""
        with thread_pool() as pool:
            ahead = 2 * self.model.batch_size
            if self.segmenter is not None:
                inputs = map_in_order(pool, self._read_for_segmenter, files, 2 * self.segmenter.batch_size)
                segmented = _predict(self.segmenter, inputs)
                yield from _predict(self.model, map_in_order(pool, self._read_again, segmented, ahead))
            else:
                yield from _predict(self.model, map_in_order(pool, self._read, files, ahead))

    def mask(self, prediction: Prediction) -> Mask:
        """Return the mask of a prediction, bool (height, width)."""
        assert prediction.lesion is not None, "callers check `model.segments`"
        assert isinstance(self.model, TrainedModel)
        return self.model.mask(prediction.lesion, prediction.view)

    def _read(self, file: ImageFile) -> Prediction:
        return _catch_errors(file, count_pixels(file), lambda: self._input(file, None, "otsu"))

    def _input(self, file: ImageFile, mask: Mask | None, source: str) -> Prediction:
        """Return the model input: features in a mask, or a cropped image."""
        if isinstance(self.model, ClassicalModel) and self.model.families:
            return _measure(self.model, file, mask, source)
        return _preprocess(self.preprocessing, file, None if mask is None else mask_extent(mask))

    def _read_for_segmenter(self, file: ImageFile) -> Prediction:
        segmenter = self.segmenter
        assert segmenter is not None
        return _catch_errors(file, count_pixels(file), lambda: _preprocess(segmenter.preprocessing, file))

    def _read_again(self, segmented: Prediction) -> Prediction:
        """Read an image again, and crop or measure it by the predicted mask.

        Images kept in between would fill the memory.
        """
        if segmented.error:
            return segmented

        def read() -> Prediction:
            assert self.segmenter is not None
            assert segmented.lesion is not None
            return self._input(segmented.file, self.segmenter.mask(segmented.lesion, segmented.view), SEGMENTER)

        return _catch_errors(segmented.file, segmented.view.width * segmented.view.height, read)


def _preprocess(preprocessing: Preprocessing, file: ImageFile, extent: Box | None = None) -> Prediction:
    square = preprocessing.apply(file, extent)
    return Prediction(file, pixels=square.pixels, view=square.view, masks=square.source)


def load_predictor(run: str, store: RunStore | None = None, masks: str | None = None) -> Predictor:
    """Load a finished run with everything that its predictions need.

    Args:
        run: run id, folder of artifacts, or registered model.
        store: MLflow store. None for the default store, which a folder does not need.
        masks: mask source for runs trained on crops or hand-crafted features: otsu, or run:RUN of a segmenter. None for the source
            of the training images: Otsu's threshold, or the copy of the segmenter in the run.

    Raises:
        ConfigError: `masks` does not fit the run, or is needed because the run was trained with true masks.
        RunError: the run is unknown, not finished, or lacks a file.
        WeightsError: a checkpoint cannot be used.
    """
    if masks not in (None, "otsu") and not segmenter_run(masks or ""):
        raise ConfigError(f"--masks is {masks!r}; expected otsu, or run:RUN of a segmenter.")
    finished = FinishedRun(run, store)
    model = load_model(finished.model_folder)
    data = model.settings["data"]
    measures = isinstance(model, ClassicalModel) and bool(model.families)
    if not data.get("crop") and not measures:
        if masks is not None:
            raise ConfigError(
                f"--masks is {masks}, but {run} was trained on whole images; use it for runs on crops or hand-crafted features."
            )
        return Predictor(model)
    margin, source = float(data["crop_margin"]), masks or _training_source(finished, measures)
    if source == "otsu":
        return Predictor(model, None if measures else Crop("otsu", margin))
    if masks is not None:
        segmenter = load_segmenter(segmenter_run(masks), store or RunStore(), f"--masks {masks}")
    else:
        for name in MODEL_FILES:
            finished.file(f"{SEGMENTER}/{name}")
        segmenter = TrainedModel(finished.folder / SEGMENTER)
    return Predictor(model, None if measures else Crop(SEGMENTER, margin), segmenter)


def _training_source(run: FinishedRun, measures: bool) -> str:
    """Return the mask source of the training images and refuse true masks."""
    masks = used_mask_source(str(run.settings["data.masks"]), run.mask_sources)
    if masks in ("auto", "truth"):
        raise ConfigError(
            f"{run.name} was trained on images {'measured in' if measures else 'cropped to'} their true masks (data.masks {masks}), "
            "which new images do not have. Use --masks run:RUN of a segmenter, or --masks otsu (Otsu's threshold)."
        )
    return masks


def _measure(model: ClassicalModel, file: ImageFile, mask: Mask | None, source: str) -> Prediction:
    """Compute the hand-crafted features of an image, the input of the model."""
    measured = measure(file, mask, source, model.families, model.preprocessing.clean)
    features = np.array([measured[name] for name in model.columns], dtype=np.float32)
    width, height = measured["width"], measured["height"]
    return Prediction(file, features=features, view=View(width, height, (0, 0, width, height)), masks=measured["masks"])


def map_in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield the results of `work` in the order of the items.

    At most `ahead` items are started before their results are needed.
    """
    futures: deque[Future[Result]] = deque()
    for item in items:
        futures.append(pool.submit(work, item))
        if len(futures) > ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


@contextlib.contextmanager
def thread_pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of one thread per core that finally cancels waiting work."""
    # Threads suffice: Pillow and numpy release the global interpreter lock.
    pool = ThreadPoolExecutor(min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def memory_lock(pixels: int) -> contextlib.AbstractContextManager[Any]:
    """Return a context that lets only one large image be processed at a time."""
    return _large if pixels >= LARGE else contextlib.nullcontext()


def _catch_errors(file: ImageFile, pixels: int, read: Callable[[], Prediction]) -> Prediction:
    """Return the decoded image, or a prediction with an error text."""
    try:
        with memory_lock(pixels):
            return read()
    except (BadImage, MissingExtra) as error:
        return Prediction(file, str(error).removeprefix(f"{file!s} "))
    except OSError as error:
        return Prediction(file, f"cannot be read: {error.strerror or error}")
    except MemoryError:
        return Prediction(file, "needs more memory than is available; scale the image down")


def _predict(model: AnyModel, inputs: Iterable[Prediction]) -> Iterator[Prediction]:
    """Add the output of a model, in full batches of readable images."""
    batch: list[Prediction] = []
    readable = 0
    for image in inputs:
        batch.append(image)
        readable += not image.error
        if readable == model.batch_size or len(batch) > 8 * model.batch_size:
            yield from _predict_batch(model, batch)
            batch, readable = [], 0
    yield from _predict_batch(model, batch)


def _predict_batch(model: AnyModel, batch: list[Prediction]) -> Iterator[Prediction]:
    readable = [image for image in batch if not image.error]
    inputs = [image.pixels if image.features is None else image.features for image in readable]
    output = model.predict(np.stack([values for values in inputs if values is not None])) if readable else None
    row = 0
    for image in batch:
        if image.error or output is None:
            yield image
            continue
        lesion, logits, probability = (
            None if values is None else values[row] for values in (output.lesion, output.logits, output.probability)
        )
        row += 1
        if all(values is None or np.isfinite(values).all() for values in (lesion, probability)):
            yield replace(image, lesion=lesion, logits=logits, probability=probability)
        else:
            yield Prediction(image.file, "has no prediction: the model returns NaN")
