"""Check of the network of an experiment, before data and Lightning are loaded."""

from __future__ import annotations

from dataclasses import replace

from skincancer.models.backbones import check_backbone, current_name
from skincancer.models.segmenters import TIMM_PREFIX, check_segmenter
from skincancer.schema.experiment import Experiment
from skincancer.schema.tasks import TASKS


def with_current_name(experiment: Experiment) -> Experiment:
    """Replace a backbone that timm has renamed by its current name."""
    name = experiment.model.backbone
    prefix = TIMM_PREFIX if name.startswith(TIMM_PREFIX) else ""
    current = prefix + current_name(name.removeprefix(prefix))
    return experiment if current == name else replace(experiment, model=replace(experiment.model, backbone=current))


def check_network(experiment: Experiment) -> None:
    """Check that the network exists and takes images of the size `data.size`.

    Raises:
        ConfigError: the network is unknown or takes other sizes.
    """
    model, size = with_current_name(experiment).model, experiment.data.size
    if model.is_hand_crafted:
        return
    task = TASKS[experiment.task]
    if task.has_masks:
        check_segmenter(model.architecture, model.backbone, size, task.has_classes)
    else:
        check_backbone(model.backbone, size, str(model.freeze))
