"""Shared fixtures. Every test has its own store. Tiny demo images are drawn once per session.

The whole suite runs on two workers, named files in one process, unless `-n` is given.
"""

import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Must be set before torch is imported. On tiny images a second thread only waits, in a busy loop.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The width of the developer's terminal must not change the output that tests read.
os.environ.pop("COLUMNS", None)

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run

# A worker needs 2 to 3 GB, so one worker per core may be too many.
WORKERS = 2

TINY_LESIONS = {"akiec": 5, "bcc": 5, "bkl": 5, "df": 5, "mel": 5, "nv": 8, "vasc": 5}

# A fit in seconds: a small backbone, two epochs, tiny images.
TINY_FIT = [
    "--model.backbone=test_efficientnet",
    "--model.weights=none",
    "--data.size=32",
    "--data.batch_size=8",
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
    "--tracking.system_metrics=false",
]


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads its options later.
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Use workers for whole folders.

    Each worker starts with one half of the tests, because neighbouring tests share the fit of their module.
    """
    option, is_worker = config.option, hasattr(config, "workerinput")
    asked = is_worker or option.usepdb or getattr(option, "numprocesses", 0) is not None
    if not asked and all(Path(argument).is_dir() for argument in config.args):
        option.numprocesses, option.dist = WORKERS, "worksteal"


@functools.cache
def empty_database() -> bytes:
    """Return an MLflow database without runs. Copying it saves seconds per test."""
    from skincancer.runs.store import connect

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "mlflow.db"
        connect(f"sqlite:///{database}")
        return database.read_bytes()


def make_store(folder: Path) -> str:
    """Make an empty store in a new folder, and return its URI."""
    folder.mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(empty_database())
    return f"sqlite:///{folder}/mlflow.db"


def all_runs() -> list["Run"]:
    """Return all runs of the current store, in the order of their starts."""
    from skincancer.runs.store import connect

    client = connect(None)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], order_by=["start_time"]))


def only_run() -> "Run":
    """Return the only run of the current store."""
    (run,) = all_runs()
    return run


def put(root: Path, *names: str) -> None:
    """Write placeholder files, for readers that use only the names."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"placeholder")


def write(path: Path, *lines: str) -> None:
    """Write a text file and its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def copy_demo(demo_folder: Path, root: Path) -> "pd.DataFrame":
    """Copy images and masks of a demo, and return the columns of its table for the reader `csv`."""
    from skincancer.data.readers import demo

    for name in ("images", "masks"):
        shutil.copytree(demo_folder / name, root / name)
    return demo.read(demo_folder)[["image_id", "image", "mask", "diagnosis", "lesion_id"]]


@contextlib.contextmanager
def finished_run(cache: Path, folder: Path, *arguments: str) -> "Iterator[tuple[Run, str]]":
    """Fit once for all tests of a module. Yield the run and the URI of its store in `folder`."""
    from skincancer import fit

    uri = make_store(folder / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINCANCER_CACHE", str(cache))
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        assert fit.main(list(arguments)) == 0
        yield only_run(), uri


@pytest.fixture
def run(finished: "tuple[Run, str]", monkeypatch: pytest.MonkeyPatch) -> "Run":
    """Run of the fixture `finished`, with its store as the current store."""
    fitted, uri = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return fitted


@pytest.fixture
def artifacts(run: "Run") -> Path:
    """Folder of the artifacts of the fixture `finished`."""
    from skincancer.runs.store import connect

    return Path(connect(None).download_artifacts(run.info.run_id, ""))


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of the session, so that image stores are built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root folder of a demo data set with a few synthetic lesions per class."""
    from skincancer.data.readers import demo

    root = tmp_path_factory.mktemp("demo") / "tiny"
    demo.draw(root, lesions=TINY_LESIONS)
    return root


@pytest.fixture
def new_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Function `new_store(name)` that makes an empty store and sets it as the current store."""

    def make(name: str) -> str:
        uri = make_store(tmp_path / name)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return uri

    return make


@pytest.fixture(autouse=True)
def places(session_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the environment variables to temporary folders, and return the folder of the MLflow store.

    The store is created at its first use. The fixture `store` creates it before the test.
    """
    monkeypatch.setenv("SKINCANCER_CACHE", str(session_cache))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    monkeypatch.delenv("SKINCANCER_DATA", raising=False)
    monkeypatch.delenv("SKINCANCER_MIRROR", raising=False)
    # A test that calls `mlflow.set_tracking_uri` must not redirect the MLflow calls of other tests.
    if utils := sys.modules.get("mlflow.tracking._tracking_service.utils"):
        monkeypatch.setattr(utils, "_tracking_uri", None)
    return tmp_path / "mlruns"


@pytest.fixture
def store(new_store: Callable[[str], str]) -> str:
    """URI of an empty store, which is the current store."""
    return new_store("mlruns")


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """Port of a PostgreSQL server."""
    import postgres

    binaries = postgres.find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with postgres.running_server(binaries) as port:
        yield port
