"""Paths of experiments, run store, data and cache.

Four environment variables have an effect: SKINCANCER_DATA, SKINCANCER_CACHE, SKINCANCER_MIRROR and MLFLOW_TRACKING_URI. Only this module
reads them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import platformdirs

from skincancer.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import URL

PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """Return the root of the checkout, or None in an installed wheel."""
    above = PACKAGE.parent
    return above if (above / "pyproject.toml").is_file() and (above / "experiments").is_dir() else None


def experiments_folder() -> Path:
    """Return the folder of the shipped experiments."""
    above = checkout()
    return above / "experiments" if above else PACKAGE / "experiments"


def store_folder() -> Path:
    """Return `mlruns/` in the checkout, or else in the working directory."""
    return (checkout() or Path.cwd()) / "mlruns"


def user_path(text: str | Path, source: str) -> Path:
    """Return a path of the user, with `~` expanded, which need not exist.

    Args:
        text: the path.
        source: flag, key or variable of the path, for the error.

    Raises:
        ConfigError: the path is empty, too long, or in a folder without access.
    """
    try:
        if not str(text):
            raise ValueError("it is empty")
        path = Path(text).expanduser()
        # A path below a file, and one that is missing, are reported where the path is used.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise ConfigError(f"{source} is {str(text)!r}, which is no usable path: {reason}. Use another path.") from error
    return path


def data_folder() -> str | None:
    """Return $SKINCANCER_DATA, or None if unset or empty."""
    return os.environ.get("SKINCANCER_DATA") or None


def data_places(name: str, root: str | None, env: str | None) -> dict[str, Path]:
    """Return the folders to search for a data set, by setting.

    Only `root` if given; otherwise `env`/<name>, then data/<name>.
    """
    if root:
        places = {"--data.root": Path(root)}
    else:
        places = {"$SKINCANCER_DATA": Path(env) / name} if env else {}
        places["default"] = Path("data") / name
    return {source: user_path(place, source).absolute() for source, place in places.items()}


def holds_files(folder: Path) -> bool:
    """Return whether a folder exists and contains visible files."""
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def mirror() -> str | None:
    """Return $SKINCANCER_MIRROR, or None if unset or empty.

    The variable is the address of a server that replaces all publishers: `https://HOST/PATH?QUERY` is downloaded from
    `$SKINCANCER_MIRROR/PATH?QUERY`.
    """
    return os.environ.get("SKINCANCER_MIRROR") or None


def cache_folder() -> Path:
    """Return $SKINCANCER_CACHE, or the cache folder of the user."""
    folder = os.environ.get("SKINCANCER_CACHE")
    if folder:
        return user_path(folder, "$SKINCANCER_CACHE").absolute()
    path = Path(platformdirs.user_cache_dir("skincancer"))
    if not path.is_absolute():
        raise ConfigError("this user has no home folder. Set SKINCANCER_CACHE to a folder for prepared images.")
    return path


def tracking_uri(configured: str | None) -> str:
    """Return the MLflow tracking URI.

    The order is `configured`, $MLFLOW_TRACKING_URI, SQLite database in `mlruns/`. A relative SQLite path is made absolute, so that its
    meaning does not depend on the working directory.

    Raises:
        ConfigError: the URI is malformed, or of a folder, or its SQLite database is another file than it seems to be.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return _sqlite_uri(store_folder() / "mlflow.db")
    path = sqlite_path(uri)
    if path is None:
        try:
            urlsplit(uri)
        except ValueError as error:
            raise ConfigError(
                f"tracking.uri cannot be read: {error}. Use sqlite:///PATH, or the address of a server."
            ) from error
        return uri
    if path.is_dir():
        raise ConfigError(
            f"tracking.uri is {uri}, a folder; expected a SQLite file. Use {_sqlite_uri(path / 'mlflow.db')}."
        )
    # MLflow reads %20 as a blank, also where these three letters are part of the name of a folder.
    literal = Path(uri.partition("///")[2].partition("?")[0]).absolute()
    if literal.parent.is_dir() and not path.parent.is_dir():
        raise ConfigError(
            f"tracking.uri is {uri!r}, which means the folder {str(path.parent)!r}; expected {str(literal.parent)!r}. {_QUOTE}"
        )
    return _sqlite_uri(path) + "".join(uri.partition("?")[1:])


_QUOTE = "Write % in a path as %25, and ? as %3F."


def _parse_sqlite(uri: str) -> URL:
    import sqlalchemy

    with contextlib.suppress(sqlalchemy.exc.ArgumentError, ValueError):
        url = sqlalchemy.make_url(uri)
        has_options = bool(url.query) and not any("/" in name for name in url.query)
        if url.database and url.database != ":memory:" and not url.host and ("?" not in uri or has_options):
            return url
    raise ConfigError(f"tracking.uri is {uri!r}; expected sqlite:///PATH of a file. {_QUOTE}")


def _sqlite_uri(path: Path) -> str:
    # MLflow creates the folder that is written in the URI, so only what SQLAlchemy would misread is quoted.
    return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite URI, or None for another URI.

    Raises:
        ConfigError: the URI names no file.
    """
    return Path(_parse_sqlite(uri).database or "").absolute() if uri.startswith("sqlite") else None


def work_root(uri: str) -> Path:
    """Return the folder of unfinished runs, next to the SQLite database.

    With another kind of store, the folder is in `mlruns/`.
    """
    database = sqlite_path(uri)
    return (database.parent if database else store_folder()) / "work"


def sweeps_folder(uri: str) -> Path:
    """Return the folder of sweep journals and trial logs, next to `work_root`."""
    return work_root(uri).with_name("sweeps")
