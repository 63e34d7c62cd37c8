"""What a classifier got most wrong, and where it looked: `errors.csv`, `attention.csv`, a sheet of the worst errors with Grad-CAM."""

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
from skincancer.metrics.bootstrap import bootstrap_means
from skincancer.metrics.prediction_files import DIGITS, read_predictions, read_table
from skincancer.models.grad_cam import Maps, grad_cam
from skincancer.models.tasks.classification import ClassificationTask
from skincancer.models.tasks.joint import JointTask
from skincancer.runs.artifacts import ATTENTION_FILE, ERRORS_FILE, FIGURES, figure_file, predictions_file
from skincancer.visualization.style import new_figure, save

SAMPLE = 64  # test images that the share of attention is measured on
SHOWN_ERRORS = 12
ATTENTION_COLUMNS = ["image_id", "lesion_id", "class", "sample", "attention_in_mask", "mask_share"]

_COLUMNS = 3
_SIDE = 240  # px of an image on the sheet
_HEAT = matplotlib.colormaps["viridis"]


def worst_errors(
    table: pd.DataFrame, label: npt.NDArray[np.int64], probability: npt.NDArray[np.float64], classes: Sequence[str]
) -> pd.DataFrame:
    """Return the wrong predictions, the highest loss first.

    Args:
        table: (N rows) image_id, lesion_id, as `read_predictions` gives it, as are `label` and `probability`.
        label: int64 (N,), −1 where absent: never wrong.
        probability: (N, C).
        classes: C names.

    Returns:
        image_id lesion_id label prediction p_label p_prediction loss; the loss is the cross-entropy −ln p_label, without class
        weights or smoothing.
    """
    guess = probability.argmax(axis=1)
    wrong = np.flatnonzero((label >= 0) & (guess != label))
    p_label = probability[wrong, label[wrong]]
    names = np.array(classes)
    errors = pd.DataFrame(
        {
            "image_id": table["image_id"].to_numpy()[wrong],
            "lesion_id": table["lesion_id"].to_numpy()[wrong],
            "label": names[label[wrong]],
            "prediction": names[guess[wrong]],
            "p_label": p_label,
            "p_prediction": probability[wrong, guess[wrong]],
            "loss": -np.log(np.maximum(p_label, np.finfo(np.float64).tiny)),
        }
    )
    return errors.sort_values("loss", ascending=False, kind="stable", ignore_index=True)


