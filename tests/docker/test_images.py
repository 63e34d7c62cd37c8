"""Build both images with buildah, on a base from debootstrap that replaces the official Python image."""

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_file import CHECKOUT, DOCKER

pytestmark = pytest.mark.slow

VERSION = "1.2.3"
# buildah stores an image three times while it commits: the container, a temporary archive, the layer. The train image has 7 GB.
FREE_GIGABYTES = {"base": 2, "server": 6, "train": 28}
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def need(*programs: str) -> None:
    """Skip the test where an image cannot be built."""
    if os.geteuid() != 0:
        pytest.skip("building an image needs root")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install {program}")


class Builder:
    """buildah with its own storage, so that no image is left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = ["--root", f"{folder}/storage", "--runroot", f"{folder}/run"]

    def __call__(self, command: str, *words: object) -> str:
        done = subprocess.run(
            ["buildah", *self.options, command, *map(str, words)], capture_output=True, text=True, timeout=3000,
            env={**os.environ, "TMPDIR": str(self.folder)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout.strip()

    def need_space(self, image: str) -> None:
        free = shutil.disk_usage(self.folder).free / 1e9
        if free < FREE_GIGABYTES[image]:
            pytest.skip(f"{free:.0f} GB are free in {self.folder}; the image {image} needs {FREE_GIGABYTES[image]}")

    def build(self, target: str) -> str:
        """Build a target of the Dockerfile, and return the name of a container of the image."""
        self.need_space(target)
        self(
            "build", "--isolation", "chroot", "--format", "docker", "--target", target, "--tag", target,
            "--build-arg", "PYTHON_IMAGE=localhost/base", "--build-arg", f"VERSION={VERSION}",
            "--file", DOCKER / "Dockerfile", CHECKOUT,
        )  # fmt: skip
        return self("from", f"localhost/{target}")

    def run(self, container: str, *words: str) -> str:
        """Run a command with the user, the environment and the working directory of the image."""
        return self("run", "--isolation", "chroot", container, "--", *words)


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Builder]:
    need("buildah")
    made = Builder(tmp_path)
    yield made
    made("rm", "--all")
    made("rmi", "--all", "--force")


@pytest.fixture
def base(builder: Builder) -> Builder:
    """Builder with an image `base`: Debian's Python with venv, as in the official image."""
    need("debootstrap")
    builder.need_space("base")
    container = builder("from", "scratch")
    root = builder("mount", container)
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", root], check=True, stdout=subprocess.DEVNULL
    )
    # If a proxy of the network has its own certificate, the build needs the certificates of this machine.
    shutil.copy(CERTIFICATES, f"{root}{CERTIFICATES}")
    builder("config", "--env", f"PIP_CERT={CERTIFICATES}", container)
    builder("commit", "--rm", container, "localhost/base")
    return builder


def test_the_context_is_what_the_dockerignore_file_says(builder, tmp_path):
    context = tmp_path / "context"
    for name in (
        "skincancer/a.py",
        "skincancer/__pycache__/a.pyc",
        "docker/.env",
        "docker/server.txt",
        "data/a.jpg",
        "LICENSE",
    ):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text("x")
    shutil.copy(CHECKOUT / ".dockerignore", context)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    builder("build", "--isolation", "chroot", "--tag", "context", "--file", tmp_path / "Dockerfile", context)
    root = Path(builder("mount", builder("from", "localhost/context")))
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files - {"etc/hosts", "etc/resolv.conf"} == {"skincancer/a.py", "docker/server.txt", "LICENSE"}


def test_the_server_image(base):
    container = base.build("server")
    code = "import boto3, mlflow, optuna_dashboard, os, psycopg; open('/artifacts/x', 'w'); print(os.geteuid())"
    assert base.run(container, "python", "-c", code) == "1000"
    assert base.run(container, "mlflow", "--version").startswith("mlflow, version 3.")


def test_the_train_image(base):
    container = base.build("train")
    assert "densenet169_undersample" in base.run(container, "skincancer", "fit", "--list")
    code = (
        "import importlib.metadata, os\n"
        "for name in ('/data', '/cache', '/work', '.'):\n"
        "    assert os.access(name, os.W_OK), name\n"
        "print(os.geteuid(), os.getcwd(), importlib.metadata.version('skincancer'))"
    )
    # A version that pyproject.toml contains wins over the argument of the build.
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert base.run(container, "python", "-c", code) == f"1000 /work {project.get('version', VERSION)}"
    assert "version 2." in base.run(container, "ray", "--version")
