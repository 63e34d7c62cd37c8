"""Storage of a sweep, by URL: a journal file, SQLite, or a database server."""

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
from sqlalchemy import create_engine, event, inspect
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from skincancer.errors import ConfigError, RunError
from skincancer.system.credentials import mask_password, mask_passwords, remember_password
from skincancer.system.paths import user_path

_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
# Attempts to open a new database, because several workers may create its tables at the same time.
_TRIES = 8
_RAISED = (
    OSError,
    SQLAlchemyError,
    ImportError,
    optuna.exceptions.StorageInternalError,
    json.JSONDecodeError,
    UnicodeDecodeError,
)
# Waiting time for a locked SQLite file.
_WAIT_SECONDS = 60


def storage_url(requested: str | None, default: Path) -> str:
    """Return the URL of a storage, with an absolute path of a file.

    Args:
        requested: `--storage`, None for the journal at `default`.
        default: Path of the default journal.

    Raises:
        ConfigError: The path of a journal or of SQLite cannot be used.
        RunError: The URL is not of a journal, SQLite or a database server.
    """
    if requested is None or requested.startswith("journal://"):
        path = default if requested is None else user_path(requested.removeprefix("journal://"), "--storage")
        return f"journal://{_regular(path)}"
    url = _parse(requested)
    if url.drivername.split("+")[0] == "sqlite":
        path = _regular(user_path(url.database or "", "--storage"))
        return url.set(database=str(path)).render_as_string()
    return url.set(drivername=_DRIVERS.get(url.drivername, url.drivername)).render_as_string(hide_password=False)


def _regular(path: Path) -> Path:
    """Return an absolute path. A device or a pipe would block the sweep."""
    if path.exists() and not path.is_file():
        raise ConfigError(f"--storage is {path}, which is not a file. Use the path of a file, which may be new.")
    return path.absolute()


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        # The text itself may contain a password, so it is not printed.
        raise RunError(
            "--storage is not a URL; expected journal:///PATH, sqlite:///PATH or postgresql://USER@HOST/DATABASE (with the password in "
            "~/.pgpass or in the URL, where @ and / are written %40 and %2F)."
        ) from None


def open_storage(url: str) -> BaseStorage:
    """Open or create a storage.

    Error messages contain no password.

    Args:
        url: Result of `storage_url`.

    Raises:
        RunError: The storage cannot be reached or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    remember_password(url)
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
            raise RunError(f"the storage {mask_password(url)} is of another version of Optuna: {error}") from error
        except SQLAlchemyError as error:
            # Optuna creates its tables without a lock, so another worker may be creating them.
            concurrent = re.search(
                r"already exists|UNIQUE constraint|duplicate key|no such table|does not exist", str(error)
            )
            if not concurrent or attempt == _TRIES - 1:
                raise
            time.sleep(random.uniform(0.2, 1.0))
    raise AssertionError("the loop returns or raises")


def _check_database(url: str, options: dict[str, Any]) -> None:
    """Reject the database of another program, before Optuna adds its tables."""
    engine = create_engine(url, **options)
    _require_utf8(engine, url)
    try:
        tables = set(inspect(engine).get_table_names())
    finally:
        engine.dispose()
    if "alembic_version" in tables and "version_info" not in tables:
        raise RunError(
            f"the storage {mask_password(url)} is the database of another program (it has the tables {', '.join(sorted(tables)[:5])} …). "
            "Use a separate database; nothing was changed."
        )


def _require_utf8(engine: Engine, url: str) -> None:
    """Reject a PostgreSQL database of another encoding at the first connection."""

    def check(connection: Any, _: Any) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise RunError(
                f"the storage {mask_password(url)} has the encoding {encoding}; expected UTF8. Create a database with `createdb "
                "--encoding UTF8 --template template0 NAME`, and use it."
            )

    if engine.dialect.name == "postgresql":
        # The check must come first: on SQL_ASCII, the first query of SQLAlchemy raises a TypeError.
        event.listen(engine, "connect", check, insert=True)


class LockedSQLite(RDBStorage):
    """SQLite storage with a lock for changes of the state of a trial.

    Optuna reads and writes the state under SELECT … FOR UPDATE, which SQLite ignores. Without a lock, two workers could claim the same
    queued point, or both close the trial of a dead worker.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        super().__init__(url, engine_kwargs=engine_kwargs)
        # The kernel releases the lock if its owner dies.
        self._state_lock = FileLock(f"{_parse(url).database}.lock", timeout=_WAIT_SECONDS, poll_interval=0.005)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `optuna.storages.BaseStorage`."""
        with self._state_lock:
            return super().set_trial_state_values(trial_id, state, values)


def _check_journal(path: Path) -> None:
    """Reject a file that is not a journal, before lines are appended to it."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with open(path, "rb") as file:
        first = file.readline(2**20)
    try:
        ours = "op_code" in json.loads(first)
    except ValueError:
        # The first write of the journal may have been interrupted.
        ours = not first.endswith(b"\n") and first.startswith(b'{"op_code"')
    if not ours:
        raise RunError(
            f"--storage journal://{path}: the file is not an Optuna journal. Use another path; nothing was changed."
        )


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert errors of a storage to a RunError without password."""
    try:
        yield
    except _RAISED as error:
        cause = error.__cause__ or error
        text = " ".join(str(getattr(cause, "orig", None) or cause).split())
        text = mask_passwords(text, url)
        raise RunError(
            f"the storage {mask_password(url)} cannot be used: {text[:500]}. Fix the storage and rerun the same command; finished "
            "trials are kept."
        ) from None


class WholeJournal(JournalFileBackend):
    """Journal file in which incomplete last lines are deleted.

    The backend of Optuna would append to the incomplete line and could then no longer read the file. A writer that lost its lock to
    another worker deletes nothing that other workers have appended.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._own_lock = path, _OwnLock(str(path))
        super().__init__(str(path), lock_obj=self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append complete lines, or nothing."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._own_lock.acquire()
        try:
            # With O_APPEND, lines are written after the lines of other workers.
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
    """Journal lock that survives a takeover.

    Optuna breaks a lock after a grace period; the previous owner must then not delete the lock of the new owner.
    """

    _held: tuple[int, int] | None = None

    def acquire(self) -> bool:
        """See `JournalFileSymlinkLock`."""
        super().acquire()
        self._held = self._identity()
        return True

    def release(self) -> None:
        """See `JournalFileSymlinkLock`, which also calls this function while waiting."""
        held, self._held = self._held, None
        if held is None:
            super().release()
        elif held == self._identity():
            # Another worker may take the lock at this moment.
            with contextlib.suppress(RuntimeError):
                super().release()

    def _identity(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError):
            status = os.lstat(self._lock_file)
            return status.st_ino, status.st_ctime_ns
        return None


def _cut_off(file: Any, end: int, size: int) -> None:
    """Truncate a file at `end` if its size is still `size`.

    Otherwise, another writer has taken the lock and has already truncated the file.
    """
    if file.seek(0, os.SEEK_END) == size:
        file.truncate(end)


def _end_of_whole_lines(file: Any) -> int:
    """Return the length of a file without an incomplete last line."""
    end: int = file.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    start = max(0, end - 2**20)
    file.seek(start)
    return start + file.read(end - start).rfind(b"\n") + 1