def choose_sample(image_ids: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """Choose images by the rank of sha256 of `seed:image_id`: of nested sets of images the same ones wherever they are in it."""
    return sorted(image_ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())[:count]


def attention_shares(
    maps: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return what share of each map lies inside its mask, and the mask's share of the image, which an even map would reach.

    Args:
        maps: (B, H, W), values of at least 0.
        masks: (B, H, W).

    Returns:
        (B,) shares in [0, 1], NaN of a map that is 0 everywhere; (B,) shares.
    """
    inside = np.where(masks, maps, 0).sum(axis=(1, 2), dtype=np.float64)
    total = maps.sum(axis=(1, 2), dtype=np.float64)
    shares = np.divide(inside, total, out=np.full(len(maps), np.nan), where=total > 0)
    return shares, masks.mean(axis=(1, 2))


def attention_means(attention: pd.DataFrame) -> pd.DataFrame:
    """Return the means of `attention_in_mask` and `mask_share` over the sample of `attention.csv`, with intervals over lesions.

    The worst errors are left out: they are no sample. Of images without a map neither counts.

    Returns:
        As `bootstrap_means`; no row where the sample holds no image with a map and a mask.
    """
    columns = ["attention_in_mask", "mask_share"]
    sample = attention[attention["sample"] & attention[columns].notna().all(axis=1)]
    if sample.empty:
        return pd.DataFrame(columns=["metric", "value", "low", "high", "n_resamples"])
    return bootstrap_means(sample, columns, sample["lesion_id"].to_numpy())


def read_attention(path: Path) -> pd.DataFrame:
    """Read `attention.csv` back."""
    return read_table(path, "image_id", "lesion_id", "class")


@dataclass(frozen=True)
class Explained:
    """One image of the sheet: uint8 (S, S, 3), its map float32 (S, S), its true mask where there is one, lines to stand under it."""

    image: npt.NDArray[np.uint8]
    map: npt.NDArray[np.float32]
    mask: Mask | None
    lines: Sequence[str]


def attention_sheet(cases: Sequence[Explained], *, title: str = "", note: str = "") -> Figure:
    """Draw each image, and beside it its Grad-CAM map over it, with the contour of the true mask.

    Raises:
        ValueError: there is no image.
    """
    if not cases:
        raise ValueError("there is no image to draw; give at least one case")
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
            shown = "\n".join(textwrap.shorten(line, 48, placeholder="…") for line in case.lines)
            axes.set_xlabel(shown.replace("$", r"\$"), fontsize=8)
    return figure


def _pair(case: Explained) -> npt.NDArray[np.uint8]:
    """Return an image and its overlay side by side, uint8 (H, 2 H + gap, 3)."""
    image = np.asarray(Image.fromarray(case.image).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    heat = np.asarray(Image.fromarray(case.map).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)).clip(0, 1)
    # what the class has no support from stays as it is
    weight = 0.65 * heat[..., None]
    shown = (image * (1 - weight) + 255 * _HEAT(heat)[..., :3] * weight).astype(np.uint8)
    if case.mask is not None:
        mask = np.asarray(Image.fromarray(case.mask).resize((_SIDE, _SIDE), Image.Resampling.NEAREST))
        shown = draw_overlay(shown, mask, np.zeros_like(mask))
    return np.hstack([image, np.full((_SIDE, 8, 3), 255, np.uint8), shown])


def write_errors(folder: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Write `errors.csv` into a run's folder, from its `predictions/test.csv`; return it."""
    errors = worst_errors(*read_predictions(folder / predictions_file("test"), classes), classes)
    errors.to_csv(folder / ERRORS_FILE, index=False, float_format=DIGITS)
    return errors


def explain_run(
    folder: Path, data: PreparedData, task: ClassificationTask | JointTask, *, resize: str, batch_size: int,
    title: str = "", note: str = "", sample: int = SAMPLE,
) -> str:  # fmt: skip
    """Write `errors.csv`, `attention.csv` where images have true masks, and `figures/errors.png` into a run's folder.

    Maps are those of the predicted class: of the errors with the highest loss, and of a sample of the test images with a mask.

    Args:
        folder: with `predictions/test.csv`.
        data: what the run was tested on.
        task: with the run's weights.
        resize: of the store.
        batch_size: images at once.
        title: of the sheet.
        note: at its bottom.
        sample: how many images the share of attention is measured on; 0 for none.

    What goes wrong here is told and never raised: pictures must not cost a training that is done.

    Returns:
        Why maps, or masks, are missing; "" where none is.
    """
    errors = write_errors(folder, data.classes)
    table, _, probability = read_predictions(folder / predictions_file("test"), data.classes)
    shown = errors.head(SHOWN_ERRORS)

    row_of = pd.Series(range(len(data.index)), index=data.index["image_id"])
    known = table["image_id"][data.index["mask"].notna().to_numpy()[row_of[table["image_id"]]]]
    sampled = choose_sample(known.to_list(), sample)
    wanted = list(dict.fromkeys([*shown["image_id"], *sampled]))
    if not wanted:
        return ""
    guess = pd.Series(probability.argmax(axis=1), index=table["image_id"])
    rows, labels = np.asarray(row_of[wanted], dtype=np.int64), np.asarray(guess[wanted], dtype=np.int64)
    try:
        maps = _maps(task, data.store.images, rows, labels, batch_size)
    except RunError as error:
        return f"no Grad-CAM maps: {error}"
    except Exception as error:  # whatever a backbone, or the memory of the device, makes of it
        return f"no Grad-CAM maps: {type(error).__name__}: {error}"
    masks, bad = _square_masks(data, rows, resize)
    if sampled and any(mask is not None for mask in masks):
        _attention_table(data, rows, labels, maps.values, masks, sampled).to_csv(
            folder / ATTENTION_FILE, index=False, float_format=DIGITS
        )
    cases = [
        Explained(data.store.images[row], values, mask, _lines(error))
        for row, values, mask, error in zip(rows, maps.values, masks, shown.to_dict("records"), strict=False)
    ]
    if cases:
        coarse = f"Grad-CAM of the predicted class, from {maps.cells[0]} × {maps.cells[1]} cells"
        contour = "; blue: the true mask" if any(case.mask is not None for case in cases) else ""
        notes = f"{coarse}{contour}" + (f"; {note}" if note else "")
        (folder / FIGURES).mkdir(exist_ok=True)
        save(attention_sheet(cases, title=title, note=notes), folder / figure_file("errors"))
    if not bad:
        return ""
    return f"the share of attention is without {len(bad)} images whose true masks cannot be used, such as {bad[0]}"


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
        some = slice(start, start + batch_size)
        image = torch.from_numpy(np.array(images[rows[some]])).permute(0, 3, 1, 2).float() / 255
        parts.append(grad_cam(task, image, labels[some].tolist()))
    return Maps(np.concatenate([part.values for part in parts]), parts[0].cells)


def _square_masks(data: PreparedData, rows: npt.NDArray[np.int64], resize: str) -> tuple[list[Mask | None], list[str]]:
    """Return the true masks of images as `_square_mask` does, None for those that cannot be used, and what is wrong with these."""
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
    """Return the true mask of an image as the network would see it, bool (S, S); None where there is none.

    Raises:
        BadImage: it cannot be read, or is of another size than its image.
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
    """Return a row for each image with a mask, in the columns ATTENTION_COLUMNS; `sample` says whether it is of the sample."""
    has_mask = [number for number, mask in enumerate(masks) if mask is not None]
    shares, mask_shares = attention_shares(maps[has_mask], np.stack([mask for mask in masks if mask is not None]))
    chosen = data.index.iloc[rows[has_mask]]
    columns = [
        chosen["image_id"], chosen["lesion_id"], np.array(data.classes)[labels[has_mask]],
        chosen["image_id"].isin(set(sampled)), shares, mask_shares,
    ]  # fmt: skip
    return pd.DataFrame({name: np.asarray(column) for name, column in zip(ATTENTION_COLUMNS, columns, strict=True)})
