"""The table of predictions that every figure, interval and comparison is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

DIGITS = "%.9g"


def predictions_table(
    rows: pd.DataFrame, label: npt.NDArray[np.int64], logits: npt.NDArray[np.float32], probability: npt.NDArray[np.float64],
    classes: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    """Return image_id, lesion_id, label, prediction (class names), p_<class>…, logit_<class>….

    Args:
        rows: (N rows) of the index table: image_id, lesion_id.
        label: int64 (N,), −1 where absent: written as nothing.
        logits: (N, C).
        probability: (N, C).
        classes: C names.
    """
    names = np.array([*classes, ""])  # the last is that of −1
    table = pd.DataFrame(
        {
            "image_id": rows["image_id"].to_numpy(),
            "lesion_id": rows["lesion_id"].to_numpy(),
            "label": names[label],
            "prediction": names[probability.argmax(axis=1)],
        }
    )
    p = pd.DataFrame(probability, columns=[f"p_{name}" for name in classes])
    z = pd.DataFrame(logits, columns=[f"logit_{name}" for name in classes])
    return pd.concat([table, p, z], axis=1)


def write_predictions(table: pd.DataFrame, path: Path) -> None:
    """Write a table of predictions at nine digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format=DIGITS)


def read_predictions(
    path: Path, classes: Sequence[str]
) -> tuple[pd.DataFrame, npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Read a table of predictions back: the table, label int64 (N,), −1 where absent, probability float64 (N, C) whose rows sum to 1."""
    table = pd.read_csv(
        path, dtype={name: str for name in ("image_id", "lesion_id", "label", "prediction")}, keep_default_na=False
    )
    position = {"": -1} | {name: number for number, name in enumerate(classes)}
    label = np.asarray(table["label"].map(position), dtype=np.int64)
    probability = np.asarray(table[[f"p_{name}" for name in classes]], dtype=np.float64)
    return table, label, np.asarray(probability / probability.sum(axis=1, keepdims=True), dtype=np.float64)


def read_scores(path: Path) -> pd.DataFrame:
    """Read a table of mask scores back: image_id, lesion_id and a column a metric."""
    return pd.read_csv(path, dtype={"image_id": str, "lesion_id": str})


def read_table(path: Path, *texts: str) -> pd.DataFrame:
    """Read a table of a run.

    Args:
        path: the CSV.
        texts: columns to take as they are, "" where nothing stands: an id may be "NA" or "007". In others nothing is NaN.
    """
    others = [str(name) for name in pd.read_csv(path, nrows=0) if name not in texts]
    return pd.read_csv(
        path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=dict.fromkeys(others, "")
    )
