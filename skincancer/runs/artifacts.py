"""Names of the files that runs leave behind, each defined once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from skincancer.metrics.names import positive_of
from skincancer.schema.experiment import Experiment
from skincancer.schema.model import DEEP
from skincancer.system.credentials import remove_password

CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.json"
SPLIT_FILE = "split.csv"
DROPPED_FILE = "dropped.csv"
ENVIRONMENT_FILE = "environment.txt"
# Verdict of the last audit of the data.
AUDIT_FILE = "audit.txt"
CROPS_FILE = "crops.csv"
# Mask source of the hand-crafted features of each image.
MASKS_FILE = "masks.csv"
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
PREDICTIONS = "predictions"
FIGURES = "figures"
CHECKPOINTS = "checkpoints"
LAST_CHECKPOINT = f"{CHECKPOINTS}/last.ckpt"
BEST_CHECKPOINT = f"{CHECKPOINTS}/best.ckpt"
CLASSICAL_CHECKPOINT = f"{CHECKPOINTS}/best.skops"
# Backbone of a classical classifier on deep features.
BACKBONE_FILE = f"{CHECKPOINTS}/backbone.safetensors"
# All files that a network is rebuilt from.
MODEL_FILES = (CONFIG_FILE, BEST_CHECKPOINT)
# Folder with the copy of the segmenter that predicted the masks of a run.
SEGMENTER = "segmenter"
SEGMENTER_FILES = (*MODEL_FILES, SPLIT_FILE)
# Folder of a logged model with the files of its run.
LOGGED_RUN = "run"
# Experiment of the best trial of a sweep.
BEST_FILE = "best.yaml"
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
    """Return the names of the files of a model, config.yaml and checkpoint first."""
    model = config.get("model") or {}
    if model.get("classifier", "network") == "network":
        return MODEL_FILES
    backbone = [BACKBONE_FILE] if DEEP in model["classical"]["features"] else []
    return CONFIG_FILE, CLASSICAL_CHECKPOINT, CLASSES_FILE, *backbone


def classes_json(classes: Sequence[str], malignant: Sequence[str]) -> str:
    """Return the content of classes.json.

    It contains the class names in label order, the malignant classes, and the positive class of two classes.
    """
    positive = {"positive": positive_of(classes)} if positive_of(classes) else {}
    return json.dumps({"classes": list(classes), "malignant": list(malignant), **positive}, indent=1)


def config_to_keep(experiment: Experiment, **changes: Any) -> dict[str, Any]:
    """Return the content of config.yaml, without the password of the store.

    `changes` are top-level keys to replace.
    """
    content = {**experiment.to_dict(), **changes}
    if uri := content["tracking"]["uri"]:
        content["tracking"]["uri"] = remove_password(uri)
    return content
