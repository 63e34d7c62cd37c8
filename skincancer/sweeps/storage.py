"""Storage of a sweep, by URL: a journal file, SQLite, or a database server."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import create_engine, event, inspect
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from skincancer.errors import ConfigError, RunError
from skincancer.system.credentials import mask_password, mask_passwords, remember_password
from skincancer.system.paths import user_path

_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
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
            _repair_journal(path)
            return JournalStorage(JournalFileBackend(str(path)))
        if url.startswith("sqlite"):
            Path(_parse(url).database or "").parent.mkdir(parents=True, exist_ok=True)
            return _open_database(url, {"connect_args": {"timeout": _WAIT_SECONDS}})
        return _open_database(url, {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}})


def _open_database(url: str, options: dict[str, Any]) -> RDBStorage:
    _check_database(url, options)
    try:
        return RDBStorage(url, engine_kwargs=options)
    except RuntimeError as error:
        raise RunError(f"the storage {mask_password(url)} is of another version of Optuna: {error}") from error


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


def _repair_journal(path: Path) -> None:
    """Delete an incomplete last line, which a killed writer or a full disk leaves.

    Optuna would append to the line and could then no longer read the file.
    """
    if not path.is_file():
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with open(path, "r+b") as file:
            start = max(0, file.seek(0, os.SEEK_END) - 2**20)
            file.seek(start)
            file.truncate(start + file.read().rfind(b"\n") + 1)
    finally:
        lock.release()


@contextlib.contextmanager
def driver_lock(url: str, name: str) -> Iterator[None]:
    """Hold the lock of a study, unless the storage is a database server.

    A server has no lock: there, `SweepRecord.start` finds the other driver by its run.

    Raises:
        RunError: Another process of this machine drives the study.
    """
    path = url.removeprefix("journal://") if url.startswith("journal://") else _parse(url).database
    if not url.startswith(("journal", "sqlite")) or path is None:
        yield
        return
    lock = FileLock(f"{path}.{name}.driver", timeout=0)
    with storage_errors(url):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"another process already runs the sweep {name} in {url}. Stop it first, or use another --study."
            ) from None
    try:
        yield
    finally:
        lock.release()
