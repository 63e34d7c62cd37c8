"""Schema of an experiment: one dataclass per section, with rules of its keys.

Every field is a key of an experiment file and a dotted flag (`--data.split 70:30`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_type_hints


@dataclass(frozen=True)
class TaskKind:
    """What a task's model predicts: class probabilities, lesion masks, or both."""

    has_classes: bool
    has_masks: bool


TASKS = {"classification": TaskKind(True, False), "segmentation": TaskKind(False, True), "joint": TaskKind(True, True)}
CLASSICAL = ("svm", "knn", "kmeans", "random_forest")
_CLASSES = {"task": tuple(name for name, kind in TASKS.items() if kind.has_classes)}
_MASKS = {"task": tuple(name for name, kind in TASKS.items() if kind.has_masks)}
_CLASSIFIER = {"task": ("classification",)}
_NETWORK = {"model.classifier": ("network",)}
_BATCHES = "a number of batches (1 or more) or a share (above 0, at most 1.0)"


def _key(default: Any, allowed: str = "", only_with: Mapping[str, tuple[str, ...]] | None = None) -> Any:
    """Return a field with rules that `config.validation` checks.

    Args:
        default: its value.
        allowed: its range, a name in `config.validation.RANGES`.
        only_with: other keys, and the values of each with which this key has an effect.
    """
    return field(default=default, metadata={"allowed": allowed, "only_with": only_with or {}})


@dataclass(frozen=True)
class AugmentConfig:
    """Random augmentation of training images.

    An absent key takes the value of the policy; 0 switches an augmentation off. A key with ± samples uniformly between minus
    and plus its value, for each image.

    Args:
        policy: policy that sets the absent keys: none, light, strong, study1 or study2
        rotation: largest rotation in degrees anticlockwise, 0 to 180
        rotation_low: smallest rotation in degrees, -180 to `rotation`; default: value of the policy, else minus `rotation`
        horizontal_flip: probability of swapping left and right
        vertical_flip: probability of swapping top and bottom
        translation: shift as ± fraction of the width and of the height
        scaling: zoom as ± fraction, both axes alike
        shear: shear along the width, in ± degrees
        brightness: factor on all colours, 1 ± fraction
        contrast: factor on the difference from the mean grey of the image, 1 ± fraction
        saturation: factor on the difference from the grey value of each pixel, 1 ± fraction
        hue: rotation of the hue, in ± turns (0.5 covers every hue)
        noise: standard deviation of Gaussian noise, for values in [0, 1]
        elastic: largest displacement of a smooth random warp, as fraction of the shorter side
        elastic_sigma: smoothness of the warp: standard deviation of its filter, as fraction of the shorter side
        extra: names of augmentations of plugins, applied in this order after all others
    """

    policy: str = "light"
    rotation: float | None = None
    rotation_low: float | None = None
    horizontal_flip: float | None = None
    vertical_flip: float | None = None
    translation: float | None = None
    scaling: float | None = None
    shear: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    noise: float | None = None
    elastic: float | None = None
    elastic_sigma: float = 0.08
    extra: list[str] = field(default_factory=list)


# Threshold of each quality rule, selected by visual inspection of HAM10000 (contrast, ink and brightness also of ISIC 2018
# Task 1): each rule flags images that a human reader would flag. `imaging.quality` describes the rules.
QUALITY_RULES = {
    "resolution": 64, "blurred": 7, "dark": 0.24, "bright": 0.96, "flat": 0.12, "grey": 0.07, "cast": 50, "border": 0.1, "hair": 0.12,
    "ink": 0.01, "ruler": 0.5,
}  # fmt: skip
# Value of model.classical.features for the features of a frozen backbone.
FAMILIES = ("abcd", "colour", "glcm", "lbp", "hog")
DEEP = "deep"


