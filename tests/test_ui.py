"""Test the saved view of the MLflow UI."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from skincancer import ui
from skincancer.runs.store import RunStore, connect


def test_every_experiment_has_a_view_with_main_columns(store):
    client = connect(None)
    for name in ("demo-classification", "demo-segmentation", "mine-joint"):
        RunStore(None).experiment_id(name)
    client.create_experiment("somebody else's")
    found = ui.save_views(client)
    assert set(found) == {"demo-classification", "demo-segmentation", "mine-joint"}
    tags = client.get_experiment(found["demo-classification"]).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    saved = json.loads(tags["mlflow.sharedViewState.skincancer"])
    # what MLflow's page asks of a saved view
    assert isinstance(saved["name"], str)
    assert isinstance(saved["createdAt"], int)
    columns = json.loads(saved["state"])["selectedColumns"]
    for column in ("params.`split`", "params.`balance`", "params.`backbone`", "metrics.`test/balanced_accuracy`"):
        assert column in columns
    assert "metrics.`test/jaccard`" in client.get_experiment(found["demo-segmentation"]).tags[
        "mlflow.sharedViewState.skincancer"
    ].replace("\\", "")


def test_a_changed_view_is_kept(store):
    client = connect(None)
    number = RunStore(None).experiment_id("demo-classification")
    client.set_experiment_tag(number, "mlflow.sharedViewState.skincancer", "mine")
    ui.save_views(client)
    assert client.get_experiment(number).tags["mlflow.sharedViewState.skincancer"] == "mine"


def listen() -> tuple[socket.socket, int]:
    server = socket.create_server(("127.0.0.1", 0))
    return server, server.getsockname()[1]


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--port=99999"], 2, "--port is 99999; expected 1 to 65535"),
        (["--port=0"], 2, "--port is 0; expected 1 to 65535"),
        (["--port=-1"], 2, "--port is -1; expected 1 to 65535"),
        (["--host=nowhere.invalid"], 2, "--host is 'nowhere.invalid'; expected an address of this machine"),
        (["--host=8.8.8.8"], 2, "--host is '8.8.8.8'; expected an address of this machine"),
        (["--allowed-hosts", "http://server:5000"], 2, "--allowed-hosts is 'http://server:5000'; expected a name"),
    ],
)
def test_an_address_that_cannot_be_served_is_refused(flags, code, text, store, capsys):
    server, port = listen()
    server.close()
    assert ui.main([f"--port={port}", *flags]) == code
    assert text in " ".join(capsys.readouterr().err.split())


def test_a_port_in_use_is_an_error(store, capsys):
    server, port = listen()
    with server:
        assert ui.main([f"--port={port}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: port {port} of 127.0.0.1 is in use")


@pytest.mark.parametrize("code", [0, 3])
def test_a_server_that_ends_is_an_error(code, store, monkeypatch):
    server, port = listen()
    server.close()
    started = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started([sys.executable, "-c", f"exit({code})"]))
    with pytest.raises(SystemExit) as exit_:
        ui.main([f"--port={port}"])
    assert exit_.value.code == (code or 1)


@pytest.mark.slow
def test_other_machines_reach_the_ui_by_its_allowed_names(store):
    server, port = listen()
    server.close()
    flags = ["--host=0.0.0.0", f"--port={port}", "--allowed-hosts", "lab.example", "10.1.2.3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "skincancer.ui", *flags], start_new_session=True, stdout=subprocess.DEVNULL
    )

    def answer(host: str, origin: str = "") -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/search",
            data=b'{"max_results": 1}' if origin else None,
            headers={"Host": host, "Content-Type": "application/json", **({"Origin": origin} if origin else {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                answer("localhost")
                break
            except OSError:
                time.sleep(0.5)
        for host in ("lab.example", f"lab.example:{port}", "10.1.2.3", f"localhost:{port}", f"127.0.0.1:{port}"):
            assert answer(host) != 403
        assert answer(f"evil.example:{port}") == 403
        assert answer(f"lab.example:{port}", f"http://lab.example:{port}") != 403
        assert answer(f"lab.example:{port}", "http://evil.example") == 403
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    assert process.returncode == 143
