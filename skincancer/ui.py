"""MLflow UI with a saved view for each experiment: `python -m skincancer.ui`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skincancer.config.cli import parse_plain_flags
from skincancer.metrics.names import DEFAULT_METRICS, MAIN_METRICS
from skincancer.system.console import program, run_verb
from skincancer.system.interrupts import signals_as_interrupts

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


def open_ui(uri: str | None = None, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Serve the MLflow UI until it is stopped, and return its exit code.

    Args:
        uri: MLflow store. None for $MLFLOW_TRACKING_URI or else the store of the project.
        host: address to listen on. The UI has no password.
        port: port to listen on.

    Raises:
        RunError: the store cannot be opened, or is a server already.
    """
    import subprocess

    from skincancer.errors import RunError
    from skincancer.runs.store import RunStore
    from skincancer.system.paths import sqlite_path

    store = RunStore(uri)
    if store.uri.startswith(("http:", "https:")):
        raise RunError(f"{store} is already a server; open it in a browser.")
    views = save_views(store.client)
    database = sqlite_path(store.uri)
    # One worker suffices for one person, and each takes seconds to start.
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--host", host, "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    if database:
        command += ["--default-artifact-root", (database.parent / "artifacts").as_uri()]
    print(f"MLflow on {store}: http://{host}:{port} (Ctrl-C stops it)")
    for name, number in views.items():
        print(
            f"  {name}: http://{host}:{port}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
        )
    sys.stdout.flush()
    # The server would start processes for jobs of language models, which are not used here.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with signals_as_interrupts():
        # The new session allows to end the server together with its workers.
        server = subprocess.Popen(command, start_new_session=True, env=environment)
        try:
            return server.wait()
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait()


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
    return parser


def _verb(argv: Sequence[str]) -> None:
    arguments = parse_plain_flags(make_parser(), argv)
    code = open_ui(arguments.uri, arguments.host, arguments.port)
    if code:
        raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
