"""A data set as an audit takes it: the index with the facts about its files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from skincancer.data.cache import ProgressBar
from skincancer.data.catalog import Dataset
from skincancer.data.file_facts import Examination, examine
from skincancer.data.index import image_root, load_index
from skincancer.data.prepare import locate_dataset
from skincancer.errors import ConfigError, DataError
from skincancer.schema import DataConfig
from skincancer.system.paths import cache_folder

SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Located:
    """A data set's index, and where it lies."""

    entry: Dataset
    root: Path
    index: pd.DataFrame
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Examined(Located):
    """A data set's index and the facts about its files."""

    facts: Examination

    @property
    def readable(self) -> pd.DataFrame:
        """Return the facts about the images that can be read, by their row of the index."""
        return self.facts.table[self.facts.table["error"] == ""]


def load(config: DataConfig, progress: ProgressBar | None = None) -> Located:
    """Find a data set and read its index.

    Raises:
        DataError: the data are missing or laid out differently.
    """
    entry, root = locate_dataset(config, progress)
    return Located(entry, root, *load_index(entry, root))


def examine_files(own: Located, progress: ProgressBar | None = None, jobs: int = -1) -> Examined:
    """Examine the files of a data set.

    Raises:
        DataError: files are gone, or the cache cannot be written.
    """
    told = progress(f"examining {own.entry.name}") if progress else None
    facts = examine(own.index, image_root(own.root), cache_folder(), told, jobs)
    return Examined(own.entry, own.root, own.index, own.classes, facts)


def check_other(own: Located, other: Located) -> None:
    """Refuse to compare a data set with itself, by whatever name or path it is given again.

    Raises:
        ConfigError: both have the same image files.
        DataError: files are gone.
    """
    if _files(own) == _files(other):
        raise ConfigError(
            f"--against is {other.entry.name}, the data set itself: {other.root} holds the very image files of {own.root}. Copies inside "
            "it are looked for without --against; give another data set, or another folder with --against.root."
        )


def _files(own: Located) -> set[tuple[int, int]]:
    """Return what the file system knows the images by, whatever paths and links lead to them."""
    folder, found = image_root(own.root), set()
    for name in own.index["image"]:
        try:
            stat = os.stat(folder / name)
        except OSError as error:
            raise DataError(
                f"{folder / name} cannot be read: {error.strerror}. Make it readable and run again."
            ) from error
        found.add((stat.st_dev, stat.st_ino))
    return found


def check_enough(own: Examined) -> None:
    """Refuse a data set in which nothing can be compared.

    Raises:
        DataError: fewer than two images can be read; names the files that cannot.
    """
    count = len(own.readable)
    if count >= 2:
        return
    bad = own.facts.table.loc[own.facts.table["error"] != "", "error"]
    reasons = "".join(f"\n  {error}" for error in bad.head(SHOWN_ERRORS))
    more = f"\n  … and {len(bad) - SHOWN_ERRORS} more" if len(bad) > SHOWN_ERRORS else ""
    cause = (
        f" {len(bad)} of {len(own.index)} cannot be used:{reasons}{more}\nMend these," if len(bad) else " Add images,"
    )
    raise DataError(
        f"{own.entry.name} in {own.root} has {count or 'no'} readable image{'' if count == 1 else 's'}, and an audit compares images."
        f"{cause} or compare it with another data set (--against NAME)."
    )
