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
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from skincancer.errors import RunError
from skincancer.system.credentials import hide, remember, shown

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
    _check_database(url, options)
    for attempt in range(_TRIES):
        try:
            return kind(url, engine_kwargs=options)
        except RuntimeError as error:
            raise RunError(f"the storage {shown(url)} is of another version of Optuna: {error}") from error
        except SQLAlchemyError as error:
            # Optuna makes its tables without a lock: another worker was in the middle of it
            made = re.search(r"already exists|UNIQUE constraint|duplicate key|no such table|does not exist", str(error))
            if not made or attempt == _TRIES - 1:
                raise
            time.sleep(random.uniform(0.2, 1.0))
    raise AssertionError("the loop returns or raises")


def _check_database(url: str, options: dict[str, Any]) -> None:
    """Refuse a database that is another program's, such as MLflow's: Optuna would add its tables before it finds that out."""
    engine = create_engine(url, **options)
    try:
        tables = set(inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if "alembic_version" in tables and "version_info" not in tables:
        raise RunError(
            f"the storage {shown(url)} is the database of another program (it has the tables {', '.join(sorted(tables)[:5])} …). Give "
            "one of its own; nothing was changed."
        )


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

    Optuna's own would go on behind the half line, and could not read the file any more. A writer that stood still for so long that
    another took its lock cuts off nothing that has come since.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._own_lock = path, _OwnLock(str(path))
        super().__init__(str(path), lock_obj=self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines, or nothing."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._own_lock.acquire()
        try:
            # what is written goes behind what others have written meanwhile
            with open(
                self._path, "r+b", buffering=0, opener=lambda path, how: os.open(path, how | os.O_APPEND)
            ) as file:
                size = file.seek(0, os.SEEK_END)
                end = _end_of_whole_lines(file)
                if end < size:
                    _cut_off(file, end, size)
                written = 0
                try:
                    written = file.write(lines)
                    if written < len(lines):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                    os.fsync(file.fileno())
                except OSError:
                    _cut_off(file, end, end + written)
                    raise
        finally:
            self._own_lock.release()


class _OwnLock(JournalFileSymlinkLock):
    """Optuna's lock, which whoever waits for long enough takes from its holder; that one then leaves it to its new holder."""

    _held: tuple[int, int] | None = None

    def acquire(self) -> bool:
        """See `JournalFileSymlinkLock`."""
        super().acquire()
        self._held = self._found()
        return True

    def release(self) -> None:
        """See `JournalFileSymlinkLock`; one that waits calls it too."""
        held, self._held = self._held, None
        if held is None:
            super().release()
        elif held == self._found():
            with contextlib.suppress(RuntimeError):  # taken at this moment
                super().release()

    def _found(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            found = os.lstat(self._lock_file)
            return found.st_ino, found.st_ctime_ns
        return None


def _cut_off(file: Any, end: int, size: int) -> None:
    """Cut a file off at `end` if its size is still `size`: else another writer, which holds the lock now, has seen to it."""
    if file.seek(0, os.SEEK_END) == size:
        file.truncate(end)


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
