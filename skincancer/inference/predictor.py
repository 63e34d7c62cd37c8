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
from skincancer.data.mask_sources import RUN, own_masks
from skincancer.errors import ConfigError
from skincancer.imaging.crop import Crop, Cropped, decode_crop
from skincancer.imaging.decode import BadImage, ImageFile, count_pixels, decode
from skincancer.imaging.mask_operations import mask_extent
from skincancer.imaging.types import Box, Mask
from skincancer.inference.classical_model import ClassicalModel
from skincancer.inference.model import AnyModel, TrainedModel, load_model, load_segmenter
from skincancer.runs.artifacts import MODEL_FILES, SEGMENTER
from skincancer.runs.finished import FinishedRun
from skincancer.runs.store import RunStore

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGE = (
    25_000_000  # px: from here on, images are worked on one at a time, so that memory does not grow with the threads
)
_large = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """What a run says of one image; `error` says why it says nothing.

    `pixels` uint8 (S, S, 3), what the model sees, or `features` float32 (F,), hand-made ones that it takes instead; `width` and
    `height` of the original as its EXIF orientation shows it, px, and the `box` of it that `pixels` show;
    `masks` says whose mask it was cut by or measured in (otsu, segmenter; empty where that shows no lesion), "" of whole images;
    `lesion` float32 (S, S), `logits` float32 (C,) and `probability` float64 (C,): see `trained.Answers`.
    """

    file: ImageFile
    error: str = ""
    pixels: npt.NDArray[np.uint8] | None = None
    features: npt.NDArray[np.float32] | None = None
    width: int = 0
    height: int = 0
    box: Box | None = None
    masks: str = ""
    lesion: npt.NDArray[np.float32] | None = None
    logits: npt.NDArray[np.float32] | None = None
    probability: npt.NDArray[np.float64] | None = None


class Answerer:
    """Answers on images, any number of them in the same memory.

    Args:
        model: a finished run's.
        crop: how images are cut to their lesions first; None for whole images.
        segmenter: gives the masks to cut by, where `crop` names one, or to measure hand-made features in, which are else Otsu's.
    """

    def __init__(self, model: AnyModel, crop: Crop | None = None, segmenter: TrainedModel | None = None) -> None:
        self.model, self.crop, self.segmenter = model, crop, segmenter

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
        return self.model.mask(answer.lesion, answer.width, answer.height, answer.box)

    def _read(self, file: ImageFile) -> Answer:
        model = self.model

        def read() -> Answer:
            if isinstance(model, ClassicalModel) and model.families:
                return _measure(model, file, "otsu", None)
            if self.crop is None:
                return _read_whole(file, model)
            cut = decode_crop(file, None, model.size, model.resize, self.crop, steps=model.clean)
            return _answer_cut(file, cut)

        return _told(file, count_pixels(file), read)

    def _read_for_segmenter(self, file: ImageFile) -> Answer:
        segmenter = self.segmenter
        assert segmenter is not None
        return _told(file, count_pixels(file), lambda: _read_whole(file, segmenter))

    def _read_again(self, seen: Answer) -> Answer:
        """Read an image a second time, and cut it by, or measure it in, the mask that the segmenter gave.

        Kept meanwhile, images would fill the memory.
        """
        if seen.error:
            return seen

        def read() -> Answer:
            assert self.segmenter is not None
            assert seen.lesion is not None
            model, mask = self.model, self.segmenter.mask(seen.lesion, seen.width, seen.height, seen.box)
            if isinstance(model, ClassicalModel) and model.families:
                return _measure(model, seen.file, RUN, mask)
            assert self.crop is not None
            cut = decode_crop(seen.file, None, model.size, model.resize, self.crop, mask_extent(mask), model.clean)
            return _answer_cut(seen.file, cut)

        return _told(seen.file, seen.width * seen.height, read)


def _answer_cut(file: ImageFile, cut: Cropped) -> Answer:
    return Answer(file, "", cut.pixels, width=cut.width, height=cut.height, box=cut.box, masks=_whose(cut.masks))


def _whose(masks: str) -> str:
    return SEGMENTER if masks.startswith(RUN) else masks


def _read_whole(file: ImageFile, model: AnyModel) -> Answer:
    """Read an image as a model's own were, but for crops."""
    found = decode(file, None, model.size, model.resize, model.clean)
    return Answer(file, "", found.pixels, width=found.width, height=found.height, box=found.box)


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
    if masks is not None and masks != "otsu" and not (masks.startswith(RUN) and masks != RUN):
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
        segmenter = load_segmenter(masks.removeprefix(RUN), store or RunStore(), f"--masks {masks}")
    else:
        for name in MODEL_FILES:
            finished.file(f"{SEGMENTER}/{name}")
        segmenter = TrainedModel(finished.folder / SEGMENTER)
    return Answerer(model, None if measures else Crop(RUN + segmenter.digest, margin), segmenter)


def _own_masks(run: FinishedRun, measures: bool) -> str:
    """Return the mask source of the run, if new images can have the same."""
    masks = own_masks(str(run.settings["data.masks"]), run.mask_sources)
    if masks in ("auto", "truth"):
        raise ConfigError(
            f"{run.name} was trained on images {'measured in' if measures else 'cut by'} their true masks (data.masks {masks}), which new "
            f"images do not have. Say whose masks {'these are measured in' if measures else 'cut these'}: --masks run:RUN of a "
            "segmenter, or --masks otsu (Otsu's threshold)."
        )
    return masks


def _measure(model: ClassicalModel, file: ImageFile, source: str, mask: Mask | None) -> Answer:
    """Return the features of an image, which its answer is then taken from."""
    found = measure(file, None, source, mask, model.families, model.clean)
    features = np.array([found[name] for name in model.columns], dtype=np.float32)
    return Answer(file, features=features, width=found["width"], height=found["height"], masks=_whose(found["masks"]))


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
