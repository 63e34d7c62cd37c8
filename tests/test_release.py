"""Test what a release consists of: version, wheel, sdist, metadata, and the workflows that build and publish it."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

CHECKOUT = Path(__file__).parents[1]
WORKFLOWS = sorted((CHECKOUT / ".github/workflows").glob("*.yml"))
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
FALLBACK = PROJECT["tool"]["hatch"]["version"]["fallback-version"]
REPOSITORY = "https://github.com/skincancer-experiments/skincancer"
# Files that a checkout contains after some work, and a release must not contain.
STRAYS = (
    "mlruns/mlflow.db",
    "data/demo/a.jpg",
    ".venv/bin/python",
    "dist/old.whl",
    "notes.txt",
    "skincancer/__pycache__/a.pyc",
)


def run(folder: Path, *command: str) -> str:
    """Return the output of a command, without the git settings of this machine and of pip."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "SETUPTOOLS_SCM_"))
    }
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    run(folder, "git", *who, "commit", "--quiet", "--allow-empty", "--message=a")


def version_of(folder: Path) -> str:
    return run(folder, sys.executable, "-m", "hatchling", "version").strip()


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Names of the files that a clone of this repository contains."""
    if shutil.which("git") is None or not (CHECKOUT / ".git").exists():
        pytest.skip("needs a clone of the repository")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split("\0") if name and (CHECKOUT / name).is_file()]


@pytest.fixture(scope="module")
def source(tracked, tmp_path_factory) -> Path:
    """A used checkout: the tracked files, files of some work, and one commit with the tag v9.8.7."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, folder / name)
    run(folder, "git", "init", "--quiet")
    run(folder, "git", "add", "--all")
    commit(folder)
    run(folder, "git", "tag", "v9.8.7")
    for name in STRAYS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("stray")
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory) -> Path:
    """The folder with the sdist, and the wheel that is built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(source, sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> dict[str, bytes]:
    return content_of(built / "skincancer-9.8.7-py3-none-any.whl")


def content_of(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata_of(wheel: dict[str, bytes]) -> Message:
    return BytesParser().parsebytes(wheel["skincancer-9.8.7.dist-info/METADATA"])


def test_wheel_contains_the_package_and_the_experiments_only(wheel, tracked):
    package = {name for name in tracked if name.startswith("skincancer/")}
    experiments = {f"skincancer/{name}" for name in tracked if name.startswith("experiments/")}
    assert len(experiments) >= 30
    assert "skincancer/py.typed" in package
    added = {f"skincancer-9.8.7.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")}
    assert set(wheel) == package | experiments | added | {"skincancer-9.8.7.dist-info/licenses/LICENSE"}


def test_sdist_contains_the_tracked_files_only(built, tracked):
    with tarfile.open(built / "skincancer-9.8.7.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    # A new file at the root of the repository needs its name in `only-include` of pyproject.toml.
    assert names == {*tracked, "PKG-INFO"}


def test_sdist_builds_the_same_wheel_as_the_checkout(source, wheel, tmp_path):
    run(source, sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path))
    assert content_of(tmp_path / "skincancer-9.8.7-py3-none-any.whl") == wheel


def test_metadata_is_complete(wheel):
    metadata = metadata_of(wheel)
    assert metadata["Name"] == "skincancer"
    assert metadata["Version"] == "9.8.7"
    assert metadata["Author"] == "skincancer contributors"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "dermoscopy" in metadata["Keywords"].split(",")
    links = dict(line.split(", ") for line in metadata.get_all("Project-URL"))
    assert set(links) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert all(link.startswith(REPOSITORY) for link in links.values())
    assert b"skincancer = skincancer.__main__:main" in wheel["skincancer-9.8.7.dist-info/entry_points.txt"]


def test_classifiers_name_the_tested_pythons(wheel):
    classifiers = metadata_of(wheel).get_all("Classifier")
    versions = re.findall(r":: Python :: (3\.\d+)$", "\n".join(classifiers), re.M)
    jobs = yaml.safe_load((CHECKOUT / ".github/workflows/ci.yml").read_text())["jobs"]
    assert versions == jobs["tests"]["strategy"]["matrix"]["python"]
    assert "Typing :: Typed" in classifiers


def test_links_of_the_readme_work_outside_the_repository(wheel):
    readme = str(metadata_of(wheel).get_payload())
    assert f"]({REPOSITORY}/blob/main/docs/results.md)" in readme
    targets = re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', readme)
    assert len(targets) >= 20
    assert all("".join(target).startswith("https://") for target in targets)


def test_version_is_that_of_the_tag(source):
    assert version_of(source) == "9.8.7"


def test_version_after_a_tag_names_the_commit(source, tmp_path):
    run(tmp_path, "git", "clone", "--quiet", str(source), "copy")
    commit(tmp_path / "copy")
    assert re.fullmatch(r"9\.8\.8\.dev1\+g[0-9a-f]+", version_of(tmp_path / "copy"))


@pytest.mark.parametrize("depth", [[], ["--depth=1"]])
def test_clones_without_tags_have_a_version_after_the_last_release(source, tmp_path, depth):
    run(tmp_path, "git", "clone", "--quiet", "--no-tags", *depth, source.as_uri(), "copy")
    version = version_of(tmp_path / "copy")
    assert re.fullmatch(re.escape(FALLBACK.removesuffix("0")) + r"[0-9]+\+g[0-9a-f]+", version)


def test_folder_without_git_has_the_fallback_version(source, tmp_path):
    # A repository around the folder is another project.
    run(tmp_path, "git", "init", "--quiet")
    commit(tmp_path)
    run(tmp_path, "git", "tag", "v1.2.3")
    shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))
    assert version_of(tmp_path / "copy") == FALLBACK


def test_fallback_version_follows_the_last_release():
    changelog = (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\S+)", changelog, re.M)
    assert headings[0] == "Unreleased"
    last = max(map(Version, headings[1:]))
    assert f"{last.major}.{last.minor}.{last.micro + 1}.dev0" == FALLBACK


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_workflows_follow_the_schema(schema):
    assert len(WORKFLOWS) == 2
    run(CHECKOUT, sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, WORKFLOWS))


def test_citation_follows_its_schema():
    run(
        CHECKOUT,
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.citation-file-format",
        "CITATION.cff",
    )


def test_workflows_pin_actions_and_have_least_permissions():
    zizmor = shutil.which("zizmor", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert zizmor, "pip install -e '.[test]'"
    run(CHECKOUT, zizmor, "--offline", "--no-config", *map(str, WORKFLOWS))
    for path in WORKFLOWS:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] in ({}, {"contents": "read"})
        granted = [job["permissions"] for job in workflow["jobs"].values() if "permissions" in job]
        assert all(rights in ({"contents": "read"}, {"id-token": "write"}) for rights in granted)


def test_public_ci_runs_the_commands_of_the_ci_script():
    script = (CHECKOUT / ".ci/run").read_text()
    commands = [
        line.replace("$place", "$RUNNER_TEMP") for line in re.findall(r'^"\$place/venv/bin/(.+)$', script, re.M)
    ]
    commands = [command.replace('"', "", 1) for command in commands]
    assert len(commands) >= 6
    (line,) = re.findall(r'^python3 .*"\.\[test\]".*$', (CHECKOUT / "README.md").read_text(), re.M)
    commands += [part.strip().removeprefix(".venv/bin/") for part in line.split("&&")[1:]]
    jobs = yaml.safe_load((CHECKOUT / ".github/workflows/ci.yml").read_text())["jobs"]
    steps = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert set(commands) <= steps
