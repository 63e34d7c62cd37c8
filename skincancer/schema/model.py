"""Section `model` of an experiment."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from skincancer.schema.rules import CLASSIFICATION, NETWORK, WITH_CLASSES, WITH_MASKS, key

CLASSICAL = ("svm", "knn", "kmeans", "random_forest")
# Families of hand-crafted features.
FAMILIES = ("abcd", "colour", "glcm", "lbp", "hog")
# Value of model.classical.features for the features of a frozen backbone.
DEEP = "deep"


@dataclass(frozen=True)
class LossConfig:
    """The training loss, on logits.

    Args:
        name: classification loss: cross_entropy or focal
        label_smoothing: fraction of the target distributed over all classes, 0 to below 1 (cross_entropy only)
        gamma: focusing exponent of the focal losses (classification and segmentation)
        masks: segmentation loss: weighted sum of bce, dice, jaccard, focal, tversky and lovasz, such as {dice: 1, bce: 1} (maskrcnn
            has separate losses)
        class_factor: joint task: the loss is segmentation loss + class_factor × classification loss
        alpha: weight of false positives in tversky
        beta: weight of false negatives in tversky
    """

    name: str = key("cross_entropy", only_with=WITH_CLASSES)
    label_smoothing: float = key(0.0, "0 or more and below 1", {**WITH_CLASSES, "model.loss.name": ("cross_entropy",)})
    gamma: float = key(2.0, "0 or more, at most 1000")
    masks: dict[str, float] = field(
        default_factory=lambda: {"dice": 1.0, "bce": 1.0}, metadata={"only_with": WITH_MASKS}
    )
    class_factor: float = key(1.0, "0 or more, at most 1000", {"task": ("joint",)})
    alpha: float = key(0.5, only_with={**WITH_MASKS, "model.loss.masks": ("tversky",)})
    beta: float = key(0.5, only_with={**WITH_MASKS, "model.loss.masks": ("tversky",)})


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser.

    Args:
        name: adam, adamw or sgd
        lr: learning rate (peak value of a schedule with a peak); not scaled by the number of devices
        weight_decay: decoupled for adamw, L2 for adam and sgd
        momentum: momentum of sgd
    """

    name: str = "adamw"
    lr: float = key(1e-3, "above 0 and below 100")
    weight_decay: float = key(0.01, "0 or more, at most 1000")
    momentum: float = key(0.9, "0 or more and below 1", {"model.optimizer.name": ("sgd",)})


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate schedule.

    Args:
        name: constant, cosine (with linear warm-up), one_cycle or step
        warmup_epochs: epochs of the linear warm-up of cosine; may be a fraction
        step_epochs: epochs between two steps of the step schedule
        gamma: factor of the learning rate at each step
    """

    name: str = "constant"
    warmup_epochs: float = key(0.0, only_with={"model.schedule.name": ("cosine",)})
    step_epochs: int = key(10, "1 or more, at most a million", {"model.schedule.name": ("step",)})
    gamma: float = key(0.1, "above 0, at most 1", {"model.schedule.name": ("step",)})


@dataclass(frozen=True)
class MaskConfig:
    """Post-processing of mask probabilities at the original image size.

    Args:
        threshold: smallest probability of a lesion pixel; auto selects the best mean Jaccard on the validation set
        largest_component: keep only the largest connected component
        fill_holes: fill holes in the mask
    """

    threshold: float | Literal["auto"] = key("auto", "auto, or above 0 and below 1")
    largest_component: bool = False
    fill_holes: bool = False


@dataclass(frozen=True)
class ClassicalConfig:
    """Features and hyper-parameters of a classical classifier.

    Args:
        features: families of hand-crafted features (abcd, colour, glcm, lbp, hog), or only deep: features of the backbone with its
            initial weights
        C: svm: weight of training errors relative to a wide margin
        gamma: svm: the kernel is exp(-gamma × squared feature distance), on standardised hand-crafted features; scale is 1 / (number
            of features × their variance)
        neighbours: knn: number of neighbours
        clusters: kmeans: number of clusters
        trees: random_forest: number of trees
    """

    features: list[str] = field(
        default_factory=lambda: list(FAMILIES), metadata={"only_with": {"model.classifier": CLASSICAL}}
    )
    C: float = key(1.0, "above 0, and finite", {"model.classifier": ("svm",)})
    gamma: float | Literal["scale"] = key("scale", "scale, or above 0", {"model.classifier": ("svm",)})
    neighbours: int = key(15, "1 or more, at most a million", {"model.classifier": ("knn",)})
    clusters: int = key(50, "1 or more, at most a million", {"model.classifier": ("kmeans",)})
    trees: int = key(300, "1 or more, at most a million", {"model.classifier": ("random_forest",)})


@dataclass(frozen=True)
class ModelConfig:
    """The model and its training.

    Args:
        classifier: network (trains the backbone), or a classical classifier on image features: svm, knn, kmeans (each cluster predicts
            the majority class of its training images), random_forest
        classical: features and hyper-parameters of a classical classifier
        architecture: segmentation: unet, unetplusplus, deeplabv3plus, fcn, segnet, maskrcnn, autoencoder …; joint task: architectures of
            segmentation-models-pytorch
        backbone: classification: any timm model; segmentation and joint task: any encoder of segmentation-models-pytorch, or tu-<timm
            model>
        weights: auto (ImageNet if available), imagenet (required), none, a file, or run:RUN_ID
        dropout: dropout probability before the classification layer
        head: softmax, or sigmoid (one logit) for two classes
        head_hidden: units of a hidden layer before the classification layer; 0 for none
        freeze: none, all (everything except the head), or number of first stages; also freezes their BatchNorm statistics
        unfreeze_epoch: first epoch, from 0, in which all layers are trained
        mask: post-processing of mask probabilities
        loss: the training loss
        optimizer: the optimiser
        schedule: the learning rate schedule
        tta: test-time augmentation: none, flips (4 views) or d4 (flips and quarter turns, 8 views); averages the logits; used from
            the evaluation of the best checkpoint on, not in the validation of each epoch
        channels_last: use the NHWC memory format
        compile: use torch.compile
    """

    classifier: Literal["network", "svm", "knn", "kmeans", "random_forest"] = key("network", only_with=CLASSIFICATION)
    classical: ClassicalConfig = field(default_factory=ClassicalConfig)
    architecture: str = key("", only_with=WITH_MASKS)
    backbone: str = "tf_efficientnet_lite0"
    weights: str = "auto"
    dropout: float = key(0.0, "0 or more and below 1", {**WITH_CLASSES, **NETWORK})
    head: Literal["softmax", "sigmoid"] = key("softmax", only_with={**CLASSIFICATION, **NETWORK})
    head_hidden: int = key(0, "from 0 to 65536", {**CLASSIFICATION, **NETWORK})
    freeze: int | str = key("none", "none, all, or a number of stages", NETWORK)
    unfreeze_epoch: int | None = key(None, "1 or more, at most a million", NETWORK)
    mask: MaskConfig = field(default_factory=MaskConfig, metadata={"only_with": {**WITH_MASKS, **NETWORK}})
    loss: LossConfig = field(default_factory=LossConfig, metadata={"only_with": NETWORK})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, metadata={"only_with": NETWORK})
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig, metadata={"only_with": NETWORK})
    tta: Literal["none", "flips", "d4"] = key("none", only_with=NETWORK)
    channels_last: bool = key(True, only_with=NETWORK)
    compile: bool = key(False, only_with=NETWORK)

    @property
    def is_network(self) -> bool:
        """Whether a network is trained."""
        return self.classifier == "network"

    @property
    def learner(self) -> str:
        """Name of the trained model: the backbone, or the classical classifier."""
        return self.backbone if self.is_network else self.classifier

    @property
    def is_hand_crafted(self) -> bool:
        """Whether the classifier uses hand-crafted features, measured in lesion masks."""
        return not self.is_network and DEEP not in self.classical.features


# Hyper-parameters of the classical classifiers, and the classifier of each.
OF_CLASSIFIERS = {
    option.name: option.metadata["only_with"]["model.classifier"][0]
    for option in dataclasses.fields(ClassicalConfig)
    if option.name != "features"
}
