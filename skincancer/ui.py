"""The MLflow UI on the project's store: `python -m skincancer.ui`; each of its experiments gets a view with the columns that matter."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skincancer.metrics.names import DEFAULT_METRICS, MAIN_METRICS
from skincancer.system.console import program, run_verb
from skincancer.system.interrupts import signals_as_interrupts

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


VIEW = "skincancer"  # the key of the saved view
# MLflow's UI keeps saved views as tags of an experiment; it opens one by this key in the address
_VIEW_TAG, _KIND_TAG = f"mlflow.sharedViewState.{VIEW}", "mlflow.experimentKind"
_PARAMS = {
    "classification": ("experiment", "split", "seed", "balance", "backbone", "weights", "size"),
    "segmentation": ("experiment", "split", "seed", "architecture", "backbone", "weights", "size"),
}
_PARAMS["joint"] = _PARAMS["segmentation"]


def save_views(client: MlflowClient) -> dict[str, str]:
    """Give every experiment of the project a saved view, unless it has one (yours, if you changed it); return name to id.

    Its table has split, seed, balance and backbone as columns to sort and group by, and the test metrics.
    """
    found = {}
    for experiment in client.search_experiments():
        task = experiment.name.rpartition("-")[2]
        if task not in _PARAMS:
            continue
        found[experiment.name] = experiment.experiment_id
        tags = {_KIND_TAG: "custom_model_development", _VIEW_TAG: _view(task)}
        for name, value in tags.items():
            if name not in experiment.tags:
                client.set_experiment_tag(experiment.experiment_id, name, value)
    return found


def _view(task: str) -> str:
    default = DEFAULT_METRICS[task]
    metrics = dict.fromkeys(f"test/{name}" for name in (default, *MAIN_METRICS[task]))
    columns = ["attributes.`Dataset`", "tags.`kind`", *(f"params.`{name}`" for name in _PARAMS[task])]
    columns += [f"metrics.`{name}`" for name in (*metrics, f"best/{default}")]
    state = {"selectedColumns": columns, "orderByKey": "attributes.start_time", "orderByAsc": False}
    now = int(time.time() * 1000)
    return json.dumps(
        {
            "name": "skincancer: what was run, and how good it is",
            "createdAt": now,
            "updatedAt": now,
            "state": json.dumps(state),
        }
    )


def open_ui(uri: str | None = None, host: str = "127.0.0.1", port: int = 5000) -> int:
    """Serve the MLflow UI until it is stopped; return the server's exit code.

    Args:
        uri: tracking URI; None takes $MLFLOW_TRACKING_URI, then the project's store.
        host: address to listen on; the UI has no password, so other hosts are for you to allow.
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
        raise RunError(f"{store} is a server: open it in a browser.")
    views = save_views(store.client)
    database = sqlite_path(store.uri)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        store.uri,
        "--host",
        host,
        "--port",
        str(port),
        "--workers",  # for one person; each takes seconds to start
        "1",
    ]
    if database:
        command += ["--default-artifact-root", (database.parent / "artifacts").as_uri()]
    print(f"MLflow on {store}: http://{host}:{port} (Ctrl-C stops it)")
    for name, number in views.items():
        print(
            f"  {name}: http://{host}:{port}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
        )
    sys.stdout.flush()
    # no jobs of language models here: the server need not start processes for them
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with signals_as_interrupts():
        # it has workers, which are to end with it
        server = subprocess.Popen(command, start_new_session=True, env=environment)
        try:
            return server.wait()
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait()


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of ui's flags."""
    parser = argparse.ArgumentParser(
        prog=program("ui"), description="The MLflow UI on the project's store.", allow_abbrev=False
    )
    parser.add_argument(
        "--tracking.uri", dest="uri", help="MLflow tracking URI; default $MLFLOW_TRACKING_URI, then mlruns/mlflow.db"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default %(default)s)")
    return parser


def _verb(argv: Sequence[str]) -> None:
    arguments = make_parser().parse_args(argv)
    code = open_ui(arguments.uri, arguments.host, arguments.port)
    if code:
        raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and serve; return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
