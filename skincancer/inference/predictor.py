"""A finished run on image files: decoded in threads beside the model, cut as its training images were, answered in order."""

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
from skincancer.imaging.decode import BadImage, ImageFile, count_pixels
from skincancer.imaging.mask_operations import mask_extent
from skincancer.imaging.preprocessing import Preprocessing, View
from skincancer.imaging.types import Box, Mask
from skincancer.inference.classical_model import ClassicalModel
from skincancer.inference.model import AnyModel, TrainedModel, load_model, load_segmenter
from skincancer.runs.artifacts import MODEL_FILES, SEGMENTER
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore
from skincancer.schema import segmenter_run

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGE = (
    25_000_000  # px: from here on, images are worked on one at a time, so that memory does not grow with the threads
)
_large = threading.Lock()
NOTHING = View(0, 0, (0, 0, 0, 0))  # of an image that cannot be read


@dataclass(frozen=True)
class Answer:
    """Prediction of a run for one image.

    Attributes:
        file: of the image.
        error: reason why there is no prediction, "" otherwise.
        pixels: uint8 (S, S, 3), input of a network.
        features: float32 (F,), input of a classifier on hand-crafted features.
        view: part of the original, upright by its EXIF orientation, that the input shows.
        masks: mask source of a crop or of features (otsu, segmenter; empty if the mask contains no lesion), "" of whole images.
        lesion, logits, probability: float32 (S, S), float32 (C,) and float64 (C,), as in `Answers`.
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


class Answerer:
    """Answers on images, any number of them in the same memory.

    Args:
        model: a finished run's.
        crop: of the images; None for whole images.
        segmenter: predicts the masks of crops and of hand-crafted features; None for masks by Otsu's threshold.
    """

    def __init__(self, model: AnyModel, crop: Crop | None = None, segmenter: TrainedModel | None = None) -> None:
        self.model, self.segmenter = model, segmenter
        self.preprocessing = replace(model.preprocessing, crop=crop)

    @property
    def measures(self) -> bool:
        """Whether the model takes hand-made features."""
        return isinstance(self.model, ClassicalModel) and bool(self.model.families)

    def answers(self, files: Iterable[ImageFile]) -> Iterator[Answer]:
        """Yield an answer an image, in order; what cannot be read has an error."""
        with closing_pool() as pool:
            ahead = 2 * self.model.batch_size
            if self.segmenter is not None:
                seen = in_order(pool, self._read_for_segmenter, files, 2 * self.segmenter.batch_size)
                yield from _ask(self.model, in_order(pool, self._read_again, _ask(self.segmenter, seen), ahead))
            else:
                yield from _ask(self.model, in_order(pool, self._read, files, ahead))

    def mask(self, answer: Answer) -> Mask:
        """Return the mask of an answer, bool (height, width)."""
        assert answer.lesion is not None, "whoever asks looks at `model.segments`"
        assert isinstance(self.model, TrainedModel)
        return self.model.mask(answer.lesion, answer.view)

    def _read(self, file: ImageFile) -> Answer:
        return _told(file, count_pixels(file), lambda: self._input(file, None, "otsu"))

    def _input(self, file: ImageFile, mask: Mask | None, source: str) -> Answer:
        """Return the input of the model: features in a mask, or a square cropped to the mask."""
        if isinstance(self.model, ClassicalModel) and self.model.families:
            return _measure(self.model, file, mask, source)
        return _preprocess(self.preprocessing, file, None if mask is None else mask_extent(mask))

    def _read_for_segmenter(self, file: ImageFile) -> Answer:
        segmenter = self.segmenter
        assert segmenter is not None
        return _told(file, count_pixels(file), lambda: _preprocess(segmenter.preprocessing, file))

    def _read_again(self, seen: Answer) -> Answer:
        """Read an image a second time, and crop or measure it by the predicted mask.

        Images kept in between would fill the memory.
        """
        if seen.error:
            return seen

        def read() -> Answer:
            assert self.segmenter is not None
            assert seen.lesion is not None
            return self._input(seen.file, self.segmenter.mask(seen.lesion, seen.view), SEGMENTER)

        return _told(seen.file, seen.view.width * seen.view.height, read)


def _preprocess(preprocessing: Preprocessing, file: ImageFile, extent: Box | None = None) -> Answer:
    square = preprocessing.apply(file, extent)
    return Answer(file, pixels=square.pixels, view=square.view, masks=square.source)


def load_answerer(run: str, store: RunStore | None = None, masks: str | None = None) -> Answerer:
    """Load a finished run with all that it needs to answer on images.

    Args:
        run: run id, folder of artifacts, or registered model.
        store: MLflow store. None takes the default store, which a folder does not need.
        masks: whose masks cut the images of a run on crops, or hand-made features are measured in: otsu, or run:RUN of a segmenter.
            None for the run's own way: Otsu's threshold, or its copy of the segmenter.

    Raises:
        ConfigError: `masks` does not fit the run, or is needed: new images have no true masks.
        RunError: no such run, one that did not finish, or that lacks a file.
        WeightsError: a checkpoint cannot be used.
    """
    if masks not in (None, "otsu") and not segmenter_run(masks or ""):
        raise ConfigError(f"--masks is {masks!r}; give otsu, or run:RUN of a segmenter.")
    finished = FinishedRun(run, store)
    model = load_model(finished.model_folder)
    data = model.settings["data"]
    measures = isinstance(model, ClassicalModel) and bool(model.families)
    if not data.get("crop") and not measures:
        if masks is not None:
            raise ConfigError(
                f"--masks is {masks}; it is for runs on crops or hand-made features, and {run} was trained on whole images."
            )
        return Answerer(model)
    margin, source = float(data["crop_margin"]), masks or _own_masks(finished, measures)
    if source == "otsu":
        return Answerer(model, None if measures else Crop("otsu", margin))
    if masks is not None:
        segmenter = load_segmenter(segmenter_run(masks), store or RunStore(), f"--masks {masks}")
    else:
        for name in MODEL_FILES:
            finished.file(f"{SEGMENTER}/{name}")
        segmenter = TrainedModel(finished.folder / SEGMENTER)
    return Answerer(model, None if measures else Crop(SEGMENTER, margin), segmenter)


def _own_masks(run: FinishedRun, measures: bool) -> str:
    """Return the mask source of the run, if new images can have the same."""
    masks = used_mask_source(str(run.settings["data.masks"]), run.mask_sources)
    if masks in ("auto", "truth"):
        raise ConfigError(
            f"{run.name} was trained on images {'measured in' if measures else 'cut by'} their true masks (data.masks {masks}), which new "
            f"images do not have. Say whose masks {'these are measured in' if measures else 'cut these'}: --masks run:RUN of a "
            "segmenter, or --masks otsu (Otsu's threshold)."
        )
    return masks


def _measure(model: ClassicalModel, file: ImageFile, mask: Mask | None, source: str) -> Answer:
    """Measure the features of an image, from which the model predicts later."""
    measured = measure(file, mask, source, model.families, model.preprocessing.clean)
    features = np.array([measured[name] for name in model.columns], dtype=np.float32)
    width, height = measured["width"], measured["height"]
    return Answer(file, features=features, view=View(width, height, (0, 0, width, height)), masks=measured["masks"])


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Yield `work` of every item, in order, done in the pool's threads; at most `ahead` are begun before they are asked for."""
    begun: deque[Future[Result]] = deque()
    for item in items:
        begun.append(pool.submit(work, item))
        if len(begun) > ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


