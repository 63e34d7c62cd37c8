"""MLflow UI with a saved view for each experiment: `python -m skincancer.ui`."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skincancer.config.cli import parse_plain_flags
from skincancer.errors import ConfigError, RunError
from skincancer.metrics.names import DEFAULT_METRICS, MAIN_METRICS
from skincancer.system.console import program, run_verb
from skincancer.system.interrupts import signals_as_interrupts
from skincancer.system.paths import sqlite_path

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


# Key of the saved view. MLflow stores views as tags of an experiment, and opens the view of the key in the address.
VIEW = "skincancer"
_VIEW_TAG, _KIND_TAG = f"mlflow.sharedViewState.{VIEW}", "mlflow.experimentKind"
_PARAMS = {
    "classification": ("experiment", "split", "seed", "balance", "backbone", "weights", "size"),
    "segmentation": ("experiment", "split", "seed", "architecture", "backbone", "weights", "size"),
}
_PARAMS["joint"] = _PARAMS["segmentation"]


def save_views(client: MlflowClient) -> dict[str, str]:
    """Save a view in every experiment without one, and return experiment ids.

    The table of the view has columns for params such as split, seed and backbone, and for test metrics.
    """
    ids = {}
    for experiment in client.search_experiments():
        task = experiment.name.rpartition("-")[2]
        if task not in _PARAMS:
            continue
        ids[experiment.name] = experiment.experiment_id
        tags = {_KIND_TAG: "custom_model_development", _VIEW_TAG: _view(task)}
        for name, value in tags.items():
            if name not in experiment.tags:
                client.set_experiment_tag(experiment.experiment_id, name, value)
    return ids


def _view(task: str) -> str:
    default = DEFAULT_METRICS[task]
    metrics = dict.fromkeys(f"test/{name}" for name in (default, *MAIN_METRICS[task]))
    columns = ["attributes.`Dataset`", "tags.`kind`", *(f"params.`{name}`" for name in _PARAMS[task])]
    columns += [f"metrics.`{name}`" for name in (*metrics, f"best/{default}")]
    state = {"selectedColumns": columns, "orderByKey": "attributes.start_time", "orderByAsc": False}
    now = int(time.time() * 1000)
    name = "skincancer: runs and their performance"
    return json.dumps({"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def open_ui(
    uri: str | None = None, host: str = "127.0.0.1", port: int = 5000, allowed_hosts: Sequence[str] = ()
) -> int:
    """Serve the MLflow UI until it is stopped, and return its exit code.

    Args:
        uri: MLflow store. None for $MLFLOW_TRACKING_URI or else the store of the project.
        host: address to listen on. The UI has no password.
        port: port to listen on, from 1 to 65535.
        allowed_hosts: names by which browsers on other machines reach this machine. MLflow answers 403 to all other names.

    Raises:
        ConfigError: the address, port or an allowed host is not valid.
        RunError: the store cannot be opened, or is a server already, or the port is in use.
    """
    _check_address(host, port, allowed_hosts)
    from skincancer.runs.store import RunStore

    store = RunStore(uri)
    if store.uri.startswith(("http:", "https:")):
        raise RunError(f"{store} is already a server; open it in a browser.")
    views = save_views(store.client)
    database = sqlite_path(store.uri)
    # One worker suffices for one person, and each takes seconds to start.
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--host", host, "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    if allowed_hosts:
        names = ["localhost", "127.0.0.1", *allowed_hosts]
        origins = [f"http://{name}:{port}" for name in allowed_hosts] + [f"https://{name}" for name in allowed_hosts]
        command += ["--allowed-hosts", ",".join([*names, *(f"{name}:*" for name in names)])]
        command += ["--cors-allowed-origins", ",".join(origins)]
    if database:
        command += ["--default-artifact-root", (database.parent / "artifacts").as_uri()]
    address = f"http://{allowed_hosts[0] if allowed_hosts else host}:{port}"
    print(f"MLflow on {store}: {address} (Ctrl-C stops it)")
    for name, number in views.items():
        print(f"  {name}: {address}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}")
    sys.stdout.flush()
    # The server would start processes for jobs of language models, which are not used here.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with signals_as_interrupts():
        # The new session allows to end the server together with its workers.
        server = subprocess.Popen(command, start_new_session=True, env=environment)
        try:
            # Only a signal ends the server, so it has failed, even if its exit code is 0.
            return server.wait() or 1
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait()


def _check_address(host: str, port: int, allowed_hosts: Sequence[str]) -> None:
    """Check that this machine can listen on an address.

    Raises:
        ConfigError: the address, port or an allowed host is not valid.
        RunError: the port is in use.
    """
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port is {port}; expected 1 to 65535. The default is 5000.")
    for name in allowed_hosts:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(
                f"--allowed-hosts is {name!r}; expected a name or an address, such as server.example.org, without http:// and port."
            )
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except PermissionError as error:
        raise RunError(f"--port is {port}, which needs the rights of an administrator. Use 1024 or more.") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RunError(
                f"port {port} of {host} is in use; stop the other program, or use another --port."
            ) from error
        raise ConfigError(
            f"--host is {host!r}; expected an address of this machine, such as 127.0.0.1 or 0.0.0.0."
        ) from error


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the flags of ui."""
    parser = argparse.ArgumentParser(
        prog=program("ui"),
        description="Open the MLflow UI on the store of the project.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument(
        "--tracking.uri", dest="uri", help="MLflow tracking URI; default $MLFLOW_TRACKING_URI, then mlruns/mlflow.db"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default %(default)s)")
    parser.add_argument(
        "--allowed_hosts", "--allowed-hosts", nargs="+", metavar="NAME",
        help="with --host 0.0.0.0: names by which other machines reach this machine",
    )  # fmt: skip
    return parser


def _verb(argv: Sequence[str]) -> None:
    arguments = parse_plain_flags(make_parser(), argv)
    code = open_ui(arguments.uri, arguments.host, arguments.port, arguments.allowed_hosts or ())
    if code:
        raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
