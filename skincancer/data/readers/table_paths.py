"""Image files that a table names."""

from __future__ import annotations

import os
from collections import defaultdict
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

import pandas as pd

from skincancer.data.image_files import ImageSearch
from skincancer.data.index import name_first
from skincancer.errors import DataError


class ImageFiles:
    """Files below the folder of a table, or below the folder of its images.

    A table may come from another person. Therefore files outside these two folders are not read, and neither `..` nor links
    lead there.

    Args:
        table: The table.
        images: `data.images`, None for the folder of the table.

    Raises:
        DataError: `images` is no folder.
    """

    def __init__(self, table: Path, images: Path | None = None) -> None:
        self.table, self.home = table, table.parent
        if images is not None and not images.is_dir():
            raise DataError(f"data.images is {images}, which is not a folder. Set it to the folder of the images.")
        self.folders = [self.home] if images is None else [images, self.home]
        self._real = tuple(os.path.realpath(folder) for folder in self.folders)
        self._real_folder = cache(os.path.realpath)

    def find(self, column: str, values: pd.Series) -> tuple[list[str], list[str]]:
        """Find the file of each row.

        A value is a path relative to one of the folders, an absolute path below one of them, or the end of the path of a
        single file there, with or without its extension.

        Args:
            column: Column of the table, for messages.
            values: Cells, labelled by row; "" for no file, which an `image` may not be.

        Returns:
            Paths relative to the folder of the table, and paths without extension as in the table.

        Raises:
            DataError: A file is missing, ambiguous or outside the folders, or an image is empty.
        """
        if column == "image" and (values == "").any():
            raise DataError(f"{self.table}: {(values == '').sum()} rows have no image")
        paths, ids = [], []
        absolute, outside, several, missing = list[str](), list[str](), list[str](), list[str]()
        for number, value in zip(values.index + 1, values, strict=True):
            text = self._relative(value) if os.path.isabs(value) else value
            paths.append("")
            ids.append("")
            if value == "":
                continue
            if text is None:
                absolute.append(value)
                continue
            if "\\" in text and not os.path.isfile(self.home / text):
                text = text.replace("\\", "/")
            matches = self._candidates(text)
            if Path(os.path.normpath(text)).parts[0] == ".." or any(not self._is_inside(path) for path in matches[:1]):
                # The folder of the real file is the remedy.
                real = os.path.realpath(matches[0] if matches else self.folders[0] / text)
                outside.append(f"{value} (row {number}, in {os.path.dirname(real)})")
            elif not matches:
                missing.append(f"{value} (row {number})")
            elif len(matches) > 1:
                several.append(f"{value} (row {number}: {name_first(map(str, matches), 2)})")
            else:
                paths[-1] = self._to_home(matches[0], text)
                has_extension = PurePosixPath(text).name == matches[0].name
                ids[-1] = PurePosixPath(text).with_suffix("").as_posix() if has_extension else text
        folders = " and ".join(map(str, self.folders))
        if absolute:
            raise DataError(
                f"{self.table}: {column} is an absolute path outside {folders}: {name_first(absolute)}. Use paths relative to the "
                "folder of the table, or set --data.images to the folder of the files."
            )
        if outside:
            raise DataError(
                f"{self.table}: the {column} of {len(outside)} rows is outside {folders}, by .. or by a link: {name_first(outside, 3)}. "
                "Set --data.images to the folder of the real files."
            )
        if several:
            raise DataError(
                f"{self.table}: the {column} of {len(several)} rows can be several files: {name_first(several)}. Write the paths with "
                "folder and extension, or set --data.images to the folder of one of them."
            )
        if missing:
            raise DataError(
                f"{self.table}: the {column} of {len(missing)} of {len(values)} rows after the header does not exist: "
                f"{name_first(missing)}. Paths are relative to {folders}: copy the files there, fix the paths, delete the rows, or set "
                "--data.images to the folder of the files."
            )
        return paths, ids

    def _relative(self, value: str) -> str | None:
        """Return an absolute path relative to a folder, None outside all folders."""
        for folder, real in zip(self.folders, self._real, strict=True):
            for base in (folder, real):
                if PurePosixPath(value).is_relative_to(base):
                    return PurePosixPath(value).relative_to(base).as_posix()
        return None

    def _candidates(self, text: str) -> list[Path]:
        for folder in self.folders:
            if os.path.isfile(folder / text):
                return [folder / text]
        name = PurePosixPath(text)
        for listing in self._listings:
            matches = [
                path
                for path in listing.get(name.name, ())
                if path.as_posix().endswith(f"/{name}") or path.with_suffix("").as_posix().endswith(f"/{name}")
            ]
            if matches:
                return matches
        return []

    @cached_property
    def _listings(self) -> list[dict[str, list[Path]]]:
        """Image files below each folder by name, with and without extension."""
        listings = []
        for folder in self.folders:
            listing: dict[str, list[Path]] = defaultdict(list)
            for path in ImageSearch().walk(folder).values():
                listing[path.name].append(path)
                listing[path.stem].append(path)
            listings.append(listing)
        return listings

    def _is_inside(self, path: Path) -> bool:
        real = os.path.realpath(path) if path.is_symlink() else os.path.join(self._real_folder(path.parent), path.name)
        return any(os.path.commonpath([real, folder]) == folder for folder in self._real)

    def _to_home(self, path: Path, text: str) -> str:
        if path == self.home / text:
            return text
        # Links make the path of a parent folder ambiguous, so both paths are real.
        if path.is_relative_to(self.home):
            return path.relative_to(self.home).as_posix()
        folder = os.path.relpath(self._real_folder(path.parent), self._real[-1])
        return PurePosixPath(folder, path.name).as_posix()
