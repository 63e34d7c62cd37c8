"""Test stores at paths with characters that URIs give a meaning to."""

import sqlite3
from pathlib import Path

import pytest
from conftest import empty_database

from skincancer.errors import ConfigError
from skincancer.runs.finished import FinishedRun
from skincancer.runs.lifecycle import start_run
from skincancer.runs.store import RunStore
from skincancer.system import paths
from skincancer.system.paths import sqlite_path, tracking_uri

FOLDERS = (
    "a b",
    "a%20b",
    "a#b",
    "a?b",
    "a%23b",
    "läsion 黑",
    "a;b",
    "a+b",
    "a&b=c",
    "a@b:c",
    "it's",
    '"a"',
    "100%",
    "a\\b",
)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_default_store_lies_in_its_folder(name, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(paths, "checkout", lambda: None)
    here = tmp_path / name
    (here / "mlruns").mkdir(parents=True)
    (here / "mlruns" / "mlflow.db").write_bytes(empty_database())
    monkeypatch.chdir(here)
    store = RunStore()
    with start_run(store, "demo", "x", {"kind": "fit"}, system_metrics=False) as run:
        (run.folder / "sub").mkdir()
        run.write_text("sub/a.txt", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    assert sorted(path.name for path in here.iterdir()) == ["mlruns"]
    with sqlite3.connect(here / "mlruns" / "mlflow.db") as database:
        assert database.execute("SELECT run_uuid, status FROM runs").fetchall() == [(run.run_id, "FINISHED")]
    artifact = here / "mlruns" / "artifacts" / "demo" / run.run_id / "artifacts" / "sub" / "a.txt"
    assert artifact.read_text() == "text"
    assert FinishedRun(run.run_id, RunStore(store.uri)).file("sub/a.txt").read_text() == "text"
    assert (store.work_folder, store.sweeps_folder) == (here / "mlruns" / "work", here / "mlruns" / "sweeps")


@pytest.mark.parametrize(
    ("path", "folder"),
    [("a b", "a b"), ("a%20b", "a b"), ("a#b", "a#b"), ("a%23b", "a#b"), ("a%3Fb", "a?b"), ("é", "é")],
)
def test_a_uri_means_the_path_that_mlflow_reads(path, folder, tmp_path):
    uri = tracking_uri(f"sqlite:///{tmp_path}/{path}/mlflow.db")
    assert sqlite_path(uri) == tmp_path / folder / "mlflow.db"
    assert tracking_uri(uri) == uri


def test_options_of_a_sqlite_uri_are_kept(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db?timeout=30"
    assert tracking_uri(uri) == uri
    assert sqlite_path(uri) == tmp_path / "mlflow.db"


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///a?b/mlflow.db", "sqlite:///a?b/mlflow.db?timeout=1", "sqlite:///what?.db", "sqlite:///a.db?", "sqlite:///:memory:",
     "sqlite://", "sqlite:///", "sqlite:a.db", "sqlite://host/a.db"],
)  # fmt: skip
def test_a_uri_that_names_no_file_is_refused(uri):
    with pytest.raises(ConfigError, match=r"tracking\.uri is .*expected sqlite:///PATH of a file"):
        RunStore(uri)


def test_a_literal_percent_sign_is_refused_with_its_spelling(tmp_path):
    (tmp_path / "a%20b").mkdir()
    uri = f"sqlite:///{tmp_path}/a%20b/mlflow.db"
    with pytest.raises(ConfigError, match=r"which means the folder .*a b.*%25"):
        RunStore(uri)
    assert sqlite_path(RunStore(uri.replace("%", "%25")).uri) == Path(tmp_path / "a%20b" / "mlflow.db")
