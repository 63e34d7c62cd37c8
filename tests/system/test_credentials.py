"""Passwords of store addresses are absent from output, files and errors."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_FIT

from skincancer.config.resolve import resolve
from skincancer.errors import RunError
from skincancer.runs.artifacts import config_to_keep
from skincancer.runs.lifecycle import start_run
from skincancer.runs.store import RunStore, connect
from skincancer.system.credentials import mask_password, mask_passwords, remember_password, remove_password
from skincancer.system.yaml_files import dump_yaml

WRONG = "http://me:hunter2@127.0.0.1:1"


@pytest.mark.parametrize(
    ("uri", "masked", "kept"),
    [
        ("http://me:hunter2@host:5000/x", "http://me:***@host:5000/x", "http://me@host:5000/x"),
        ("postgresql+psycopg://me:hun%2Fter2@host/x", "postgresql+psycopg://me:***@host/x", "postgresql+psycopg://me@host/x"),
        ("postgresql://me:hun/t@er2@host/x", "postgresql://me:***@host/x", "postgresql://me@host/x"),
        ("postgresql://:hunter2@host/x", "postgresql://:***@host/x", "postgresql://@host/x"),
        ("postgresql://host/x?user=me&password=hunter2", "postgresql://host/x?user=me&password=***", "postgresql://host/x?user=me&password="),
    ],
)  # fmt: skip
def test_password_is_masked_or_removed(uri, masked, kept):
    assert mask_password(uri) == masked
    assert remove_password(uri) == kept


@pytest.mark.parametrize(
    "uri",
    ["sqlite:////a/b@c/mlflow.db", "http://host:5000/a@b", "https://me@host", "journal:///a:b@c/x.journal", "databricks", "postgresql://host/x"],
)  # fmt: skip
def test_address_without_password_does_not_change(uri):
    assert mask_password(uri) == remove_password(uri) == uri


def test_every_encoding_of_a_password_is_masked_in_errors():
    uri = "postgresql://me:p%40ss%2Fw@host/x"
    message = mask_passwords(RuntimeError(f"{uri}: no p@ss/w, no p%40ss%2Fw"), uri)
    assert message == "postgresql://me:***@host/x: no ***, no ***"
    assert mask_passwords("no hunter3") == "no hunter3"
    remember_password("http://me:hunter3@host")
    assert mask_passwords("no hunter3") == "no ***"


def test_error_of_an_unreachable_store_contains_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError) as caught:
        connect(WRONG)
    assert "http://me:***@127.0.0.1:1 cannot be opened" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("verb", ["fit", pytest.param("sweep --trials=2", marks=pytest.mark.slow), "ui"])
def test_verbs_do_not_print_the_password_of_an_unreachable_server(verb, tmp_path, tiny_demo, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    name, *more = verb.split()
    if name in ("fit", "sweep"):
        more += ["--experiment=efficientnet_lite0", f"--data.root={tiny_demo}", *TINY_FIT]
    command = [sys.executable, "-m", f"skincancer.{name}", *more, f"--tracking.uri={WRONG}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert "me:***@127.0.0.1:1" in done.stderr
    assert "hunter2" not in done.stdout + done.stderr


def test_traceback_contains_no_password():
    code = f"from skincancer.system.credentials import remember_password; remember_password({WRONG!r}); raise OSError('no way to {WRONG}')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "OSError: no way to http://me:***@127.0.0.1:1" in done.stderr
    assert "hunter2" not in done.stderr


def test_saved_config_contains_no_password(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(f"task: classification\ntracking: {{uri: {WRONG}}}\n")
    experiment, _ = resolve(str(tmp_path / "mine.yaml"), {})
    assert experiment.tracking.uri == WRONG
    assert "uri: http://me@127.0.0.1:1\n" in dump_yaml(config_to_keep(experiment))
    assert experiment.tracking.uri == WRONG


def test_status_of_a_run_contains_no_password(store):
    client = connect(None)
    remember_password(WRONG)
    with (
        pytest.raises(OSError, match="no way"),
        start_run(RunStore(None), "demo", "x", {"kind": "fit"}, system_metrics=False) as run,
    ):
        raise OSError(f"no way to {WRONG}")
    assert client.get_run(run.run_id).data.tags["status_reason"] == "OSError: no way to http://me:***@127.0.0.1:1"
