"""Build a cached folder once, under a lock."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor

from skincancer.errors import DataError

SINGLE = 4  # tasks that are done without workers
Progress = Callable[[int, int], None]


def build_once(folder: Path, root: Path, build: Callable[[Path], None], needs: str) -> None:
    """Have a folder of the cache built where it does not exist: under a lock, elsewhere, and renamed when complete.

    Args:
        folder: to be there afterwards.
        root: the data set's folder, whose unreadable files are told as such.
        build: fills an empty folder.
        needs: how much room that takes, for the error.

    Raises:
        DataError: files are gone, or the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            return
        with FileLock(f"{folder}.lock"):
            if folder.is_dir():
                return
            for left in folder.parent.glob(f"{folder.name}.tmp*"):  # of a killed build: nobody else holds the lock
                shutil.rmtree(left)
            building = folder.with_name(f"{folder.name}.tmp{os.getpid()}")
            building.mkdir()
            try:
                build(building)
                os.rename(building, folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"the disk under {folder.parent.parent} is full: {needs}. Free some space, or set SKINCANCER_CACHE to another disk."
            ) from error
        if error.filename and str(error.filename).startswith(str(root)):
            raise DataError(
                f"{error.filename} cannot be read: {error.strerror}. Make it readable and run again."
            ) from error
        raise DataError(
            f"the store under {folder.parent.parent} cannot be written: {error}. Set SKINCANCER_CACHE to a writable folder."
        ) from error


def in_processes(work: Callable[..., list[Any]], tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[list[Any]]:
    """Yield `work(*task)` of every task, in order, done in worker processes where there are more than a few tasks.

    Args:
        work: a function of a module, so that it can be sent.
        tasks: arguments of one call each.
        jobs: processes; -1 for one a core.
    """
    # a pool takes a second to start: not worth it for a handful of images
    pooled = jobs != 1 and len(tasks) > SINGLE
    with Parallel(n_jobs=jobs if pooled else 1, return_as="generator") as pool:
        yield from pool(delayed(work)(*task) for task in tasks)
    if pooled:  # idle workers would live on for minutes, and hold the run's output open
        get_reusable_executor().shutdown(wait=True)


def files_key(index: pd.DataFrame, root: Path, recipe: dict[str, Any], masks: bool) -> str:
    """Return the name of what is made of the files of an index: a hash of ids, paths, file sizes and times, and the recipe.

    Args:
        index: columns image_id, image, mask (paths relative to `root`).
        root: the data set's folder.
        recipe: what is made of them, as JSON has it.
        masks: whether the masks are read too.

    Raises:
        DataError: files are gone.
    """
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    columns = ["image", "mask"] if masks else ["image"]
    gone = []
    for row in index[["image_id", *columns]].itertuples(index=False):
        for path in row[1:]:
            if path is None:
                continue
            try:
                stat = os.stat(root / path)
            except OSError:
                gone.append(str(path))
                continue
            digest.update(f"{row[0]}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    if gone:
        raise DataError(f"{len(gone)} files of the index are not under {root}, such as {', '.join(gone[:5])}.")
    return digest.hexdigest()[:32]


ProgressBar = Callable[[str], Progress]  # a title to a callback (done, total)
