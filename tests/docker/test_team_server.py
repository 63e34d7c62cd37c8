"""Run the commands of docs/team.md on the services of docker/compose.yaml, as processes of this machine."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import compose_file
import postgres
import psutil
import psycopg
import pytest
import requests
from conftest import TINY_FIT, all_runs
from mlflow.tracking import MlflowClient

pytestmark = pytest.mark.slow

SPACE = "task: classification\nsearch:\n  model.optimizer.lr: {low: 1e-4, high: 1e-2, log: true}\n"


@dataclass
class Team:
    """Server of a team, with one fit and one sweep of one trial."""

    folder: Path
    port: int
    mlflow: int
    dashboard: int
    password: str

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.mlflow}"

    def run(self, script: str) -> None:
        """Run a script of the page in the folder `docker`, with a replacement of the command `docker`."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder / "docker", capture_output=True, text=True, timeout=400,
            env={**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "NATIVE_COMPOSE": f"{self.folder}/native.json"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def studies(self) -> list[str]:
        """Names of the studies in the dashboard."""
        answer = requests.get(f"http://127.0.0.1:{self.dashboard}/api/studies", timeout=30)
        return [study["study_name"] for study in answer.json()["study_summaries"]]

    def files(self) -> dict[str, bytes]:
        """Contents of the figures and tables of all runs, as the server sends them."""
        client, contents = MlflowClient(self.uri), {}
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        for run in runs:
            for entry in client.list_artifacts(run.info.run_id):
                if not entry.is_dir:
                    local = client.download_artifacts(run.info.run_id, entry.path)
                    contents[f"{run.info.run_id}/{entry.path}"] = Path(local).read_bytes()
        return contents


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def make_databases(port: int, password: str) -> None:
    """Make the role and the databases as the image of PostgreSQL does at its first start."""
    image = compose_file.read_services({"POSTGRES_PASSWORD": password})["postgres"]["environment"]
    user = image["POSTGRES_USER"]
    with psycopg.connect(postgres.url(port, "postgres"), autocommit=True) as connection:
        for database in ("mlflow", "sweeps"):
            connection.execute(f"DROP DATABASE IF EXISTS {database}")
        connection.execute(f"DROP ROLE IF EXISTS {user}")
        connection.execute(f"CREATE ROLE {user} SUPERUSER LOGIN PASSWORD '{password}'")
        connection.execute(f"CREATE DATABASE {image['POSTGRES_DB']} OWNER {user}")
    libpq = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGPASSWORD": password, "POSTGRES_USER": user}
    path = f"{postgres.find_binaries()}:{os.environ['PATH']}"
    subprocess.run([compose_file.DOCKER / "databases.sh"], check=True, env={**os.environ, **libpq, "PATH": path})


@pytest.fixture(scope="module")
def team(server: int, session_cache: Path, tiny_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    shutil.copytree(compose_file.DOCKER, folder / "docker", ignore=shutil.ignore_patterns(".env", "backup"))
    (folder / "bin").mkdir()
    script = folder / "bin" / "docker"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {compose_file.CHECKOUT}/tests/native_compose.py "$@"\n')
    script.chmod(0o755)
    (folder / "artifacts").mkdir()
    ports = {"postgres": server, "mlflow": free_port(), "dashboard": free_port()}
    places = {"artifacts": str(folder / "artifacts"), "folder": str(folder)}
    (folder / "native.json").write_text(json.dumps({**ports, **places}))
    made = Team(folder, server, ports["mlflow"], ports["dashboard"], "")

    environment, start = compose_file.blocks("Start the server")
    made.run(next(line for line in environment.splitlines() if ".env" in line))
    file = folder / "docker" / ".env"
    assert file.stat().st_mode & 0o777 == 0o600
    made.password = compose_file.read_variables(file)["POSTGRES_PASSWORD"]
    assert len(made.password) == 48
    with open(file, "a") as settings:
        settings.write(f"MLFLOW_PORT={made.mlflow}\nSERVER=head\n")
    make_databases(server, made.password)
    try:
        made.run(start)
        train(made, tiny_demo, session_cache)
        yield made
    finally:
        made.run("docker compose stop mlflow dashboard")


def train(team: Team, root: Path, cache: Path) -> None:
    """Fit, then sweep with one trial, in a process that ends its connections to the database."""
    # From an installed package, unlike from a checkout, runs in progress are in the working directory.
    package = team.folder / "installed" / "skincancer"
    shutil.copytree(compose_file.CHECKOUT / "skincancer", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(compose_file.CHECKOUT / "experiments", package / "experiments")
    (team.folder / "tiny.yaml").write_text(SPACE)
    flags = [f"--experiment={team.folder / 'tiny.yaml'}", f"--data.root={root}", *TINY_FIT]
    storage = f"--storage=postgresql://skincancer@127.0.0.1:{team.port}/sweeps"
    code = (
        "from skincancer import fit, sweep\n"
        f"assert fit.main({flags}) == 0\n"
        f"assert sweep.main({[*flags, '--trials=1', '--study=mine', storage]}) == 0\n"
    )
    environment = {
        **os.environ, "SKINCANCER_CACHE": str(cache), "MLFLOW_TRACKING_URI": team.uri, "PGPASSWORD": team.password,
        "PGPASSFILE": "/dev/null", "PYTHONPATH": str(package.parent),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=team.folder, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_runs_are_on_the_server(team, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", team.uri)
    runs = all_runs()
    assert sorted(run.data.tags["kind"] for run in runs) == ["fit", "sweep", "trial"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    stored = {path.name for path in (team.folder / "artifacts").rglob("*") if path.is_file()}
    assert {"best.yaml", "trials.csv"} <= stored
    assert team.studies() == ["mine"]
    assert (team.folder / "mlruns" / "sweeps").is_dir()


def test_the_password_is_needed_and_in_no_command_and_no_log(team):
    address = {"host": "127.0.0.1", "port": team.port, "user": "skincancer"}
    for database in ("mlflow", "sweeps"):
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(**address, dbname=database, passfile="/dev/null")
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    assert any(f"--port={team.mlflow}" in command for command in commands)
    assert any(f"--port={team.dashboard}" in command for command in commands)
    assert not any(team.password in command for command in commands)
    logs = [path.read_text() for path in team.folder.glob("*.log")]
    assert len(logs) == 2
    assert not any(team.password in log for log in logs)
    client = MlflowClient(team.uri)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert team.password not in "".join(str(run.to_dictionary()) for run in runs)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("head:{port}", "http://head:{port}", 200),
        ("head", "https://head", 200),
        ("mlflow:5000", None, 200),
        ("head:{port}", "http://other", 403),
        ("other:{port}", None, 403),
    ],
)
def test_a_browser_on_another_machine(team, host, origin, status):
    headers = {"Host": host.format(port=team.mlflow)}
    if origin:
        headers["Origin"] = origin.format(port=team.mlflow)
    answer = requests.post(
        f"{team.uri}/ajax-api/2.0/mlflow/runs/search", json={"experiment_ids": ["0"]}, headers=headers, timeout=30
    )
    assert answer.status_code == status


def test_runs_and_studies_survive_an_upgrade_with_a_restart(team):
    before, started = team.files(), (team.folder / "mlflow.pid").read_text()
    assert any(name.endswith("best.yaml") for name in before)
    pull, upgrade = compose_file.blocks("Upgrade")
    assert "git pull" in pull
    team.run(upgrade)
    assert (team.folder / "mlflow.pid").read_text() != started
    assert team.files() == before
    assert team.studies() == ["mine"]


def test_runs_and_studies_are_restored_from_a_backup(team):
    before = team.files()
    (backup,) = compose_file.blocks("Back up runs and studies")
    team.run(backup)

    # a new server: empty databases and no artifacts
    team.run("docker compose stop mlflow dashboard")
    with pytest.raises(requests.ConnectionError):
        team.studies()
    shutil.rmtree(team.folder / "artifacts")
    (team.folder / "artifacts").mkdir()
    make_databases(team.port, team.password)

    (restore,) = compose_file.blocks("Restore a backup")
    team.run(restore)
    assert team.files() == before
    assert team.studies() == ["mine"]
