"""Where a sweep's trials are kept: a journal file, SQLite, or a database server, by URL."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from skincancer.addresses import hide, remember, shown
from skincancer.errors import RunError

_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_TRIES = 8  # of workers that make the tables of a new database at once
_RAISED = (
    OSError,
    SQLAlchemyError,
    ImportError,
    optuna.exceptions.StorageInternalError,
    json.JSONDecodeError,
    UnicodeDecodeError,
)
_WAIT_SECONDS = 60  # for a locked SQLite file, or a server that does not answer


def storage_url(given: str | None, default: Path) -> str:
    """Return a storage's URL: what is given, else the journal at `default`; a file's path is made absolute.

    Raises:
        RunError: not a URL of a journal, of SQLite or of a server.
    """
    if given is None or given.startswith("journal://"):
        path = Path(given.removeprefix("journal://")) if given else default
        return f"journal://{path.expanduser().absolute()}"
    url = _parse(given)
    if url.drivername.split("+")[0] == "sqlite":
        path = Path(url.database or "").expanduser().absolute()
        return f"sqlite:///{path}"
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername)).render_as_string(hide_password=False)


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        # the text itself may hold a password
        raise RunError(
            "--storage is no URL. Give journal:///PATH, sqlite:///PATH or postgresql://USER@HOST/DATABASE (the password from "
            "~/.pgpass, or in the URL; letters such as @ and / in it are written %40 and %2F)."
        ) from None


def open_storage(url: str) -> BaseStorage:
    """Open a storage, creating what it needs; the errors of servers are told without the password.

    Args:
        url: as `storage_url` returns it.

    Raises:
        RunError: it cannot be reached, or there is no right to write.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    remember(url)
    with storage_errors(url):
        if url.startswith("journal://"):
            path = Path(url.removeprefix("journal://"))
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_journal(path)
            return JournalStorage(WholeJournal(path))
        if url.startswith("sqlite"):
            Path(_parse(url).database or "").parent.mkdir(parents=True, exist_ok=True)
            return _open_database(url, {"connect_args": {"timeout": _WAIT_SECONDS}})
        return _open_database(url, {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}})


def _open_database(url: str, options: dict[str, Any]) -> RDBStorage:
    kind = LockedSQLite if url.startswith("sqlite") else RDBStorage
    for attempt in range(_TRIES):
        try:
            return kind(url, engine_kwargs=options)
        except SQLAlchemyError as error:
            # Optuna makes its tables without a lock: another worker was in the middle of it
            made = re.search(r"already exists|UNIQUE constraint|duplicate key|no such table|does not exist", str(error))
            if not made or attempt == _TRIES - 1:
                raise
            time.sleep(random.uniform(0.2, 1.0))
    raise AssertionError("the loop returns or raises")


class LockedSQLite(RDBStorage):
    """A SQLite file in which one worker at a time changes a trial's state.

    Optuna reads the state, then writes it, under SELECT … FOR UPDATE, which SQLite ignores: two workers would take the same queued
    point, or both close a dead worker's trial.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        super().__init__(url, engine_kwargs=engine_kwargs)
        # the kernel frees it where its holder dies
        self._state_lock = FileLock(f"{_parse(url).database}.lock", timeout=_WAIT_SECONDS, poll_interval=0.005)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `optuna.storages.BaseStorage`."""
        with self._state_lock:
            return super().set_trial_state_values(trial_id, state, values)


def _check_journal(path: Path) -> None:
    """Refuse a file that is no journal, for what is appended would follow its last whole line."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with open(path, "rb") as file:
        first = file.readline(2**20)
    try:
        ours = "op_code" in json.loads(first)
    except ValueError:
        ours = not first.endswith(b"\n") and first.startswith(b'{"op_code"')  # its very first write was broken off
    if not ours:
        raise RunError(
            f"--storage journal://{path}: this file is no journal of Optuna's. Give another path; nothing was changed."
        )


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a storage raises into one RunError that holds no password."""
    try:
        yield
    except _RAISED as error:
        cause = error.__cause__ or error
        text = " ".join(str(getattr(cause, "orig", None) or cause).split())
        text = hide(text, url)
        raise RunError(
            f"the storage {shown(url)} cannot be used: {text[:500]}. Trials that have ended are kept: mend it, and start the same "
            "command again."
        ) from None


class WholeJournal(JournalFileBackend):
    """A journal file of whole lines: what a killed writer or a full disk left half-written is cut off.

    Optuna's own would go on behind the half line, and could not read the file any more.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._own_lock = path, JournalFileSymlinkLock(str(path))
        super().__init__(str(path), lock_obj=self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines, or nothing."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._own_lock.acquire()
        try:
            with open(self._path, "r+b", buffering=0) as file:
                end = _end_of_whole_lines(file)
                file.truncate(end)
                file.seek(end)
                try:
                    if file.write(lines) < len(lines):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)
                    raise
        finally:
            self._own_lock.release()


def _end_of_whole_lines(file: Any) -> int:
    """Return the length of a file without a half-written last line."""
    end: int = file.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    start = max(0, end - 2**20)
    file.seek(start)
    return start + file.read(end - start).rfind(b"\n") + 1
