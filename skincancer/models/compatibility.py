"""Check of the network of an experiment, before data and Lightning are loaded."""

from __future__ import annotations

from skincancer.models.backbones import check_backbone
from skincancer.models.segmenters import check_segmenter
from skincancer.schema.experiment import Experiment
from skincancer.schema.tasks import TASKS


def check_network(experiment: Experiment) -> None:
    """Check that the network exists and takes images of the size `data.size`.

    Raises:
        ConfigError: the network is unknown or takes other sizes.
    """
    model, size = experiment.model, experiment.data.size
    if model.is_hand_crafted:
        return
    task = TASKS[experiment.task]
    if task.has_masks:
        check_segmenter(model.architecture, model.backbone, size, task.has_classes)
    else:
        check_backbone(model.backbone, size)