@dataclass(frozen=True)
class DataConfig:
    """Images, their roles and their size.

    Args:
        dataset: name of a data set in the catalog (`python -m skincancer.prepare --list`)
        root: folder of the data set; default $SKINCANCER_DATA/<dataset>, then data/<dataset>
        split: train:test in percent (80:20), fold:i/k, or official (split of the publisher)
        split_seed: seed of the split; the key seed does not change the split
        target: diagnosis (classes of the data set) or malignancy (benign or malignant)
        malignant: malignant classes, for data sets where the catalog does not define them
        balance: none, undersample, oversample or class_weights; for the training set only
        balance_fixed: undersampling uses the same images in every epoch instead of sampling them again
        class_weight_power: class weights are proportional to (images of the class)^-power; 0.5 is the square root
        groups: CSV file with the columns image_id and group; merges the lesions of images in one group
        leaks: treatment of lesions in several subsets of the official split: stop, drop_from_train or allow
        size: width and height of the network input in pixels
        resize: stretch, pad or crop to a square
        clean: cleaning steps in this order, before cropping and resizing, such as [hair, colour]: hair, hair_blackhat, glare, colour,
            colour_grey_world, colour_max_rgb, contrast, contrast_clahe, frame
        crop: crop every image to its lesion before resizing, for classification
        crop_margin: margin on each side of the lesion's bounding box, as fraction of its longer side
        masks: mask source for cropping and hand-crafted features: truth, otsu, run:RUN_ID (a finished segmentation run, or a folder
            of its artifacts), or auto (truth, else otsu)
        batch_size: images per step and device; an optimiser step uses up to batch_size × devices × nodes × accumulate_grad_batches
            images (the param effective_batch_size)
        workers: number of loader processes; 0 is fast on a CPU, because the store is memory-mapped
        skip_bad: leave out and record unreadable images instead of stopping
        quality: keep every image, or drop_flagged: leave out and record images that violate a rule of quality_rules
        quality_rules: threshold of each active rule (`skincancer.imaging.quality`)
    """

    dataset: str = "demo"
    root: str | None = None
    split: str = "80:20"
    split_seed: int = _key(0, "0 or more")
    target: Literal["diagnosis", "malignancy"] = _key("diagnosis", only_with=_CLASSES)
    malignant: list[str] = field(default_factory=list, metadata={"only_with": _CLASSES})
    balance: str = _key("none", only_with=_CLASSES)
    balance_fixed: bool = _key(False, only_with={"data.balance": ("undersample",)})
    class_weight_power: float = _key(1.0, "above 0, at most 2", {"data.balance": ("class_weights",)})
    groups: str | None = None
    leaks: Literal["stop", "drop_from_train", "allow"] = "stop"
    size: int = _key(224, "a whole number of pixels from 1 to 4096")
    resize: Literal["stretch", "pad", "crop"] = "stretch"
    clean: list[str] = field(default_factory=list)
    crop: bool = _key(False, only_with=_CLASSIFIER)
    crop_margin: float = _key(0.2, "from 0 to 5", {"data.crop": ("true",)})
    masks: str = "auto"
    batch_size: int = _key(32, "1 or more")
    workers: int = _key(0, "0 or more", _NETWORK)
    skip_bad: bool = False
    quality: Literal["keep", "drop_flagged"] = "keep"
    quality_rules: dict[str, float] = field(
        default_factory=lambda: dict(QUALITY_RULES), metadata={"only_with": {"data.quality": ("drop_flagged",)}}
    )


RUN = "run:"  # precedes the run of a segmenter in `data.masks`, and a segmenter's digest in tables of images


