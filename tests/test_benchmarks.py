"""The scripts behind the figures of speed still run against the package as it is."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.py") if path.name != "side_by_side.py"))
def test_benchmark_imports_and_explains_itself(script):
    done = subprocess.run([sys.executable, str(FOLDER / script), "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [["--backbone=test_efficientnet"], ["--task=segmentation", "--backbone=tu-test_resnet"]]
)
def test_an_epoch_is_measured(network, tiny_demo):
    flags = ["--root", str(tiny_demo), "--size=32", "--batch=8", "--rounds=1", *network]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "epoch.py"), *flags, "--accelerator=cpu"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "light" in done.stdout


def test_hair_removal_is_measured():
    flags = ["--images=2", "--rounds=1", "--width=120", "--height=90"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "hair.py"), *flags], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    dice = {tuple(line.split()[:-6]): float(line.split()[-6]) for line in done.stdout.splitlines() if "dB" in line}
    assert len(dice) == 6
    assert all(0 <= value <= 1 for value in dice.values())


@pytest.mark.slow
def test_planted_copies_are_counted(tiny_demo):
    flags = ["--root", str(tiny_demo), "--counts", "30", "--planted=1"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "audit.py"), *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "37 images" in done.stdout
    recall = {
        line[:16].strip(): line[16:].split()[1:3] for line in done.stdout.splitlines() if line[:4] in ("flip", "all ")
    }
    assert recall["flip"] == ["1.000", "1.000"]
    assert float(recall["all"][0]) > 0.8
