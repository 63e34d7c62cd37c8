"""Shared fixtures: every test has its own store and cache; tiny demo data are drawn once a session.

The whole suite runs on two workers, named files in one process; `-n 0` or `-n 4` say otherwise.
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# before anything imports torch: on tiny images a second thread only waits, and waits by computing
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # whose terminal it is says nothing of what tests read

if TYPE_CHECKING:
    from mlflow.entities import Run

WORKERS = 2  # of 2 to 3 GB each, so not one for every core

TINY_LESIONS = {"akiec": 5, "bcc": 5, "bkl": 5, "df": 5, "mel": 5, "nv": 8, "vasc": 5}

# a whole fit in seconds: a small backbone, two epochs, tiny images
TINY_FIT = [
    "--model.backbone=test_efficientnet",
    "--model.weights=none",
    "--data.size=32",
    "--data.batch_size=8",
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
    "--tracking.system_metrics=false",
]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let workers run whole folders; each begins with one half, as neighbouring tests share their module's fit."""
    option, is_worker = config.option, hasattr(config, "workerinput")
    asked = is_worker or option.usepdb or getattr(option, "numprocesses", 0) is not None
    if not asked and all(Path(argument).is_dir() for argument in config.args):
        option.numprocesses, option.dist = WORKERS, "worksteal"


@functools.cache
def empty_database() -> bytes:
    """An MLflow database without runs: creating one takes seconds, copying it nothing."""
    from skincancer.runs.store import connect

    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "mlflow.db"
        connect(f"sqlite:///{database}")
        return database.read_bytes()


def make_store(folder: Path) -> str:
    """Make an empty store in a new folder; return its URI."""
    folder.mkdir(parents=True)
    (folder / "mlflow.db").write_bytes(empty_database())
    return f"sqlite:///{folder}/mlflow.db"


def all_runs() -> list["Run"]:
    """Every run of the current store, in the order of their starts."""
    from skincancer.runs.store import connect

    client = connect(None)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], order_by=["start_time"]))


def only_run() -> "Run":
    """The one run of the current store."""
    (run,) = all_runs()
    return run


def put(root: Path, *names: str) -> None:
    """Make files that readers look at by name alone."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"readers look at names alone")


def write(path: Path, *lines: str) -> None:
    """Write a text file, and the folders to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def finished_run(cache: Path, folder: Path, *arguments: str) -> "Iterator[tuple[Run, str]]":
    """Fit once, for all tests of a module; yield the finished run and the URI of its store, which is in `folder`."""
    from skincancer import fit

    uri = make_store(folder / "mlruns")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKINCANCER_CACHE", str(cache))
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        assert fit.main(list(arguments)) == 0
        yield only_run(), uri


@pytest.fixture
def run(finished: "tuple[Run, str]", monkeypatch: pytest.MonkeyPatch) -> "Run":
    """The module's `finished` run, its store being the current one."""
    found, uri = finished
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return found


@pytest.fixture
def artifacts(run: "Run") -> Path:
    """The artifacts of the module's `finished` run."""
    from skincancer.runs.store import connect

    return Path(connect(None).download_artifacts(run.info.run_id, ""))


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that lives as long as the session: stores are built once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn demo of a few lesions a class: the root folder."""
    from skincancer.data.readers import demo

    root = tmp_path_factory.mktemp("demo") / "tiny"
    demo.draw(root, lesions=TINY_LESIONS)
    return root


@pytest.fixture
def new_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A maker of stores: `new_store(name)` makes one in the test's folder and makes it the current one."""

    def make(name: str) -> str:
        uri = make_store(tmp_path / name)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return uri

    return make


@pytest.fixture(autouse=True)
def places(session_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the environment variables at temporary folders; return the folder of the run store.

    The store is made at its first use; `store` gives one that is there already.
    """
    monkeypatch.setenv("SKINCANCER_CACHE", str(session_cache))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    monkeypatch.delenv("SKINCANCER_DATA", raising=False)
    monkeypatch.delenv("SKINCANCER_MIRROR", raising=False)
    return tmp_path / "mlruns"


@pytest.fixture
def store(new_store: Callable[[str], str]) -> str:
    """The URI of an empty store, which is the current one."""
    return new_store("mlruns")


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """The port of a PostgreSQL server."""
    import postgres

    binaries = postgres.find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql (.ci/run does)")
    with postgres.running_server(binaries) as port:
        yield port
