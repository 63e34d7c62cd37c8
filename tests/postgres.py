"""A PostgreSQL server of its own for the tests: Debian's package, started as a user that it accepts."""

import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

USER, PASSWORD = "sweeper", "s3cr3t/p@ss"


def find_binaries() -> Path | None:
    """The folder of initdb and postgres, or None where the server is not installed."""
    found = [*sorted(glob.glob("/usr/lib/postgresql/*/bin")), str(Path(shutil.which("initdb") or "/none").parent)]
    return next((Path(folder) for folder in reversed(found) if (Path(folder) / "initdb").exists()), None)


@contextmanager
def running_server(binaries: Path) -> Iterator[int]:
    """Start a server with password authentication; yield its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="skincancer-postgres-"))
    other = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        names = [name for name in ("postgres", "nobody") if _exists(name)]
        other = {"user": names[0]}
        os.chown(folder, pwd.getpwnam(names[0]).pw_uid, -1)
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": folder, **other}
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", USER, "-A", "scram-sha-256", "--pwfile", folder / "password", "-N",
         "-E", "UTF8", "--no-locale"],  # otherwise the encoding of the tester's locale
        check=True, **quiet,
    )  # fmt: skip
    command = [binaries / "pg_ctl", "-D", data, "-w", "-t", "60", "-l", folder / "log"]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=60"
    subprocess.run([*command, "-o", options, "start"], check=True, **quiet)
    try:
        yield port
    finally:
        subprocess.run([*command, "-m", "immediate", "stop"], check=True, **quiet)
        shutil.rmtree(folder, ignore_errors=True)


def url(port: int, database: str) -> str:
    """The URL of a database of the server."""
    return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/{database}"


def new_database(port: int) -> str:
    """Make an empty database; return its URL, as a sweep and MLflow take it."""
    name = f"sweep{time.monotonic_ns()}"
    with psycopg.connect(url(port, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return url(port, name).replace("postgresql:", "postgresql+psycopg:")


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
