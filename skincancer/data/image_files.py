"""Search of image files: hidden files, links, and files that are not read.

Every reader and predict search folders here. A real file, identified by device and inode, is found once.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from skincancer.errors import DataError
from skincancer.imaging.formats import IMAGE_SUFFIXES, install_command, is_image_name, is_mask_name, missing_extra

# Files and folders that systems and archives add.
LITTER = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information", "lost+found")
# Endings and names that nobody expects to be read as images.
_OTHERS = (
    ".txt", ".md", ".rst", ".csv", ".tsv", ".tab", ".json", ".jsonl", ".xml", ".html", ".yaml", ".yml", ".toml", ".ini", ".log", ".py",
    ".ipynb", ".m", ".doc", ".docx", ".odt", ".xls", ".xlsx", ".ods", ".pdf", ".bib", ".db", ".zip", ".gz", ".tar", ".rar", ".7z",
    ".npy", ".npz", ".mat", ".pt", ".pth", ".h5", ".parquet", ".md5", ".sha256",
)  # fmt: skip
_OTHER_NAMES = ("license", "licence", "readme", "attribution", "makefile", "checksums", "md5sums", "sha256sums")
_SHOWN = 5


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or litter of an archive."""
    return name.startswith(".") or name.casefold() in LITTER


def file_key(path: Path | str) -> Hashable:
    """Return device and inode of a file or folder, links resolved.

    Raises:
        OSError: the file does not exist or is not accessible.
    """
    stat = os.stat(path)
    # Some network file systems have no inodes.
    return (stat.st_dev, stat.st_ino) if stat.st_ino else os.path.realpath(path)


