"""Where things lie: experiments, the run store, the cache. The only module that reads the environment.

Exactly four variables count: SKINCANCER_DATA, SKINCANCER_CACHE, SKINCANCER_MIRROR and MLFLOW_TRACKING_URI.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """Return the folder of the checkout that this package runs from, or None where it is installed as a wheel."""
    above = PACKAGE.parent
    return above if (above / "pyproject.toml").is_file() and (above / "experiments").is_dir() else None


def experiments_folder() -> Path:
    """Return the folder that holds the shipped experiments, in a checkout or inside the installed wheel."""
    above = checkout()
    return above / "experiments" if above else PACKAGE / "experiments"


def store_folder() -> Path:
    """Return the project's `mlruns/`: in the checkout, else in the working directory."""
    return (checkout() or Path.cwd()) / "mlruns"


def data_folder() -> str | None:
    """Return $SKINCANCER_DATA, or None where it is unset or empty."""
    return os.environ.get("SKINCANCER_DATA") or None


def data_places(name: str, root: str | None, env: str | None) -> dict[str, Path]:
    """Return where a data set is looked for, in order, by what names the place: `root` alone, else `env`/<name>, then data/<name>."""
    if root:
        places = {"--data.root": Path(root)}
    else:
        places = {"$SKINCANCER_DATA": Path(env) / name} if env else {}
        places["default"] = Path("data") / name
    return {source: place.expanduser().absolute() for source, place in places.items()}


def holds_files(folder: Path) -> bool:
    """Say whether a folder is there and holds anything that is not hidden."""
    return folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir())


def mirror() -> str | None:
    """Return $SKINCANCER_MIRROR, or None where it is unset or empty.

    It is the address of a server that stands in for every publisher's: `https://HOST/PATH?QUERY` is fetched from
    `$SKINCANCER_MIRROR/PATH?QUERY`.
    """
    return os.environ.get("SKINCANCER_MIRROR") or None


def cache_folder() -> Path:
    """Return the folder of prepared stores and demo data: $SKINCANCER_CACHE, else the user's cache folder."""
    given = os.environ.get("SKINCANCER_CACHE")
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("skincancer"))


def tracking_uri(given: str | None) -> str:
    """Return the MLflow tracking URI: what is given, else $MLFLOW_TRACKING_URI, else the project's SQLite store.

    A relative SQLite path is made absolute, so that it means the same from every working directory.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store_folder() / 'mlflow.db'}"
    database = sqlite_path(uri)
    return f"sqlite:///{database}" if database else uri


def sqlite_path(uri: str) -> Path | None:
    """Return the absolute path of a SQLite URI's database, or None for any other URI."""
    if not uri.startswith("sqlite:"):
        return None
    path = urlsplit(uri).path
    return Path(path[1:] if path.startswith("/") else path).absolute()


def work_root(uri: str) -> Path:
    """Return the folder for runs being written: beside a SQLite database, else in the project's `mlruns/`."""
    database = sqlite_path(uri)
    return (database.parent if database else store_folder()) / "work"


def sweeps_folder(uri: str) -> Path:
    """Return the folder for sweeps' journals and the logs of their trials: beside a SQLite database, else in `mlruns/`."""
    return work_root(uri).with_name("sweeps")
