"""Build the task of an experiment with its initial weights, or from a checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl

from skincancer.data.balance import class_weights, epoch_order
from skincancer.data.index import image_root
from skincancer.data.prepare import PreparedData
from skincancer.errors import ConfigError, WeightsError
from skincancer.imaging.preprocessing import Preprocessing
from skincancer.metrics.mask_scorer import MaskRecipe, MaskScorer
from skincancer.models.segmenters import build_joint, build_segmenter
from skincancer.models.tasks.classification import ClassificationTask
from skincancer.models.tasks.joint import JointTask
from skincancer.models.tasks.segmentation import SegmentationTask
from skincancer.models.weights import LoadedWeights, load_backbone, load_checkpoint, load_encoder
from skincancer.schema.experiment import Experiment

AnyTask = ClassificationTask | SegmentationTask | JointTask


def build_task(
    experiment: Experiment, data: PreparedData, from_checkpoint: bool, checkpoint: Path | None = None
) -> tuple[AnyTask, LoadedWeights]:
    """Build the task. Return the task and the origin of its initial weights.

    Args:
        experiment: resolved.
        data: prepared.
        from_checkpoint: a checkpoint will give the weights, so no weights are fetched.
        checkpoint: local file of the weights if `model.weights` is run:RUN_ID.

    Raises:
        ConfigError: a sigmoid head for other than two classes.
        DataError: `data.balance` needs labels, and training images of the joint task have none.
        WeightsError: the weights are not available.
    """
    pl.seed_everything(experiment.seed, verbose=False)
    weights = "none" if from_checkpoint else experiment.model.weights
    builders = {"classification": _build_classifier, "segmentation": _build_segmenter, "joint": _build_joint}
    return builders[experiment.task](experiment, data, weights, checkpoint)


def _build_classifier(
    experiment: Experiment, data: PreparedData, weights: str, checkpoint: Path | None
) -> tuple[AnyTask, LoadedWeights]:
    model, size = experiment.model, experiment.data.size
    if model.head == "sigmoid" and len(data.classes) != 2:
        raise ConfigError(
            f"model.head is sigmoid, which is for two classes; these data have {len(data.classes)}. Use --data.target malignancy."
        )
    loaded = load_backbone(model.backbone, size, weights, checkpoint)
    # The head's random weights must not depend on the origin of the backbone's weights.
    pl.seed_everything(experiment.seed, verbose=False)
    task = ClassificationTask(
        backbone=model.backbone, size=size, classes=list(data.classes), dropout=model.dropout, head=model.head,
        head_hidden=model.head_hidden, class_weights=_class_weights(experiment, data), module=loaded.backbone, **_common(experiment),
    )  # fmt: skip
    if model.compile:
        task.backbone.compile()
    return task, loaded


def _build_segmenter(
    experiment: Experiment, data: PreparedData, weights: str, checkpoint: Path | None
) -> tuple[AnyTask, LoadedWeights]:
    model, size = experiment.model, experiment.data.size
    segmenter = build_segmenter(model.architecture, model.backbone, size)
    loaded = load_encoder(segmenter, model.backbone, size, weights, checkpoint)
    task = SegmentationTask(
        architecture=model.architecture, backbone=model.backbone, size=size, threshold=_threshold(experiment),
        module=segmenter, **_common(experiment),
    )  # fmt: skip
    if model.compile:
        task.segmenter.compile()
    return task, loaded


def _build_joint(
    experiment: Experiment, data: PreparedData, weights: str, checkpoint: Path | None
) -> tuple[AnyTask, LoadedWeights]:
    model, size = experiment.model, experiment.data.size
    # Only this task trains on unlabelled images, which balance refuses. Refuse them before the run starts.
    epoch_order(data.rows("train")["label"].to_numpy(), experiment.data.balance, experiment.seed, epoch=0)
    segmenter = build_joint(model.architecture, model.backbone, size, len(data.classes), model.dropout)
    loaded = load_encoder(segmenter, model.backbone, size, weights, checkpoint)
    task = JointTask(
        architecture=model.architecture, backbone=model.backbone, size=size, classes=list(data.classes),
        dropout=model.dropout, class_weights=_class_weights(experiment, data), threshold=_threshold(experiment),
        module=segmenter, **_common(experiment),
    )  # fmt: skip
    if model.compile:
        task.segmenter.compile()
    return task, loaded


def _class_weights(experiment: Experiment, data: PreparedData) -> list[float] | None:
    if experiment.data.balance != "class_weights":
        return None
    labels = data.rows("train")["label"].to_numpy()
    return list(class_weights(labels, len(data.classes), experiment.data.class_weight_power).tolist())


def _threshold(experiment: Experiment) -> float | None:
    threshold = experiment.model.mask.threshold
    return None if threshold == "auto" else threshold


def _common(experiment: Experiment) -> dict[str, Any]:
    model, settings = experiment.model, experiment.to_dict()["model"]
    return {
        "freeze": str(model.freeze), "unfreeze_epoch": model.unfreeze_epoch, "loss": settings["loss"],
        "optimizer": settings["optimizer"], "schedule": settings["schedule"], "tta": model.tta,
        "channels_last": model.channels_last, "seed": experiment.seed,
    }  # fmt: skip


def load_task(checkpoint: Path) -> AnyTask:
    """Rebuild a model from `checkpoints/best.ckpt`, in evaluation mode, on the CPU.

    Raises:
        WeightsError: the file is no checkpoint of a run, or the weights do not fit.
    """
    content = load_checkpoint(checkpoint)
    hyper_parameters = content.get("hyper_parameters")
    if not isinstance(hyper_parameters, dict) or "state_dict" not in content:
        raise WeightsError(
            f"{checkpoint}: no checkpoint of a run (hyper_parameters or state_dict are missing). Use the best.ckpt of a run."
        )
    kind: type[AnyTask] = ClassificationTask
    if "architecture" in hyper_parameters:
        kind = JointTask if "classes" in hyper_parameters else SegmentationTask
    try:
        task = kind(**cast(dict[str, Any], hyper_parameters))
    except (TypeError, KeyError) as error:
        raise WeightsError(f"{checkpoint}: no checkpoint of a model of this version: {error}") from error
    try:
        task.load_state_dict(cast(dict[str, Any], content["state_dict"]))
    except RuntimeError as error:
        raise WeightsError(f"{checkpoint}: its weights do not fit its own hyper-parameters: {error}") from error
    return task.eval()


def build_scorer(data: PreparedData, experiment: Experiment) -> MaskScorer:
    """Return the scorer of prepared data, with the mask settings of an experiment."""
    mask = experiment.model.mask
    recipe = MaskRecipe(Preprocessing.from_config(asdict(experiment.data)), mask.largest_component, mask.fill_holes)
    return MaskScorer(data.index, image_root(data.root), recipe, data.store.views)
