"""Replacement of `docker compose` for tests: runs the services of docker/compose.yaml as local processes.

The working directory has the file `.env`. The environment variable NATIVE_COMPOSE names a JSON file with the ports, the folder of the
artifacts and the folder of the logs. PostgreSQL must run already.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import postgres
import psutil
from compose_file import read_services, read_variables

WAIT_SECONDS = 120


def main(arguments: list[str]) -> int:
    """Run one command: up, stop, exec or run."""
    settings = json.loads(Path(os.environ["NATIVE_COMPOSE"]).read_text())
    services = read_services(read_variables(Path(".env")))
    compose, action, *rest = arguments
    assert compose == "compose", arguments
    while rest and rest[0].startswith("-"):
        assert rest.pop(0) in ("-d", "-T", "--build", "--rm", "--wait")
    if action in ("exec", "run"):
        name, *words = rest
        return subprocess.run(localize(words, settings), env=environment(services[name], settings)).returncode
    names = rest or [name for name, service in services.items() if not service.get("profiles")]
    for name in names:
        # The server of the test session is not a process of this file.
        if name != "postgres":
            {"up": start, "stop": stop}[action](name, services[name], settings)
    return 0


def localize(words: list[str], settings: dict[str, Any]) -> list[str]:
    """Replace host names, ports and paths of containers by local values."""
    text = "\0".join(words).replace("@postgres/", "@127.0.0.1/").replace("0.0.0.0", "127.0.0.1")
    for port, name in (("5000", "mlflow"), ("8080", "dashboard")):
        text = re.sub(rf"(--port=|127\.0\.0\.1:){port}\b", rf"\g<1>{settings[name]}", text)
    return re.sub(r"(=|\0)/artifacts\b", rf"\g<1>{settings['artifacts']}", text).split("\0")


def environment(service: dict[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a service, with local values."""
    own = {name: localize([value], settings)[0] for name, value in service["environment"].items() if value}
    user, password = (own.pop(f"POSTGRES_{name}", None) for name in ("USER", "PASSWORD"))
    if user and password:
        own |= {"PGUSER": user, "PGPASSWORD": password}
    path = f"{Path(sys.executable).parent}:{postgres.find_binaries()}:{os.environ['PATH']}"
    fixed = {"PGHOST": "127.0.0.1", "PGPORT": str(settings["postgres"]), "PGPASSFILE": "/dev/null", "PATH": path}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "MLFLOW_"))}
    return {**kept, **own, **fixed}


def start(name: str, service: dict[str, Any], settings: dict[str, Any]) -> None:
    """Start a service unless it runs, and wait until its health check passes."""
    if not is_alive(name, settings):
        with open(Path(settings["folder"]) / f"{name}.log", "a") as log:
            process = subprocess.Popen(
                localize(service["command"], settings), env=environment(service, settings), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        pid_file(name, settings).write_text(str(process.pid))
    kind, *check = localize(service["healthcheck"]["test"], settings)
    assert kind == "CMD"
    deadline = time.monotonic() + WAIT_SECONDS
    while subprocess.run(check, env=environment(service, settings), stderr=subprocess.DEVNULL).returncode:
        if time.monotonic() > deadline or not is_alive(name, settings):
            sys.exit(f"{name} is not healthy: {(Path(settings['folder']) / f'{name}.log').read_text()[-3000:]}")
        time.sleep(0.5)


def stop(name: str, service: dict[str, Any], settings: dict[str, Any]) -> None:
    """Stop a service as `docker compose` does: SIGTERM, and SIGKILL for all of its processes after ten seconds."""
    if not is_alive(name, settings):
        return
    number = int(pid_file(name, settings).read_text())
    os.kill(number, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while is_alive(name, settings) and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(number, signal.SIGKILL)


def pid_file(name: str, settings: dict[str, Any]) -> Path:
    """Return the file with the process id of a service."""
    return Path(settings["folder"]) / f"{name}.pid"


def is_alive(name: str, settings: dict[str, Any]) -> bool:
    """Return whether the main process of a service runs. A zombie does not, and perhaps nobody collects it here."""
    try:
        return psutil.Process(int(pid_file(name, settings).read_text())).status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
