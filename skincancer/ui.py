"""The MLflow UI on the project's store: `python -m skincancer.ui`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from skincancer.terminal import run_verb, signals_as_interrupts


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
    from skincancer.paths import sqlite_path, tracking_uri
    from skincancer.tracking import connect

    resolved = tracking_uri(uri)
    if resolved.startswith(("http:", "https:")):
        raise RunError(f"{resolved} is a server: open it in a browser.")
    connect(resolved)  # creates the store where there is none yet, and says what is wrong with it
    database = sqlite_path(resolved)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        resolved,
        "--host",
        host,
        "--port",
        str(port),
    ]
    if database:
        command += ["--default-artifact-root", (database.parent / "artifacts").as_uri()]
    print(f"MLflow on {resolved}: http://{host}:{port} (Ctrl-C stops it)", flush=True)
    with signals_as_interrupts():
        server = subprocess.Popen(command, start_new_session=True)  # it has workers, which are to end with it
        try:
            return server.wait()
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait()


def _verb(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m skincancer.ui", description="The MLflow UI on the project's store.", allow_abbrev=False
    )
    parser.add_argument(
        "--tracking.uri", dest="uri", help="MLflow tracking URI; default $MLFLOW_TRACKING_URI, then mlruns/mlflow.db"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default %(default)s)")
    arguments = parser.parse_args(argv)
    code = open_ui(arguments.uri, arguments.host, arguments.port)
    if code:
        raise SystemExit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and serve; return the exit code."""
    return run_verb(_verb, argv)


if __name__ == "__main__":
    sys.exit(main())
