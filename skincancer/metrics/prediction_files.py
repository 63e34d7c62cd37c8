"""Tables of predictions and scores in the files of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from skincancer.errors import DataError

DIGITS = "%.9g"
# Tolerance of the sum of probabilities, which have nine digits, or half precision.
SUM_TOLERANCE = 1e-3


def predictions_table(
    rows: pd.DataFrame, label: npt.NDArray[np.int64], logits: npt.NDArray[np.float32], probability: npt.NDArray[np.float64],
    classes: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    """Return image_id, lesion_id, label, prediction (class names), p_<class>…, logit_<class>….

    Args:
        rows: (N rows) of the index table, with image_id and lesion_id.
        label: int64 (N,), −1 if absent, which becomes "".
        logits: (N, C).
        probability: (N, C).
        classes: the C class names.
    """
    # The label −1 selects the last name.
    names = np.array([*classes, ""])
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
    """Read a table of predictions.

    Returns:
        The table, labels int64 (N,), −1 if absent, and probabilities float64 (N, C) with rows that sum to 1.

    Raises:
        DataError: a missing column, an unknown label, or malformed probabilities.
    """
    table = pd.read_csv(
        path, dtype={name: str for name in ("image_id", "lesion_id", "label", "prediction")}, keep_default_na=False
    )
    columns = [f"p_{name}" for name in classes]
    missing = [name for name in ("image_id", "lesion_id", "label", *columns) if name not in table.columns]
    if missing:
        raise DataError(f"{path}: it has no column {', '.join(missing)}; it has {', '.join(map(str, table))}.")
    position = {"": -1} | {name: number for number, name in enumerate(classes)}
    label = table["label"].map(position)
    if label.isna().any():
        unknown = table["label"][label.isna()].unique()[:3]
        raise DataError(f"{path}: label {', '.join(unknown)} is none of the classes {', '.join(classes)}.")
    probability = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    total = probability.sum(axis=1, keepdims=True)
    wrong = ~((np.abs(total[:, 0] - 1) < SUM_TOLERANCE) & (probability >= 0).all(axis=1))
    if wrong.any():
        raise DataError(
            f"{path}: the probabilities of {int(wrong.sum())} of {len(table)} images are no numbers from 0 to 1 that sum to 1, "
            f"such as image {table['image_id'][wrong].iloc[0]}: {probability[wrong][0].tolist()}."
        )
    return table, np.asarray(label, dtype=np.int64), np.asarray(probability / total, dtype=np.float64)


def read_scores(path: Path) -> pd.DataFrame:
    """Read a table of mask scores: image_id, lesion_id and one column per metric."""
    return read_table(path, "image_id", "lesion_id")


def read_table(path: Path, *texts: str) -> pd.DataFrame:
    """Read a table of a run.

    Args:
        path: CSV file.
        texts: columns of texts, empty cells being "". An id may be "NA" or "007". Empty cells of all other columns are NaN.
    """
    others = [str(name) for name in pd.read_csv(path, nrows=0) if name not in texts]
    return pd.read_csv(
        path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=dict.fromkeys(others, "")
    )
