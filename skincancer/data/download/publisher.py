"""A data set from its publisher into its folder, whole or not at all: `python -m skincancer.prepare NAME --download`.

What has arrived waits in the hidden folder `.download` of the root, so that a data set of which half is there is never taken for a whole
one; when the last file is there, all are moved to their places. `downloads.json` beside the data then says of each file where it came
from, when, and its length and sha256.

How far the bytes can be trusted: Harvard Dataverse publishes an md5 of each file, which is checked. The ISIC challenges publish none:
there the length that the server names and, of archives, the CRC of each file are checked. A later download of the same file, here or
wherever `downloads.json` is put, is compared with the sha256 that was recorded.
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
ProgressBar = Callable[[str], Progress]  # a title to a callback (done, total)


def check_downloadable(entry: Dataset) -> None:
    """Raise what to do by hand where a data set cannot be fetched.

    Raises:
        ConfigError: an account or a request is needed, or there is nothing to fetch.
    """
    if entry.downloads:
        return
    if entry.synthetic or not entry.citation:
        raise ConfigError(f"{entry.name} has nothing to download. {entry.how_to_get}")
    raise ConfigError(
        f"{entry.title} ({entry.name}) cannot be downloaded without you: its publisher wants an account or a request. By hand: "
        f"{entry.how_to_get} Expected in the folder: {entry.layout}."
    )


def must_accept(licence: str) -> bool:
    """Say whether a licence is one to agree to first. Creative Commons licences hold by use; terms of use want a yes."""
    return not re.search(r"\bCC0\b|\bCC[ -]BY\b|creativecommons\.org|Creative Commons", licence, re.IGNORECASE)


def download_root(entry: Dataset, root: str | None, env: str | None) -> Path:
    """Return the folder to fetch into: the first of the places looked at that holds files, else the first.

    Raises:
        ConfigError: it is a file.
    """
    places = list(data_places(entry.name, root, env).values())
    found = next((place for place in places if holds_files(place)), places[0])
    if found.is_file():
        raise ConfigError(f"{found} is a file; --download needs a folder, which it makes where there is none.")
    return found


def download(entry: Dataset, root: Path, *, accept: bool, say: Say, progress: ProgressBar) -> None:
    """Fetch what of a data set is missing in its folder; another call on the same folder waits for this one.

    Args:
        entry: of the catalog.
        root: the folder; made where it does not exist. Where it holds files that no download put there, they are left as they are.
        accept: the user agrees to terms of use.
        say: prints a line.
        progress: makes a callback (done, total) from a title.

    Raises:
        ConfigError: it cannot be fetched, or its terms are not accepted.
        DataError: the server does not give a file, a file is not what it should be, or the disk is too small.
        KeyboardInterrupt: as it came; what has arrived is kept.
    """
    check_downloadable(entry)
    waiting = root / WAITING
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{WAITING}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another download into {root} is under way; waiting for it")
            lock.acquire()
    except OSError as error:
        raise disk_full(error, root, "making the folder") from error
    try:
        if holds_files(root) and not (root / RECORD).is_file() and not waiting.is_dir():
            say(f"nothing is fetched: {root} holds files that no download put there, and they are taken as they are")
            return
        missing = [source for source in entry.downloads if not (root / source.target).exists()]
        if not missing and not waiting.is_dir():
            _check_layout(entry, root, "Delete what is wrong there, and its entry in downloads.json, to fetch it anew")
            say(f"nothing is fetched: {root} holds all {len(entry.downloads)} files of {entry.title}")
            return
        _fetch_all(entry, missing, root, accept, say, progress)
    except Refused as error:
        raise Refused(
            f"{error} If it has moved, SKINCANCER_MIRROR can name a server that holds it. By hand: {entry.how_to_get}"
        ) from error
    except OSError as error:
        raise disk_full(error, root, f"fetching {entry.title}") from error
    except KeyboardInterrupt:
        say(f"interrupted; what has come is kept in {waiting}, and the same command goes on from there")
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
        located, told = list_files(doi, [source for source in missing if source.url == doi])
        missing = [*located, *(source for source in missing if source.url != doi)]
        if told:
            say(f"the publisher's terms: {told}")
            terms.append(told)
    if not accept and any(must_accept(text) for text in terms):
        raise ConfigError(f"{entry.title} is given under the terms above. If you agree, add --accept-licence.")
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
        _check_layout(entry, root, f"What came is kept in {waiting}; delete that folder to fetch anew")
    except DataError:
        # all that this download brought: a killed call may have moved some of it before
        for source in entry.downloads:
            if source.file in fetched and (root / source.target).exists():
                os.rename(root / source.target, waiting / "ready" / source.target)
        raise
    _write(root / RECORD, before | fetched)
    shutil.rmtree(waiting)
    say(f"{entry.title} is in {root}; what came is recorded in {RECORD} there")


def _check_layout(entry: Dataset, root: Path, remedy: str) -> None:
    """Raise a DataError that ends in `remedy` where the files of a folder are not the data set."""
    from skincancer.data.index import load_index  # pandas, which no --help waits for

    try:
        load_index(entry, root)
    except DataError as error:
        hint = " (SKINCANCER_MIRROR may name a wrong server)" if mirror() else ""
        text = str(error)
        raise DataError(
            f"what came is not {entry.title} as its publisher lays it out: {text}{'' if text.endswith(('.', '?')) else '.'} "
            f"{remedy}{hint}."
        ) from error


def _check_room(todo: list[Source], waiting: Path) -> None:
    """Check the disk for all that is to come; an archive is deleted once unpacked, and images do not grow by it."""
    sizes = [source.size if source.size is not None else remote_size(source.url) or 0 for source in todo]
    arrived = sum(path.stat().st_size for path in waiting.iterdir() if path.is_file())
    check_space(
        waiting, max(0, sum(sizes) + max(sizes, default=0) - arrived), "the data set with one archive beside it"
    )


def _fetch(
    source: Source,
    title: str,
    waiting: Path,
    before: dict[str, Any] | None,
    fetched: dict[str, Any],
    progress: ProgressBar,
) -> None:
    """Fetch one file, check and unpack it; it then stands in the folder `ready`, and in the record of what was fetched."""
    known = source.checksum or (f"sha256:{before['sha256']}" if before else None)
    part = waiting / f"{source.file}.part"
    pooch.get_logger().setLevel(logging.WARNING)  # it would name temporary files
    fetcher = pooch.create(path=waiting, base_url="", registry={source.file: known}, urls={source.file: source.url})
    # pooch writes elsewhere, compares the checksum, deletes what is wrong, and only then gives the file its name
    try:
        fetcher.fetch(source.file, downloader=ResumingDownloader(part, source.size, progress(f"fetching {title} (MB)")))
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
            raise DataError(f"{error} ({source.url}). It was deleted; run again to fetch it anew.") from error
        names = sorted(path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file())
        if not any(name.lower().endswith(source.holds) for name in names):
            file.unlink()
            shutil.rmtree(unpacked)
            more = f" and {len(names) - 5} more files" if len(names) > 5 else ""
            raise _wrong(source, f"it holds no *{source.holds}, but {', '.join(names[:5])}{more}", None)
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


def _wrong(source: Source, what: str, before: dict[str, Any] | None) -> DataError:
    if before is None:
        return DataError(
            f"{source.file} from {source.url} is not what its publisher describes: {what}. It was deleted; run again to fetch it anew"
            f"{' (SKINCANCER_MIRROR may name a wrong server)' if mirror() else ''}."
        )
    return DataError(
        f"{source.file} from {source.url} is another file than the one of {before['fetched']}: {what}. It was deleted. If its "
        f"publisher has changed it and you want the new one, take its entry out of {RECORD} and run again."
    )


def _write(path: Path, record: dict[str, Any]) -> None:
    write_whole(path, json.dumps(record, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    """Return a record of downloads; empty where there is none.

    Raises:
        DataError: it is there and cannot be read.
    """
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if all(isinstance(entry["sha256"], str) and isinstance(entry["fetched"], str) for entry in record.values()):
            return dict(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{path} is no record of downloads; repair it, or delete it to do without the comparison.")