def segmenter_run(masks: str) -> str:
    """Return the run of `data.masks`, "" for other mask sources."""
    return masks.removeprefix(RUN) if masks.startswith(RUN) else ""


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

    name: str = _key("cross_entropy", only_with=_CLASSES)
    label_smoothing: float = _key(0.0, "0 or more and below 1", {**_CLASSES, "model.loss.name": ("cross_entropy",)})
    gamma: float = _key(2.0, "0 or more")
    masks: dict[str, float] = field(default_factory=lambda: {"dice": 1.0, "bce": 1.0}, metadata={"only_with": _MASKS})
    class_factor: float = _key(1.0, "0 or more, and finite", {"task": ("joint",)})
    alpha: float = _key(0.5, only_with={**_MASKS, "model.loss.masks": ("tversky",)})
    beta: float = _key(0.5, only_with={**_MASKS, "model.loss.masks": ("tversky",)})


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
    lr: float = _key(1e-3, "above 0 and below 100")
    weight_decay: float = _key(0.01, "0 or more")
    momentum: float = _key(0.9, "0 or more and below 1", {"model.optimizer.name": ("sgd",)})


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
    warmup_epochs: float = _key(0.0, only_with={"model.schedule.name": ("cosine",)})
    step_epochs: int = _key(10, "1 or more", {"model.schedule.name": ("step",)})
    gamma: float = _key(0.1, "above 0, at most 1", {"model.schedule.name": ("step",)})


@dataclass(frozen=True)
class MaskConfig:
    """Post-processing of mask probabilities at the original image size.

    Args:
        threshold: smallest probability of a lesion pixel; auto selects the best mean Jaccard on the validation set
        largest_component: keep only the largest connected component
        fill_holes: fill holes in the mask
    """

    threshold: float | Literal["auto"] = _key("auto", "auto, or above 0 and below 1")
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
        default_factory=lambda: ["abcd", "colour", "glcm", "lbp", "hog"],
        metadata={"only_with": {"model.classifier": CLASSICAL}},
    )
    C: float = _key(1.0, "above 0, and finite", {"model.classifier": ("svm",)})
    gamma: float | Literal["scale"] = _key("scale", "scale, or above 0", {"model.classifier": ("svm",)})
    neighbours: int = _key(15, "1 or more", {"model.classifier": ("knn",)})
    clusters: int = _key(50, "1 or more", {"model.classifier": ("kmeans",)})
    trees: int = _key(300, "1 or more", {"model.classifier": ("random_forest",)})


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

    classifier: Literal["network", "svm", "knn", "kmeans", "random_forest"] = _key("network", only_with=_CLASSIFIER)
    classical: ClassicalConfig = field(default_factory=ClassicalConfig)
    architecture: str = _key("", only_with=_MASKS)
    backbone: str = "tf_efficientnet_lite0"
    weights: str = "auto"
    dropout: float = _key(0.0, "0 or more and below 1", {**_CLASSES, **_NETWORK})
    head: Literal["softmax", "sigmoid"] = _key("softmax", only_with={**_CLASSIFIER, **_NETWORK})
    head_hidden: int = _key(0, "0 or more", {**_CLASSIFIER, **_NETWORK})
    freeze: int | str = _key("none", "none, all, or a number of stages", _NETWORK)
    unfreeze_epoch: int | None = _key(None, "1 or more", _NETWORK)
    mask: MaskConfig = field(default_factory=MaskConfig, metadata={"only_with": {**_MASKS, **_NETWORK}})
    loss: LossConfig = field(default_factory=LossConfig, metadata={"only_with": _NETWORK})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig, metadata={"only_with": _NETWORK})
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig, metadata={"only_with": _NETWORK})
    tta: Literal["none", "flips", "d4"] = _key("none", only_with=_NETWORK)
    channels_last: bool = _key(True, only_with=_NETWORK)
    compile: bool = _key(False, only_with=_NETWORK)

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


@dataclass(frozen=True)
class TrainingConfig:
    """Selection of the best epoch, and early stopping.

    Args:
        monitor: metric that selects the best checkpoint: val/<metric> (maximised; hd95 and ece minimised) or val/loss (minimised); auto
            is val/balanced_accuracy, or val/jaccard for segmentation; mask metrics of the joint task are val/mask_<metric>
        patience: epochs without improvement of the monitor before stopping early; 0 never stops early
        ema_decay: decay per step of averaged weights, which are then validated and saved; averages about 1/(1-decay) steps; 0: none
    """

    monitor: str = "auto"
    patience: int = _key(0, "0 or more", _NETWORK)
    ema_decay: float = _key(0.0, "0 or more and below 1", _NETWORK)


