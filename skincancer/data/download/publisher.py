"""Download of a complete data set: `python -m skincancer.prepare NAME --download`.

Received files are kept in the hidden folder `.download` of the root and moved to their places when all are complete, so that an
incomplete data set is never used. `downloads.json` next to the data records URL, date, size and sha256 of each file.

Integrity: the md5 that Harvard Dataverse publishes for each file is checked. The ISIC challenges publish no checksums, so the size stated
by the server and the CRC of each file in an archive are checked. A later download of the same file is compared with the sha256 in
`downloads.json`, also if that file is copied to another machine.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pooch
from filelock import FileLock, Timeout

from skincancer.data.catalog import Dataset, Source
from skincancer.data.download.archives import BadArchive, unpack
from skincancer.data.download.dataverse import list_files
from skincancer.data.download.http import Progress, Refused, ResumingDownloader, mirrored, remote_size
from skincancer.errors import ConfigError, DataError
from skincancer.system.files import check_space, disk_full, write_whole
from skincancer.system.paths import data_places, holds_files, mirror

RECORD = "downloads.json"
WAITING = ".download"

Say = Callable[[str], None]
# Returns a callback (done, total) for a title.
ProgressBar = Callable[[str], Progress]


def check_downloadable(entry: Dataset) -> None:
    """Check that a data set can be downloaded automatically.

    Raises:
        ConfigError: An account or a request is needed, or the data set has no files to download.
    """
    if entry.downloads:
        return
    if entry.synthetic or not entry.citation:
        raise ConfigError(f"{entry.name} has nothing to download. {entry.how_to_get}")
    raise ConfigError(
        f"{entry.title} ({entry.name}) cannot be downloaded automatically: its publisher requires an account or a request. Download "
        f"it yourself: {entry.how_to_get} Expected in the folder: {entry.layout}."
    )


def must_accept(licence: str) -> bool:
    """Return whether the user must accept a licence before the download.

    Creative Commons licences apply by use; other terms of use need explicit agreement.
    """
    return not re.search(r"\bCC0\b|\bCC[ -]BY\b|creativecommons\.org|Creative Commons", licence, re.IGNORECASE)


def download_root(entry: Dataset, root: str | None, env: str | None) -> Path:
    """Return the download folder: the first searched place with files, else the first.

    Raises:
        ConfigError: The place is a file.
    """
    places = list(data_places(entry.name, root, env).values())
    folder = next((place for place in places if holds_files(place)), places[0])
    if folder.is_file():
        raise ConfigError(f"{folder} is a file; use a folder for --download, which is created if needed.")
    return folder


def download(entry: Dataset, root: Path, *, accept: bool, say: Say, progress: ProgressBar) -> None:
    """Download the missing files of a data set.

    A second call on the same folder waits for the first one.

    Args:
        entry: Catalog entry.
        root: Target folder, created if needed. A folder with files from another source is left unchanged.
        accept: The user accepts the terms of use.
        say: Prints a line.
        progress: Returns a callback (done, total) for a title.

    Raises:
        ConfigError: The data set cannot be downloaded automatically, or its terms are not accepted.
        DataError: The server refuses a file, a file is wrong, or the disk is too small.
        KeyboardInterrupt: The user interrupted the download; the received part is kept.
    """
    check_downloadable(entry)
    waiting = root / WAITING
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{WAITING}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another download into {root}")
            lock.acquire()
    except OSError as error:
        raise disk_full(error, root, "creating the folder") from error
    try:
        if holds_files(root) and not (root / RECORD).is_file() and not waiting.is_dir():
            say(f"nothing is downloaded: {root} contains files from another source, which are used unchanged")
            return
        missing = [source for source in entry.downloads if not (root / source.target).exists()]
        if not missing and not waiting.is_dir():
            _check_layout(entry, root, "Delete the wrong files and their entries in downloads.json, and rerun")
            say(f"nothing is downloaded: {root} contains all {len(entry.downloads)} files of {entry.title}")
            return
        _fetch_all(entry, missing, root, accept, say, progress)
    except Refused as error:
        raise Refused(
            f"{error} If it has moved, set SKINCANCER_MIRROR to a server that has it, or download it yourself: "
            f"{entry.how_to_get}"
        ) from error
    except OSError as error:
        raise disk_full(error, root, f"downloading {entry.title}") from error
    except KeyboardInterrupt:
        say(f"interrupted; the received part is kept in {waiting}; rerun the same command to resume")
        raise
    finally:
        lock.release()


def _fetch_all(
    entry: Dataset, missing: list[Source], root: Path, accept: bool, say: Say, progress: ProgressBar
) -> None:
    waiting = root / WAITING
    say(f"licence: {entry.licence}\ncite: {entry.citation}")
    terms = [entry.licence]
    dois = dict.fromkeys(source.url for source in missing if source.url.startswith("doi:"))
    for doi in dois:
        located, doi_terms = list_files(doi, [source for source in missing if source.url == doi])
        missing = [*located, *(source for source in missing if source.url != doi)]
        if doi_terms:
            say(f"the publisher's terms: {doi_terms}")
            terms.append(doi_terms)
    if not accept and any(must_accept(text) for text in terms):
        raise ConfigError(f"{entry.title} requires agreement to the terms above. If you agree, add --accept-licence.")
    missing = [dataclasses.replace(source, url=mirrored(source.url)) for source in missing]
    waiting.mkdir(exist_ok=True)
    before, fetched = _read(root / RECORD), _read(waiting / RECORD)
    todo = [source for source in missing if not (waiting / "ready" / source.target).exists()]
    _check_room(todo, waiting)
    for number, source in enumerate(todo, start=1):
        _fetch(source, f"({number}/{len(todo)}) {source.file}", waiting, before.get(source.file), fetched, progress)
    for source in missing:
        os.rename(waiting / "ready" / source.target, root / source.target)
    try:
        _check_layout(entry, root, f"The files are kept in {waiting}; delete that folder and rerun")
    except DataError:
        # A killed process may have moved some files before, so all files of this download are moved back.
        for source in entry.downloads:
            if source.file in fetched and (root / source.target).exists():
                os.rename(root / source.target, waiting / "ready" / source.target)
        raise
    _write(root / RECORD, before | fetched)
    shutil.rmtree(waiting)
    say(f"{entry.title} is in {root}; the downloaded files are recorded in {RECORD} there")


def _check_layout(entry: Dataset, root: Path, remedy: str) -> None:
    """Check that the files of a folder can be read as the data set."""
    # pandas would slow down `--help`.
    from skincancer.data.index import load_index

    try:
        load_index(entry, root)
    except DataError as error:
        hint = " (SKINCANCER_MIRROR may name a wrong server)" if mirror() else ""
        text = str(error)
        raise DataError(
            f"the files do not have the published layout of {entry.title}: {text}{'' if text.endswith(('.', '?')) else '.'} "
            f"{remedy}{hint}."
        ) from error


def _check_room(todo: list[Source], waiting: Path) -> None:
    """Check the disk space for the data set and one archive.

    An archive is deleted after unpacking, and compressed images keep their size when unpacked.
    """
    sizes = [source.size if source.size is not None else remote_size(source.url) or 0 for source in todo]
    arrived = sum(path.stat().st_size for path in waiting.iterdir() if path.is_file())
    check_space(waiting, max(0, sum(sizes) + max(sizes, default=0) - arrived), "the data set plus one archive")


def _fetch(
    source: Source,
    title: str,
    waiting: Path,
    before: dict[str, Any] | None,
    fetched: dict[str, Any],
    progress: ProgressBar,
) -> None:
    """Download, check and unpack one file to the folder `ready`, and record it."""
    known = source.checksum or (f"sha256:{before['sha256']}" if before else None)
    part = waiting / f"{source.file}.part"
    # pooch would print names of temporary files.
    pooch.get_logger().setLevel(logging.WARNING)
    fetcher = pooch.create(path=waiting, base_url="", registry={source.file: known}, urls={source.file: source.url})
    # pooch writes to a temporary file, compares the checksum, deletes a wrong file and renames a correct one.
    try:
        fetcher.fetch(
            source.file, downloader=ResumingDownloader(part, source.size, progress(f"downloading {title} (MB)"))
        )
    except ValueError as error:
        raise _wrong(source, f"its checksum is not {known}", None if source.checksum else before) from error
    file = waiting / source.file
    digest, size = pooch.file_hash(str(file)), file.stat().st_size
    if before and digest != before["sha256"]:
        file.unlink()
        raise _wrong(source, f"its sha256 is {digest} and not {before['sha256']}", before)
    ready = waiting / "ready" / source.target
    ready.parent.mkdir(exist_ok=True)
    unpacked = waiting / f"{source.target}.unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    if source.file.endswith(".zip"):
        try:
            unpack(file, unpacked, progress(f"unpacking {title}"))
        except BadArchive as error:
            file.unlink()
            raise DataError(f"{error} ({source.url}). It was deleted; rerun to download it again.") from error
        names = sorted(path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file())
        if not any(name.lower().endswith(source.holds) for name in names):
            file.unlink()
            shutil.rmtree(unpacked)
            more = f" and {len(names) - 5} more files" if len(names) > 5 else ""
            raise _wrong(source, f"it contains no *{source.holds}, but {', '.join(names[:5])}{more}", None)
    fetched[source.file] = {
        "url": source.url,
        "bytes": size,
        "sha256": digest,
        "published_checksum": source.checksum,
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write(waiting / RECORD, fetched)
    os.rename(unpacked if unpacked.is_dir() else file, ready)
    file.unlink(missing_ok=True)


def _wrong(source: Source, reason: str, before: dict[str, Any] | None) -> DataError:
    if before is None:
        return DataError(
            f"{source.file} from {source.url} is not the published file: {reason}. It was deleted; rerun to download it again"
            f"{' (SKINCANCER_MIRROR may name a wrong server)' if mirror() else ''}."
        )
    return DataError(
        f"{source.file} from {source.url} differs from the file of {before['fetched']}: {reason}. It was deleted. If its "
        f"publisher has changed it and you want the new file, delete its entry in {RECORD} and rerun."
    )


def _write(path: Path, record: dict[str, Any]) -> None:
    write_whole(path, json.dumps(record, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """Read a record of downloads, {} if the file does not exist.

    Raises:
        DataError: The file cannot be read as a record.
    """
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(entry["sha256"], str) and isinstance(entry["fetched"], str) for entry in record.values()):
            return dict(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{path} is not a record of downloads; fix it, or delete it to skip the comparison.")