class ImageSearch:
    """Search of image files, with a record of what was left out.

    Args:
        without: folders that are not searched.
    """

    def __init__(self, without: Sequence[Path] = ()) -> None:
        self.without = [Path(os.path.abspath(folder)) for folder in without]
        self.skipped: Counter[str] = Counter()
        self.loops = dict[Path, None]()
        self.repeated = 0

    def list_entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """List visible files and folders in a folder, sorted.

        Raises:
            DataError: the folder cannot be read, or a link is broken.
        """
        try:
            with os.scandir(folder) as entries:
                visible = sorted(
                    (entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name
                )
        except OSError as error:
            raise DataError(f"{folder} cannot be read as a folder: {error.strerror}. Make it readable.") from error
        check_links(Path(entry.path) for entry in visible if entry.is_symlink() and not is_other(entry.name))
        # Broken links of other files are ignored.
        visible = [entry for entry in visible if not entry.is_symlink() or os.path.exists(entry.path)]
        return [entry for entry in visible if not (self.without and Path(os.path.abspath(entry.path)) in self.without)]

    def list_folders(self, folder: Path) -> list[Path]:
        """List visible folders in a folder, sorted, without links to a folder above.

        Raises:
            DataError: as in `list_entries`, or the name of a folder is not valid UTF-8.
        """
        above, folders = _above(folder), list[Path]()
        for entry in self.list_entries(folder):
            if entry.is_dir():
                if entry.is_symlink() and file_key(entry.path) in above:
                    self.loops[Path(entry.path)] = None
                else:
                    folders.append(Path(entry.path))
        check_names(folders)
        return folders

    def list_images(self, folder: Path) -> list[Path]:
        """List the image files directly in a folder, sorted, and ignore masks."""
        files = [entry for entry in self.list_entries(folder) if not is_mask_name(entry.name) and entry.is_file()]
        return [Path(entry.path) for entry in files if self.is_image(entry.name)]

    def walk(self, folder: Path) -> dict[Hashable, Path]:
        """Find the image files in a folder and its subfolders, each real file once.

        Real files and folders win over links to them.

        Returns:
            Path by `file_key`, sorted by path.

        Raises:
            DataError: as in `list_entries`.
        """
        images: dict[Hashable, Path] = {}
        visited: set[Hashable] = {file_key(folder)}
        waiting, links = deque([(folder, _above(folder))]), deque[tuple[os.DirEntry[str], set[Hashable]]]()
        while waiting or links:
            if waiting:
                current, above = waiting.popleft()
                for entry in self.list_entries(current):
                    is_folder = entry.is_dir()
                    if entry.is_symlink():
                        if is_folder or self.is_image(entry.name):
                            links.append((entry, above))
                    elif is_folder:
                        if (key := file_key(entry.path)) not in visited:
                            visited.add(key)
                            waiting.append((Path(entry.path), above | {key}))
                    elif self.is_image(entry.name) and entry.is_file():
                        self._add(images, entry)
                continue
            # All real folders have been searched. Links of links come last.
            entry, above = links.popleft()
            if not entry.is_dir():
                self._add(images, entry)
            elif (key := file_key(entry.path)) in above:
                self.loops[Path(entry.path)] = None
            elif key in visited:
                self.repeated += 1
            else:
                visited.add(key)
                waiting.append((Path(entry.path), above | _above(Path(entry.path))))
        return dict(sorted(images.items(), key=lambda item: item[1]))

    def _add(self, images: dict[Hashable, Path], entry: os.DirEntry[str]) -> None:
        key = file_key(entry.path)
        if key in images:
            self.repeated += 1
        else:
            images[key] = Path(entry.path)

    def is_image(self, name: str) -> bool:
        """Return whether a file is read as an image, and count skipped files."""
        if is_image_name(name):
            return True
        if not is_hidden(name) and not is_other(name):
            suffix = Path(name).suffix.lower() or "without ending"
            self.skipped[f"*_{Path(name).stem.rsplit('_', 1)[-1]}{suffix}" if is_mask_name(name) else suffix] += 1
        return False

    def describe(self) -> list[str]:
        """Return one sentence per kind of file or link that was left out."""
        notes = []
        if self.skipped:
            count = self.skipped.total()
            notes.append(
                f"skipped {count} file{'s' * (count > 1)} not read as images: {describe_endings(self.skipped)}"
            )
        if self.loops:
            notes.append(f"skipped links to a folder above them: {_join(self.loops)}")
        if self.repeated:
            links = (
                "1 link to an image or folder" if self.repeated == 1 else f"{self.repeated} links to images or folders"
            )
            notes.append(f"skipped {links} read elsewhere in the same folder")
        return notes

    def describe_empty(self) -> str:
        """Return expected endings and skipped files, for the error about a folder without images."""
        skipped = f"; it contains {describe_endings(self.skipped)}" if self.skipped else ""
        return f"expected {' '.join(IMAGE_SUFFIXES)}{skipped}"


def describe_endings(skipped: Counter[str]) -> str:
    """Return counts by ending, most frequent first, with the extra that reads them."""
    texts = []
    for ending, count in skipped.most_common():
        extra = missing_extra(f"x{ending}")
        texts.append(f"{count} {ending}{f' ({install_command(extra)})' if extra else ''}")
    return ", ".join(texts)


def check_names(paths: Iterable[Path]) -> None:
    """Check that file names can be written into tables.

    Raises:
        DataError: a name is not valid UTF-8.
    """
    wrong = [path for path in paths if any("\udc80" <= letter <= "\udcff" for letter in str(path))]
    if wrong:
        names = _join(str(path).encode(errors="surrogateescape").decode(errors="backslashreplace") for path in wrong)
        count = "1 file name is" if len(wrong) == 1 else f"{len(wrong)} file names are"
        raise DataError(f"{count} not valid UTF-8: {names}. Rename these files or folders.")


def check_links(paths: Iterable[Path]) -> None:
    """Check that no path is a link to a missing file.

    Raises:
        DataError: links are broken; with their number, the first links and their targets.
    """
    broken = [path for path in paths if path.is_symlink() and not os.path.exists(path)]
    if broken:
        links = _join(f"{path} -> {os.readlink(path)}" for path in broken)
        count = "1 link is" if len(broken) == 1 else f"{len(broken)} links are"
        raise DataError(f"{count} broken: {links}. Restore the files that links point to, or delete the links.")


def unpacked_root(root: Path) -> Path:
    """Return the folder of a data set inside a folder of the same name.

    Archives often contain a folder of their own name, so that X.zip is unpacked to X/X.
    """
    if not root.is_dir():
        return root
    names = [entry.name for entry in root.iterdir() if not is_hidden(entry.name)]
    if len(names) != 1 or names[0].casefold() != root.name.casefold() or not (root / names[0]).is_dir():
        return root
    inner = root / names[0]
    # A folder of images alone is a class, and no data set.
    content = [entry for entry in inner.iterdir() if not is_hidden(entry.name)]
    is_class = not any(entry.is_dir() or entry.suffix.lower() == ".csv" for entry in content)
    return root if is_class or file_key(inner) in _above(root) else unpacked_root(inner)


def _above(folder: Path) -> set[Hashable]:
    """Return the keys of a folder, of its target, and of all folders above."""
    places = folder.absolute(), Path(os.path.realpath(folder))
    return {file_key(path) for place in places for path in (place, *place.parents)}


def is_other(name: str) -> bool:
    """Return whether a file name is that of a text, table or archive."""
    path = Path(name)
    return path.suffix.lower() in _OTHERS or path.stem.casefold() in _OTHER_NAMES


def _join(values: Iterable[object]) -> str:
    texts = [str(value) for value in values]
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")