@dataclass(frozen=True)
class TrainerConfig:
    """Arguments of Lightning's Trainer, under the same names.

    Args:
        max_epochs: number of epochs
        accelerator: auto, cpu, gpu, mps …
        devices: number of processes per machine, one per GPU (or CPU core); "auto" for all GPUs
        num_nodes: number of machines
        strategy: auto, ddp, or ddp_find_unused_parameters_true (for networks with unused layers in a step); several devices always
            use ddp
        precision: 32, bf16-mixed or 16-mixed
        accumulate_grad_batches: batches per optimiser step
        gradient_clip_val: largest norm (or value) of the gradient
        gradient_clip_algorithm: norm or value
        limit_train_batches: batches (int) or fraction (float) of an epoch
        limit_val_batches: batches (int) or fraction (float) of the validation set
        limit_test_batches: batches (int) or fraction (float) of the test set
        deterministic: use only deterministic algorithms
        benchmark: let cuDNN search for the fastest kernels
        sync_batchnorm: compute BatchNorm statistics over the batches of all devices instead of each device
        log_every_n_steps: steps between two values of train/loss_step, and between two checks of the loss for NaN
    """

    max_epochs: int = _key(20, "1 or more", _NETWORK)
    accelerator: str = "auto"
    devices: int | str = _key(1, "auto, or 1 or more")
    num_nodes: int = _key(1, "1 or more")
    strategy: str = _key("auto", only_with=_NETWORK)
    precision: int | str = _key("32", only_with=_NETWORK)
    accumulate_grad_batches: int = _key(1, "1 or more", _NETWORK)
    gradient_clip_val: float | None = _key(None, "above 0, and finite", _NETWORK)
    gradient_clip_algorithm: Literal["norm", "value"] = _key("norm", only_with=_NETWORK)
    limit_train_batches: int | float = _key(1.0, _BATCHES, _NETWORK)
    limit_val_batches: int | float = _key(1.0, _BATCHES, _NETWORK)
    limit_test_batches: int | float = _key(1.0, _BATCHES, _NETWORK)
    deterministic: bool = _key(False, only_with=_NETWORK)
    benchmark: bool = _key(False, only_with=_NETWORK)
    sync_batchnorm: bool = _key(False, only_with=_NETWORK)
    log_every_n_steps: int = _key(50, "1 or more", _NETWORK)


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow tracking of the run.

    Args:
        uri: MLflow tracking URI; default $MLFLOW_TRACKING_URI, then mlruns/mlflow.db of the project
        system_metrics: log CPU, GPU and memory use
    """

    uri: str | None = None
    system_metrics: bool = True


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

    name: str = "custom"
    description: str = ""
    task: Literal["classification", "segmentation", "joint"] = "classification"
    seed: int = _key(0, "0 or more")
    plugins: list[str] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig, metadata={"only_with": _NETWORK})
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the experiment as nested dicts of primitives."""
        return asdict(self)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Convert nested sections to dotted keys, without splitting schema keys such as search."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted not in KEYS:
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Convert dotted keys to nested sections."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *sections, last = dotted.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return nested


def _types(section: Any, prefix: str = "") -> dict[str, Any]:
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        types |= _types(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else {f"{prefix}{name}": hint}
    return types


TYPES = _types(Experiment)
KEYS = tuple(TYPES)
MAY_BE_NULL = {key for key, value in flatten(Experiment().to_dict()).items() if value is None}
SECTIONS = sorted({key.rsplit(".", 1)[0] for key in KEYS if "." in key})

# Hyper-parameters of the classical classifiers, and the classifier of each.
OF_CLASSIFIERS = {
    option.name: option.metadata["only_with"]["model.classifier"][0]
    for option in dataclasses.fields(ClassicalConfig)
    if option.name != "features"
}