@contextlib.contextmanager
def closing_pool() -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of one thread a core; at the end what was not begun is dropped."""
    # threads, since Pillow decodes and resizes, and numpy computes, without Python's lock
    pool = ThreadPoolExecutor(min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def room_for(pixels: int) -> contextlib.AbstractContextManager[Any]:
    """Return what to hold while working on an image of so many pixels: large ones wait for each other."""
    return _large if pixels >= LARGE else contextlib.nullcontext()


def _told(file: ImageFile, pixels: int, read: Callable[[], Answer]) -> Answer:
    """Return what was read, or why it cannot be used."""
    try:
        with room_for(pixels):
            return read()
    except BadImage as error:
        return Answer(file, str(error))
    except OSError as error:
        return Answer(file, f"cannot be read: {error.strerror or error}")
    except MemoryError:
        return Answer(file, "needs more memory than there is; scale it down")


def _ask(model: AnyModel, images: Iterable[Answer]) -> Iterator[Answer]:
    """Fill in what a model says, in full batches of images that could be read."""
    batch: list[Answer] = []
    good = 0
    for image in images:
        batch.append(image)
        good += not image.error
        if good == model.batch_size or len(batch) > 8 * model.batch_size:
            yield from _ask_batch(model, batch)
            batch, good = [], 0
    yield from _ask_batch(model, batch)


def _ask_batch(model: AnyModel, batch: list[Answer]) -> Iterator[Answer]:
    given = [image.pixels if image.features is None else image.features for image in batch if not image.error]
    inputs = [one for one in given if one is not None]
    if not inputs:
        yield from batch
        return
    said = model.answer(np.stack(inputs))
    row = 0
    for image in batch:
        if image.error:
            yield image
            continue
        lesion, logits, probability = (
            None if values is None else values[row] for values in (said.lesion, said.logits, said.probability)
        )
        row += 1
        if all(values is None or np.isfinite(values).all() for values in (lesion, probability)):
            yield replace(image, lesion=lesion, logits=logits, probability=probability)
        else:
            yield Answer(image.file, "has no answer: the model gives NaN")
