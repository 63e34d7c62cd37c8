"""Names of the files that runs leave behind, each defined once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from skincancer.schema import DEEP, Experiment
from skincancer.system.credentials import without_password

CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.json"
SPLIT_FILE = "split.csv"
DROPPED_FILE = "dropped.csv"
ENVIRONMENT_FILE = "environment.txt"
AUDIT_FILE = "audit.txt"  # the verdict of the last audit of the data
CROPS_FILE = "crops.csv"
MASKS_FILE = "masks.csv"  # mask source of the hand-crafted features of each image
DIGESTS_FILE = "digests.csv"
FINGERPRINTS_FILE = "fingerprints.npz"
NEAR_DUPLICATES_FILE = "near_duplicates.csv"

EPOCHS_FILE = "epochs.csv"
INTERVALS_FILE = "intervals.csv"
SUBGROUPS_FILE = "subgroups.csv"
OPERATING_POINTS_FILE = "operating_points.csv"
CALIBRATION_FILE = "calibration.csv"
ERRORS_FILE = "errors.csv"
ATTENTION_FILE = "attention.csv"
REPORT_FILE = "report.html"
PREDICTIONS = "predictions"  # folder of `predictions_file`
FIGURES = "figures"  # folder of `figure_file`

CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = f"{CHECKPOINTS}/last.ckpt"
BEST_CHECKPOINT = f"{CHECKPOINTS}/best.ckpt"
CLASSICAL_CHECKPOINT = f"{CHECKPOINTS}/best.skops"
BACKBONE_FILE = f"{CHECKPOINTS}/backbone.safetensors"  # of a classical classifier on deep features
MODEL_FILES = (CONFIG_FILE, BEST_CHECKPOINT)  # all files that a network is rebuilt from
SEGMENTER = "segmenter"  # folder with the run's copy of the segmenter behind its crops or features
SEGMENTER_FILES = (*MODEL_FILES, SPLIT_FILE)
LOGGED_RUN = "run"  # folder of a logged model with the files of its run

BEST_FILE = "best.yaml"  # experiment of the best trial of a sweep
TRIALS_FILE = "trials.csv"
COMPARISON_PAGE = "compare.html"
COMPARISON_TABLE = "compare.csv"
COMPARISON_TESTS = "compare_tests.csv"
COMPARISON_PUBLISHED = "compare_published.csv"
COMPARISON_LATEX = "compare.tex"
COMPARED_RUNS = "runs.csv"


def predictions_file(part: str) -> str:
    """Return the name of the table of predictions of a subset, val or test."""
    return f"{PREDICTIONS}/{part}.csv"


def figure_file(name: str) -> str:
    """Return the file name of a figure."""
    return f"{FIGURES}/{name}.png"


def model_files(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of all files that a model is rebuilt from, config.yaml first.

    Args:
        config: content of config.yaml.
    """
    model = config.get("model") or {}
    if model.get("classifier", "network") == "network":
        return MODEL_FILES
    backbone = [BACKBONE_FILE] if DEEP in model["classical"]["features"] else []
    return CONFIG_FILE, CLASSICAL_CHECKPOINT, CLASSES_FILE, *backbone


def classes_json(classes: Sequence[str], malignant: Sequence[str]) -> str:
    """Return the content of classes.json: class names in label order, and the malignant classes."""
    return json.dumps({"classes": list(classes), "malignant": list(malignant)}, indent=1)


def config_to_keep(experiment: Experiment, **changes: Any) -> dict[str, Any]:
    """Return the content of config.yaml: the experiment without the password of its store.

    Args:
        experiment: resolved.
        changes: top-level keys to replace.
    """
    content = {**experiment.to_dict(), **changes}
    if uri := content["tracking"]["uri"]:
        content["tracking"]["uri"] = without_password(uri)
    return content
