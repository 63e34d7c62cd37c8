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
from skincancer.imaging.decode import decoding

SINGLE = 4  # Up to this number of tasks, worker processes take longer than they save.
Progress = Callable[[int, int], None]  # Receives the numbers of finished items and of all items.
ProgressBar = Callable[[str], Progress]  # Creates a progress callback from a title.


def build_once(folder: Path, root: Path, build: Callable[[Path], None], needs: str) -> None:
    """Build a folder of the cache if it does not exist.

    The folder is built under a temporary name and renamed, so that a killed build leaves no folder that seems complete. A lock ensures
    that concurrent processes build it once.

    Args:
        build: function that fills an empty folder.
        needs: sentence about the disk space that the folder takes, for the error.

    Raises:
        DataError: files of the data set cannot be read, the cache cannot be written, or the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            return
        with FileLock(f"{folder}.lock"):
            if folder.is_dir():
                return
            # The lock is held, so these folders belong to killed builds.
            for unfinished in folder.parent.glob(f"{folder.name}.tmp*"):
                shutil.rmtree(unfinished)
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
                f"the disk under {folder.parent.parent} is full: {needs}. "
                "Free some space, or set SKINCANCER_CACHE to a folder on another disk."
            ) from error
        if error.filename and str(error.filename).startswith(str(root)):
            raise DataError(
                f"{error.filename} cannot be read: {error.strerror}. Make it readable and rerun."
            ) from error
        raise DataError(
            f"the cache {folder.parent.parent} cannot be written: {error}. Set SKINCANCER_CACHE to a writable folder."
        ) from error


def in_processes(work: Callable[..., list[Any]], tasks: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[list[Any]]:
    """Yield `work(*task)` of every task, in order, from worker processes.

    Args:
        work: function of a module, so that it can be pickled.
        jobs: number of processes, -1 for one per core.
    """
    pooled = jobs != 1 and len(tasks) > SINGLE
    with Parallel(n_jobs=jobs if pooled else 1, return_as="generator") as pool:
        yield from pool(delayed(work)(*task) for task in tasks)
    # Idle workers would run for minutes and keep the output of the run open.
    if pooled:
        get_reusable_executor().shutdown(wait=True)


def files_key(index: pd.DataFrame, root: Path, recipe: dict[str, Any], masks: bool) -> str:
    """Return the cache key of files and a recipe.

    The key is a hash of ids, paths, file sizes, file times and the recipe.

    Args:
        index: columns image_id, image, mask (paths relative to `root`).
        recipe: settings of the cached content, as JSON values.
        masks: include the mask files.

    Raises:
        DataError: files are missing.
    """
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    columns = ["image", "mask"] if masks else ["image"]
    missing = []
    for row in index[["image_id", *columns]].itertuples(index=False):
        for path in row[1:]:
            if path is None:
                continue
            try:
                stat = os.stat(root / path)
            except OSError:
                missing.append(str(path))
                continue
            digest.update(f"{row[0]}\0{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n{decoding(root / path)}".encode())
    if missing:
        raise DataError(
            f"{len(missing)} files of the index are missing in {root}, such as {', '.join(missing[:5])}. Restore them and rerun."
        )
    return digest.hexdigest()[:32]
