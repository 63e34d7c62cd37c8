"""Finished fits written by hand, as `fit` leaves them but without training: for what reads runs."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd

from skincancer.config.resolve import resolve
from skincancer.metrics.prediction_files import predictions_table, write_predictions
from skincancer.runs.lifecycle import start_run
from skincancer.runs.store import RunStore
from skincancer.system.yaml_files import dump_yaml

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def class_predictions(
    seed: int, n: int, strength: float, classes: Sequence[str] = CLASSES, first: int = 0
) -> pd.DataFrame:
    """Predictions of `n` images, about 1.3 a lesion, the better the higher `strength`; labels and lesions depend on the ids alone."""
    label = np.array([int(np.random.default_rng(first + i).integers(len(classes))) for i in range(n)])
    label[: len(classes)] = np.arange(len(classes))
    logits = np.random.default_rng(seed).normal(size=(n, len(classes))) + strength * np.eye(len(classes))[label]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = [f"IMG_{first + i:06d}" for i in range(n)]
    rows = pd.DataFrame({"image_id": names, "lesion_id": [f"L_{int((first + i) / 1.3):06d}" for i in range(n)]})
    return predictions_table(rows, label, logits.astype(np.float32), probability, classes)


def mask_predictions(seed: int, n: int, level: float) -> pd.DataFrame:
    """Scores of `n` masks around `level`."""
    from skincancer.metrics.names import MASK_METRICS

    draw = np.random.default_rng(seed)
    scores = {name: np.clip(level + 0.1 * draw.normal(size=n), 0, 1) for name in MASK_METRICS}
    names = [f"IMG_{i:06d}" for i in range(n)]
    return pd.DataFrame({"image_id": names, "lesion_id": names, **scores})


def finished_fit(
    experiment: str,
    predictions: pd.DataFrame,
    *,
    split: str = "80:20",
    seed: int = 0,
    flags: dict[str, object] | None = None,
    params: dict[str, object] | None = None,
    tags: dict[str, str] | None = None,
    classes: Sequence[str] = CLASSES,
    leave_out: Sequence[str] = (),
) -> str:
    """Write a run into the current store; return its id."""
    resolved, _ = resolve(experiment, {"data.split": split, "seed": seed, **(flags or {})})
    found = {
        "experiment": resolved.name, "task": resolved.task, "dataset": resolved.data.dataset, "split": split, "seed": seed,
        "split_seed": resolved.data.split_seed, "target": resolved.data.target, "size": resolved.data.size, "weights": "random",
        "train_images": 1000, **(params or {}),
    }  # fmt: skip
    known = {"kind": "fit", "index_hash": "i", "groups_hash": "", "synthetic": "true", **(tags or {})}
    group = f"{resolved.data.dataset}-{resolved.task}"
    with start_run(RunStore(), group, f"{resolved.name} {split} s{seed}", known, system_metrics=False) as run:
        run.log_params(found)
        run.log_metrics({"optimizer_steps": 100, "images_seen": 1600})
        run.write_text("config.yaml", dump_yaml(resolved.to_dict()))
        run.write_text("classes.json", json.dumps({"classes": list(classes)}))
        epochs = pd.DataFrame(
            {"epoch": [1, 2], "train/loss": [2.0, 1.0], "val/loss": [2.0, 1.5], "val/balanced_accuracy": [0.3, 0.5]}
        )
        run.write_text("epochs.csv", epochs.to_csv(index=False))
        write_predictions(predictions, run.folder / "predictions/test.csv")
        if "predictions/test.csv" not in leave_out:
            run.log_file("predictions/test.csv")
    return run.run_id
