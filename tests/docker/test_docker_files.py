"""Check the files of docker/ without a container engine."""

import json
import re
import subprocess
import sys
from pathlib import Path

import compose_file
import pytest
from compose_file import CHECKOUT, DOCKER, PAGE
from packaging.requirements import Requirement

from skincancer.system.yaml_files import load_yaml

SECRET = "s3cr3t"
COMPOSE = ("compose.yaml", "compose.gpu.yaml")
TEXTS = [PAGE, *sorted(path for path in DOCKER.iterdir() if path.is_file() and path.name != ".env")]
SCRIPTS = [*compose_file.blocks(), (DOCKER / "databases.sh").read_text(encoding="utf-8")]


def tool(name: str, *arguments: object) -> str:
    """Run a program of the environment, and return its output, which is empty without faults."""
    words = [str(Path(sys.executable).with_name(name)), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def copied_paths() -> list[str]:
    """Paths of the build context that the Dockerfile copies."""
    lines = (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [path for line in lines if line.startswith("COPY ") for path in line.split()[1:-1]]


def is_in_context(path: str) -> bool:
    """Return whether .dockerignore lets a file into the build context. The last pattern that matches decides."""
    let_in = True
    for line in (CHECKOUT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            matches = pattern.removeprefix("**/") in Path(path).parts
        else:
            matches = pattern == "*" or f"{path}/".startswith(f"{pattern}/")
        if matches:
            let_in = line.startswith("!")
    return let_in


def test_hadolint_finds_nothing():
    assert tool("hadolint", "--no-color", DOCKER / "Dockerfile") == ""


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_follow_the_specification(name, tmp_path):
    assert tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DOCKER / name) == ""
    (tmp_path / name).write_text(re.sub("^services:", "service:", (DOCKER / name).read_text(), flags=re.M))
    assert "service" in tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", tmp_path / name)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script, tmp_path):
    (tmp_path / "script.sh").write_text(script)
    # People type the commands of the page one by one, so `cd` needs no `|| exit`.
    assert tool("shellcheck", "--shell=bash", "--exclude=SC2164", tmp_path / "script.sh") == ""


def test_the_files_that_are_copied_exist_and_are_in_the_context():
    copied = copied_paths()
    assert {"pyproject.toml", "skincancer", "experiments", "docker/server.txt"} <= set(copied)
    for path in copied:
        assert (CHECKOUT / path).exists(), path
        assert is_in_context(path if (CHECKOUT / path).is_file() else f"{path}/x.py"), path


def test_the_context_has_no_other_files():
    folders = {"skincancer", "experiments", "tests", "docs", "docker", "benchmarks", ".ci"}
    files = [str(path.relative_to(CHECKOUT)) for path in CHECKOUT.iterdir() if path.is_file()]
    for folder in folders:
        files += [str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / folder).rglob("*") if path.is_file()]
    files += ["docker/.env", "docker/backup/mlflow.dump", "data/ham10000/a.jpg", "mlruns/mlflow.db", ".git/config"]
    files += ["skincancer/__pycache__/a.pyc", "skincancer/data/__pycache__/a.pyc"]
    copied = copied_paths()
    others = [
        file for file in files if is_in_context(file) and not any(f"{file}/".startswith(f"{path}/") for path in copied)
    ]
    assert others == []
    assert [file for file in files if is_in_context(file) and "__pycache__" in file] == []


def test_the_service_images_are_targets_of_the_dockerfile():
    targets = re.findall(r"^FROM .* AS (\w+)$", (DOCKER / "Dockerfile").read_text(), re.M)
    services = compose_file.read_services({"POSTGRES_PASSWORD": SECRET})
    builds = {name: service["build"] for name, service in services.items() if "build" in service}
    assert {name: build["target"] for name, build in builds.items()} == {"mlflow": "server", "train": "train"}
    for build in builds.values():
        assert build["target"] in targets
        assert (DOCKER / build["context"] / build["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    assert set(compose_file.read_services({}, DOCKER / "compose.gpu.yaml")) == {"train"}


def test_options_of_the_mlflow_server_are_known():
    from mlflow.cli import server

    program, command, *options = compose_file.read_services({"POSTGRES_PASSWORD": SECRET})["mlflow"]["command"]
    assert (program, command) == ("mlflow", "server")
    known = {name for parameter in server.params for name in parameter.opts}
    assert {option.partition("=")[0] for option in options} <= known


def test_the_password_is_in_the_environment_only():
    with pytest.raises(KeyError, match="POSTGRES_PASSWORD is not set: copy"):
        compose_file.read_services({})
    places = []
    for name, service in compose_file.read_services({"POSTGRES_PASSWORD": SECRET}).items():
        places += [f"{name} {key}" for key, value in service["environment"].items() if value == SECRET]
        rest = {
            **service,
            "environment": {key: value for key, value in service["environment"].items() if value != SECRET},
        }
        assert SECRET not in json.dumps(rest)
    assert sorted(places) == [
        "dashboard PGPASSWORD",
        "mlflow PGPASSWORD",
        "postgres POSTGRES_PASSWORD",
        "train PGPASSWORD",
    ]


@pytest.mark.parametrize("path", TEXTS, ids=[path.name for path in TEXTS])
def test_no_url_has_a_password(path):
    assert re.findall(r"\w+://[^\s/@]*:[^\s/@]*@", path.read_text(encoding="utf-8")) == []


def test_the_password_file_is_never_committed():
    assert {"/docker/.env", "/docker/backup/"} <= set((CHECKOUT / ".gitignore").read_text().splitlines())
    assert "POSTGRES_PASSWORD" not in compose_file.read_variables(DOCKER / ".env.example")


def test_every_variable_is_in_the_example():
    texts = [(DOCKER / name).read_text() for name in COMPOSE]
    used = {name for text in texts for name in re.findall(r"\$\{(\w+)", text)}
    used |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MLFLOW_S3_ENDPOINT_URL"}
    example = (DOCKER / ".env.example").read_text()
    assert [name for name in sorted(used) if not re.search(rf"\b{name}=", example)] == []
    passed = compose_file.read_services({"POSTGRES_PASSWORD": SECRET})["mlflow"]["environment"]
    assert {name for name in used if name.startswith(("AWS_", "MLFLOW_S3"))} <= set(passed)


def test_the_server_has_the_versions_of_the_project():
    project = [line.strip().strip(",") for line in (CHECKOUT / "pyproject.toml").read_text().splitlines()]
    wanted = {}
    for line in project:
        if match := re.match(r'"((?:mlflow|optuna)[<>=][^"]*)"', line):
            requirement = Requirement(match[1])
            wanted[requirement.name] = requirement.specifier
    lines = [line.partition("#")[0].strip() for line in (DOCKER / "server.txt").read_text().splitlines()]
    server = {requirement.name: requirement.specifier for requirement in map(Requirement, filter(None, lines))}
    assert set(wanted) == {"mlflow", "optuna"}
    assert {name: server[name] for name in wanted} == wanted


def test_the_dev_container_installs_as_the_readme_does():
    settings = load_yaml(CHECKOUT / ".devcontainer" / "devcontainer.json")
    assert f"{settings['postCreateCommand']} && " in (CHECKOUT / "README.md").read_text(encoding="utf-8")
