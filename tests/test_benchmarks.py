"""The scripts behind the figures still run against the package as it is."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

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
def test_look_alikes_are_measured(tiny_demo):
    flags = ["--root", str(tiny_demo), "--images=20"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / "look_alikes.py"), *flags], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("unchanged", "cut out on black"))]
    assert [(row[-8], row[-7]) for row in rows] == [("1.0000", "0")] * 4


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
    assert "a perceptual hash, 16 of 64 bits apart: recall 1.000" in done.stdout


@pytest.mark.slow
def test_the_dermoscopy_score_is_held_against_diagnoses(tmp_path):
    rng = np.random.default_rng(0)
    label = np.repeat([1, 0, 0], 40)
    score = 4 + 2 * label + rng.normal(size=120)
    names = [f"abcd_structure_{name}" for name in ("dots", "globules", "count")]
    names += [f"abcd_structure_{name}_present" for name in ("network", "structureless", "dots", "globules", "streaks")]
    table = pd.DataFrame({"diagnosis": np.where(label, "mel", "nv"), "lesion_id": np.arange(120), "abcd_tds": score})
    table = table.assign(abcd_tds_without_d=0.0, **dict.fromkeys(names, 1.0))
    table.to_csv(tmp_path / "features.csv", index=False)
    done = subprocess.run(
        [sys.executable, str(FOLDER / "tds.py"), str(tmp_path / "features.csv")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0].split(" AUROC")[0].strip(): line for line in done.stdout.splitlines()}
    assert f"AUROC {roc_auc_score(label, score):.3f} (" in lines["abcd_tds"]
    assert "AUROC 0.500 (" in lines["abcd_tds_without_d"]
    assert f"sensitivity at 5.45: {(score[label == 1] > 5.45).mean():.3f} (" in done.stdout
    assert f"specificity at 5.45: {(score[label == 0] <= 5.45).mean():.3f} (" in done.stdout
