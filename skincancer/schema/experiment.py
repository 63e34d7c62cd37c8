"""One complete experiment.

Every field is a key of an experiment file and a dotted flag (`--data.split 70:30`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from skincancer.schema.data import AugmentConfig, DataConfig
from skincancer.schema.model import ModelConfig
from skincancer.schema.rules import NETWORK, key
from skincancer.schema.training import TrackingConfig, TrainerConfig, TrainingConfig


@dataclass(frozen=True)
class Experiment:
    """One complete experiment, as in `config.yaml` of a run.

    Args:
        name: name of the experiment
        description: one line about the experiment and the source of its recipe
        task: classification, segmentation, or joint (both in one forward pass; images with only a mask or only a label are used)
        seed: seed of training (initial weights, order, dropout, augmentation), not of the split
        plugins: modules to import first, which register additional parts (--plugin MODULE adds one); no:NAME omits an installed plugin
        data: images, their roles and their size
        augment: random augmentation of training images
        model: the model and its training
        training: selection of the best epoch, and early stopping
        trainer: arguments of Lightning's Trainer
        tracking: MLflow tracking of the run
        search: search space of a sweep: {low, high, log} or {choices} for each dotted key
    """

    name: str = key("custom", "1 to 200 characters on one line")
    description: str = key("", "at most 1,000 characters")
    task: Literal["classification", "segmentation", "joint"] = "classification"
    seed: int = key(0, "0 or more")
    plugins: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig, metadata={"only_with": NETWORK})
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the experiment as nested dicts of primitives."""
        return asdict(self)
