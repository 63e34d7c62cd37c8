"""Error analysis of a classifier: `errors.csv`, `attention.csv` and a sheet with Grad-CAM."""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from skincancer.data.index import image_root
from skincancer.data.prepare import PreparedData
from skincancer.errors import RunError
from skincancer.imaging.decode import BadImage, read_mask
from skincancer.imaging.geometry import to_square
from skincancer.imaging.overlay import draw_overlay
from skincancer.imaging.types import Mask
from skincancer.metrics.estimates import COLUMNS, mean_intervals
from skincancer.metrics.prediction_files import DIGITS, read_predictions, read_table
from skincancer.models.grad_cam import Maps, grad_cam
from skincancer.models.tasks.classification import ClassificationTask
from skincancer.models.tasks.joint import JointTask
from skincancer.runs.artifacts import ATTENTION_FILE, ERRORS_FILE, FIGURES, figure_file, predictions_file
from skincancer.visualization.style import new_figure, save

# Number of test images for the share of attention.
SAMPLE = 64
SHOWN_ERRORS = 12
ATTENTION_COLUMNS = ["image_id", "lesion_id", "class", "sample", "attention_in_mask", "mask_share"]

_COLUMNS = 3
# Side of an image on the sheet in pixels.
_SIDE = 240
_HEAT = matplotlib.colormaps["viridis"]


def worst_errors(
    table: pd.DataFrame, label: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], classes: Sequence[str]
) -> pd.DataFrame:
    """Return the wrong predictions, the highest loss first.

    Args:
        table: image_id and lesion_id, N rows.
        label: int64 (N,), −1 for unlabelled images, which are never wrong.
        probability: float64 (N, C).
        classes: C class names.

    Returns:
        image_id lesion_id label prediction p_label p_prediction loss. The loss is the cross-entropy −ln p_label, without class weights
        and label smoothing.
    """
    guess = probability.argmax(axis=1)
    wrong = np.flatnonzero((label >= 0) & (guess != label))
    p_label = probability[wrong, label[wrong]]
    names = np.array(classes)
    errors = pd.DataFrame(
        {
            "image_id": table["image_id"].to_numpy()[wrong], "lesion_id": table["lesion_id"].to_numpy()[wrong],
            "label": names[label[wrong]], "prediction": names[guess[wrong]], "p_label": p_label,
            "p_prediction": probability[wrong, guess[wrong]], "loss": -np.log(np.maximum(p_label, np.finfo(np.float64).tiny)),
        }
    )  # fmt: skip
    return errors.sort_values("loss", ascending=False, kind="stable", ignore_index=True)


