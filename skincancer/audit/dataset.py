"""Data set of an audit: the index and the file facts."""

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
from skincancer.data.reading import Reading
from skincancer.errors import ConfigError, DataError
from skincancer.schema.data import DataConfig
from skincancer.system.paths import cache_folder

SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Located:
    """Index and folder of a data set."""

    entry: Dataset
    root: Path
    index: pd.DataFrame
    classes: tuple[str, ...]
    reading: Reading


@dataclass(frozen=True)
class Examined(Located):
    """Index and file facts of a data set."""

    facts: Examination

    @property
    def readable(self) -> pd.DataFrame:
        """Return the facts about readable images, labelled by row of the index."""
        return self.facts.table[self.facts.table["error"] == ""]


def load(config: DataConfig, progress: ProgressBar | None = None) -> Located:
    """Locate a data set and read its index.

    Raises:
        DataError: data are missing or have another layout.
    """
    entry, root = locate_dataset(config, progress)
    reading = Reading.from_config(config)
    return Located(entry, root, *load_index(entry, root, reading), reading)


def examine_files(own: Located, progress: ProgressBar | None = None, jobs: int = -1) -> Examined:
    """Collect the file facts of a data set.

    Raises:
        DataError: files are missing, or the cache cannot be written.
    """
    bar = progress(f"examining {own.entry.name}") if progress else None
    facts = examine(own.index, image_root(own.root), cache_folder(), bar, jobs)
    return Examined(own.entry, own.root, own.index, own.classes, own.reading, facts)


def check_other(own: Located, other: Located) -> None:
    """Check that two data sets differ, whatever their names and paths.

    Raises:
        ConfigError: both have the same image files.
        DataError: files are missing.
    """
    if _files(own) == _files(other):
        raise ConfigError(
            f"--against is {other.entry.name}, the data set itself: {other.root} contains the same image files as {own.root}. Use another "
            "data set, or another folder with --against.root. Copies within a data set are searched without --against."
        )


def _files(own: Located) -> set[tuple[int, int]]:
    """Return device and inode of each image file, independent of links."""
    folder, files = image_root(own.root), set()
    for name in own.index["image"]:
        try:
            stat = os.stat(folder / name)
        except OSError as error:
            raise DataError(f"{folder / name} cannot be read: {error.strerror}. Make it readable and rerun.") from error
        files.add((stat.st_dev, stat.st_ino))
    return files


def check_enough(own: Examined) -> None:
    """Check that at least two images can be compared.

    Raises:
        DataError: fewer than two images are readable; the message names unreadable files.
    """
    count = len(own.readable)
    if count >= 2:
        return
    bad = own.facts.table.loc[own.facts.table["error"] != "", "error"]
    reasons = "".join(f"\n  {error}" for error in bad.head(SHOWN_ERRORS))
    more = f"\n  … and {len(bad) - SHOWN_ERRORS} more" if len(bad) > SHOWN_ERRORS else ""
    remedy = (
        f" {len(bad)} of {len(own.index)} cannot be used:{reasons}{more}\nFix these files,"
        if len(bad)
        else " Add images,"
    )
    raise DataError(
        f"{own.entry.name} in {own.root} has {count or 'no'} readable image{'' if count == 1 else 's'}; an audit needs two or more."
        f"{remedy} or compare the data set with another one (--against NAME)."
    )
