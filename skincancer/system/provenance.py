"""Code and software versions of a run: git commit and installed packages."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path


def package_version() -> str:
    """Return the version of the installed package, which the build reads from git."""
    try:
        return importlib.metadata.version("skincancer")
    except importlib.metadata.PackageNotFoundError:
        # A folder on PYTHONPATH that was never installed.
        return "0+unknown"


def git_tags() -> dict[str, str]:
    """Return commit and dirty flag of the checkout, or empty strings."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    # The status of an unrelated repository around site-packages would be misleading.
    if commit is None or git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return {"git_commit": "", "git_dirty": ""}
    return {"git_commit": commit, "git_dirty": str(bool(git("status", "--porcelain"))).lower()}


def model_requirements(*more: str) -> list[str]:
    """Return the pinned requirements of a logged model, including `more` packages.

    MLflow would import the model twice to infer the requirements.
    """
    return [
        f"{name}=={importlib.metadata.version(name)}"
        for name in ("torch", "timm", "pytorch-lightning", "mlflow", "numpy", "pandas", *more)
    ]


# Cached, because hundreds of metadata files are read.
@functools.cache
def environment_text() -> str:
    """Return versions of Python, platform and installed distributions, one per line."""
    files = [distribution.metadata for distribution in importlib.metadata.distributions()]
    names = {file["Name"]: file["Version"] for file in files if file["Name"]}
    packages = [f"{name}=={version}" for name, version in sorted(names.items(), key=lambda item: item[0].lower())]
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *packages]) + "\n"