def choose_sample(image_ids: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """Sample images by the rank of the SHA-256 of `seed:image_id`, independent of other images."""
    return sorted(image_ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:count]


def attention_shares(
    maps: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the shares of maps inside their masks, and of mask areas.

    A uniform map would reach the area share.

    Args:
        maps: (B, H, W), non-negative.
        masks: (B, H, W).

    Returns:
        (B,) shares in [0, 1], NaN for a map of zeros, and (B,) area shares.
    """
    inside = np.where(masks, maps, 0).sum(axis=(1, 2), dtype=np.float64)
    total = maps.sum(axis=(1, 2), dtype=np.float64)
    shares = np.divide(inside, total, out=np.full(len(maps), np.nan), where=total > 0)
    return shares, masks.mean(axis=(1, 2))


def attention_means(attention: pd.DataFrame) -> pd.DataFrame:
    """Return the means of the shares over the sample of `attention.csv`, with intervals.

    The worst errors and images without a map are excluded. The table is that of `mean_intervals`, empty if no image remains.
    """
    columns = ["attention_in_mask", "mask_share"]
    sample = attention[attention["sample"] & attention[columns].notna().all(axis=1)]
    if sample.empty:
        return pd.DataFrame(columns=COLUMNS)
    return mean_intervals(sample, columns, sample["lesion_id"].to_numpy())


def read_attention(path: Path) -> pd.DataFrame:
    """Read `attention.csv`."""
    return read_table(path, "image_id", "lesion_id", "class")


@dataclass(frozen=True)
class ErrorExample:
    """Image of the sheet.

    Attributes:
        image: uint8 (S, S, 3).
        map: Grad-CAM map, float32 (S, S).
        mask: true mask, bool (S, S), or None.
        lines: text below the image.
    """

    image: npt.NDArray[np.uint8]
    map: npt.NDArray[np.float32]
    mask: Mask | None
    lines: Sequence[str]


def attention_sheet(cases: Sequence[ErrorExample], *, title: str = "", note: str = "") -> Figure:
    """Draw images next to Grad-CAM overlays with contours of true masks.

    Raises:
        ValueError: `cases` is empty.
    """
    if not cases:
        raise ValueError("cases is empty; expected at least one image")
    columns = min(_COLUMNS, len(cases))
    rows = -(-len(cases) // columns)
    lines = max(len(case.lines) for case in cases)
    figure = new_figure((max(5.0, 3.5 * columns), (1.85 + 0.17 * lines) * rows + 0.7), title, note)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        if number < len(cases):
            case = cases[number]
            axes.imshow(_pair(case))
            text = "\n".join(textwrap.shorten(line, 48, placeholder="…") for line in case.lines)
            axes.set_xlabel(text.replace("$", r"\$"), fontsize=8)
    return figure


def _pair(case: ErrorExample) -> npt.NDArray[np.uint8]:
    """Return an image next to its overlay, uint8 (H, 2 H + gap, 3)."""
    image = np.asarray(Image.fromarray(case.image).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    heat = np.asarray(Image.fromarray(case.map).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)).clip(0, 1)
    # Pixels without support for the class keep their colour.
    weight = 0.65 * heat[..., None]
    overlay = (image * (1 - weight) + 255 * _HEAT(heat)[..., :3] * weight).astype(np.uint8)
    if case.mask is not None:
        mask = np.asarray(Image.fromarray(case.mask).resize((_SIDE, _SIDE), Image.Resampling.NEAREST))
        overlay = draw_overlay(overlay, mask, np.zeros_like(mask))
    return np.hstack([image, np.full((_SIDE, 8, 3), 255, np.uint8), overlay])


def write_errors(folder: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Write `errors.csv` of the test predictions in a run folder, and return the table."""
    errors = worst_errors(*read_predictions(folder / predictions_file("test"), classes), classes)
    errors.to_csv(folder / ERRORS_FILE, index=False, float_format=DIGITS)
    return errors


def explain_run(
    folder: Path, data: PreparedData, task: ClassificationTask | JointTask, *, resize: str, batch_size: int,
    title: str = "", note: str = "", sample: int = SAMPLE,
) -> str:  # fmt: skip
    """Write `errors.csv`, `attention.csv` and `figures/errors.png` into a run folder.

    Maps belong to the predicted class, and are computed for the errors with the highest loss and for a sample of the test images with
    a true mask. Without true masks there is no `attention.csv`. Problems are returned and never raised, because a finished training
    must not fail here.

    Args:
        folder: run folder with `predictions/test.csv`.
        data: data with the test images.
        task: task with the weights of the run.
        resize: resize mode of the store.
        batch_size: number of images per batch.
        title: title of the sheet.
        note: text at the bottom of the sheet.
        sample: number of images for the share of attention, 0 for none.

    Returns:
        The reason why maps or masks are missing, "" if none is.
    """
    errors = write_errors(folder, data.classes)
    table, _, probability = read_predictions(folder / predictions_file("test"), data.classes)
    worst = errors.head(SHOWN_ERRORS)
    row_of = pd.Series(range(len(data.index)), index=data.index["image_id"])
    known = table["image_id"][data.index["mask"].notna().to_numpy()[row_of[table["image_id"]]]]
    sampled = choose_sample(known.to_list(), sample)
    image_ids = list(dict.fromkeys([*worst["image_id"], *sampled]))
    if not image_ids:
        return ""
    guess = pd.Series(probability.argmax(axis=1), index=table["image_id"])
    rows, labels = np.asarray(row_of[image_ids], dtype=np.int64), np.asarray(guess[image_ids], dtype=np.int64)
    try:
        maps = _maps(task, data.store.images, rows, labels, batch_size)
    except RunError as error:
        return f"no Grad-CAM maps: {error}"
    except Exception as error:
        # Backbones and full GPU memory raise errors of many types.
        return f"no Grad-CAM maps: {type(error).__name__}: {error}"
    masks, bad = _square_masks(data, rows, resize)
    if sampled and any(mask is not None for mask in masks):
        _attention_table(data, rows, labels, maps.values, masks, sampled).to_csv(
            folder / ATTENTION_FILE, index=False, float_format=DIGITS
        )
    cases = [
        ErrorExample(data.store.images[row], values, mask, _lines(error))
        for row, values, mask, error in zip(rows, maps.values, masks, worst.to_dict("records"), strict=False)
    ]
    if cases:
        coarse = f"Grad-CAM of the predicted class, from {maps.cells[0]} × {maps.cells[1]} cells"
        contour = "; blue: true mask" if any(case.mask is not None for case in cases) else ""
        notes = f"{coarse}{contour}" + (f"; {note}" if note else "")
        (folder / FIGURES).mkdir(exist_ok=True)
        save(attention_sheet(cases, title=title, note=notes), folder / figure_file("errors"))
    if not bad:
        return ""
    return f"the share of attention excludes {len(bad)} images with unusable true masks, such as {bad[0]}"


def _lines(error: dict[Any, Any]) -> list[str]:
    return [
        str(error["image_id"]),
        f"true {error['label']} (p {error['p_label']:.3f})",
        f"predicted {error['prediction']} (p {error['p_prediction']:.3f})",
    ]


def _maps(
    task: ClassificationTask | JointTask, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64], batch_size: int,
) -> Maps:  # fmt: skip
    parts = []
    for start in range(0, len(rows), batch_size):
        batch = slice(start, start + batch_size)
        image = torch.from_numpy(np.array(images[rows[batch]])).permute(0, 3, 1, 2).float() / 255
        parts.append(grad_cam(task, image, labels[batch].tolist()))
    return Maps(np.concatenate([part.values for part in parts]), parts[0].cells)


def _square_masks(data: PreparedData, rows: npt.NDArray[np.int64], resize: str) -> tuple[list[Mask | None], list[str]]:
    """Return the true masks of images (None if unusable), and the errors."""
    masks: list[Mask | None] = []
    bad = []
    for row in rows:
        try:
            masks.append(_square_mask(data, int(row), resize))
        except (BadImage, OSError) as error:
            masks.append(None)
            bad.append(f"{data.index['mask'].iloc[row]} {error}")
    return masks, bad


def _square_mask(data: PreparedData, row: int, resize: str) -> Mask | None:
    """Return a true mask at the input size, bool (S, S), or None.

    Raises:
        BadImage: the mask cannot be read, or its size differs from the image.
    """
    name = data.index["mask"].iloc[row]
    if name is None or pd.isna(name):
        return None
    if data.store.masks is not None:
        return data.store.masks[row] > 0
    mask = read_mask(image_root(data.root) / name)
    size = (int(data.index["width"].iloc[row]), int(data.index["height"].iloc[row]))
    if mask.size != size:
        raise BadImage(f"is {mask.width} × {mask.height} px, but its image is {size[0]} × {size[1]} px")
    return np.asarray(to_square(mask.crop(data.store.views[row].box), data.store.images.shape[1], resize)) > 0


def _attention_table(
    data: PreparedData, rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], maps: npt.NDArray[np.float32],
    masks: Sequence[Mask | None], sampled: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    """Return one row per image with a mask, with the columns ATTENTION_COLUMNS."""
    has_mask = [number for number, mask in enumerate(masks) if mask is not None]
    shares, mask_shares = attention_shares(maps[has_mask], np.stack([mask for mask in masks if mask is not None]))
    images = data.index.iloc[rows[has_mask]]
    columns = [
        images["image_id"], images["lesion_id"], np.array(data.classes)[labels[has_mask]],
        images["image_id"].isin(set(sampled)), shares, mask_shares,
    ]  # fmt: skip
    return pd.DataFrame({name: np.asarray(column) for name, column in zip(ATTENTION_COLUMNS, columns, strict=True)})
