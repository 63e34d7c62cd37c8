"""Sections of an experiment: one frozen dataclass each, with the rules of its keys.

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
    """Random augmentation of training images; a field left out takes the policy's value, 0 switches it off.

    A field with ± draws uniformly and per image between minus and plus that value.

    Args:
        policy: name of the set of values in `POLICIES` that fills the fields left out
        rotation: largest rotation in degrees anticlockwise, 0 to 180
        rotation_low: smallest rotation in degrees, -180 to `rotation`; where no policy names it, minus `rotation`
        horizontal_flip: probability of swapping left and right
        vertical_flip: probability of swapping top and bottom
        translation: shift as ± fraction of the width and of the height
        scaling: zoom as ± fraction, both axes alike
        shear: shear along the width, in ± degrees
        brightness: factor on all colours, 1 ± fraction
        contrast: factor on the distance from the image's mean grey, 1 ± fraction
        saturation: factor on the distance from each pixel's own grey, 1 ± fraction
        hue: rotation of the colours about grey, in ± turns (0.5 reaches every hue)
        noise: standard deviation of Gaussian noise, for values in [0, 1]
        elastic: largest displacement of a smooth random warp, as fraction of the shorter side
        elastic_sigma: smoothness of that warp: standard deviation of its filter, as fraction of the shorter side
        extra: names of augmentations that plugins register, applied in this order after all others
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


# Rule to threshold, chosen by eye on HAM10000 (contrast, ink and brightness on ISIC 2018 Task 1 too): each rule flags
# images that a reader would name. `imaging.quality` says what each rule measures.
QUALITY_RULES = {
    "resolution": 64, "blurred": 7, "dark": 0.24, "bright": 0.96, "flat": 0.12, "grey": 0.07, "cast": 50, "border": 0.1, "hair": 0.12,
    "ink": 0.01, "ruler": 0.5,
}  # fmt: skip
DEEP = "deep"  # in place of a family of features: those of a frozen backbone


@dataclass(frozen=True)
class DataConfig:
    """Which images, in which roles, at which size.

    Args:
        dataset: a name from the catalog (`python -m skincancer.prepare --list`)
        root: folder that holds the data set; default $SKINCANCER_DATA/<dataset>, then data/<dataset>
        split: train:test in percent (80:20), fold:i/k, or official (the publisher's parts)
        split_seed: the only seed of the split
        target: diagnosis (the data set's classes) or malignancy (benign or malignant)
        malignant: classes that count as malignant where the catalog does not know
        balance: none, undersample, oversample or class_weights; on the training part alone
        balance_fixed: undersampling keeps one subset instead of drawing anew each epoch
        class_weight_power: class weights are proportional to (images of the class)^-power; 0.5 is the square root
        groups: CSV of image_id,group that merges lesions found to be the same
        leaks: what to do when a known lesion is on two sides of the publisher's parts: stop, drop_from_train or allow
        size: side of the square network input, pixels
        resize: stretch, pad or crop to the square
        clean: steps done on every image before it is cut and resized, in this order, such as [hair, colour]: hair, hair_blackhat, glare,
            colour, colour_grey_world, colour_max_rgb, contrast, contrast_clahe, frame
        crop: cut every image to its lesion before resizing it, for a classifier
        crop_margin: around the lesion's box, on each side, as a share of its longer side
        masks: whose masks crop, and hand-made features are measured in: truth, otsu, run:RUN_ID (a finished segmenter, or a folder of
            its artifacts), or auto (truth, else otsu)
        batch_size: images per step and device; an optimiser step learns from up to batch_size × devices × nodes ×
            accumulate_grad_batches images (the param effective_batch_size)
        workers: loader processes; the store is memory-mapped, so 0 is fast on a CPU
        skip_bad: leave unreadable images out and record them instead of stopping
        quality: keep every image, or drop_flagged: leave those out that break a rule of quality_rules, and record them
        quality_rules: rule to threshold, those that count (`skincancer.imaging.quality`)
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
    """Return the run id or folder of the segmenter in `data.masks`, "" for other mask sources."""
    return masks.removeprefix(RUN) if masks.startswith(RUN) else ""


@dataclass(frozen=True)
class LossConfig:
    """The training loss, on logits.

    Args:
        name: of classes: cross_entropy or focal
        label_smoothing: share of the target spread over all classes, 0 to below 1 (cross_entropy only)
        gamma: focusing exponent of the focal losses, of classes and of masks
        masks: of masks: a weighted sum, such as {dice: 1, bce: 1}; of bce, dice, jaccard, focal, tversky, lovasz (maskrcnn learns
            by its own losses)
        class_factor: of the joint task: the sum of losses is that of the masks + class_factor × that of the classes
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
        lr: learning rate (the peak, where the schedule has one), as given: it does not scale with the number of devices
        weight_decay: decoupled for adamw, L2 for adam and sgd
        momentum: of sgd
    """

    name: str = "adamw"
    lr: float = _key(1e-3, "above 0 and below 100")
    weight_decay: float = _key(0.01, "0 or more")
    momentum: float = _key(0.9, "0 or more and below 1", {"model.optimizer.name": ("sgd",)})


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run.

    Args:
        name: constant, cosine (with linear warm-up), one_cycle or step
        warmup_epochs: length of cosine's linear warm-up; may be a fraction
        step_epochs: epochs between two steps of step
        gamma: factor of each step
    """

    name: str = "constant"
    warmup_epochs: float = _key(0.0, only_with={"model.schedule.name": ("cosine",)})
    step_epochs: int = _key(10, "1 or more", {"model.schedule.name": ("step",)})
    gamma: float = _key(0.1, "above 0, at most 1", {"model.schedule.name": ("step",)})


@dataclass(frozen=True)
class MaskConfig:
    """How a segmenter's probabilities become a mask, at the original size.

    Args:
        threshold: a pixel is lesion from this probability upwards; auto takes what gives the best mean Jaccard on the validation part
        largest_component: keep the largest component alone
        fill_holes: fill holes
    """

    threshold: float | Literal["auto"] = _key("auto", "auto, or above 0 and below 1")
    largest_component: bool = False
    fill_holes: bool = False


@dataclass(frozen=True)
class ClassicalConfig:
    """What a classical classifier learns from, and its hyper-parameters.

    Args:
        features: families of hand-made features (abcd, colour, glcm, lbp, hog); or deep alone: those of the backbone, which stays as
            its first weights made it
        C: of svm: how much errors on training images count against a wide margin
        gamma: of svm: the kernel of two images is exp(-gamma × squared distance of their features, hand-made ones standardised); scale is
            1 / (number of features × their variance)
        neighbours: of knn: how many training images vote
        clusters: of kmeans: how many
        trees: of random_forest: how many
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
    """The model, and how it learns.

    Args:
        classifier: network (the backbone is trained), or a classical one on features of the images: svm, knn, kmeans (clusters, each
            named after the class that most of its training images have), random_forest
        classical: of a classical classifier
        architecture: of segmentation: unet, unetplusplus, deeplabv3plus, fcn, segnet, maskrcnn, autoencoder …; of the joint task those of
            segmentation-models-pytorch
        backbone: any timm model name; of segmentation and the joint task the encoder: any of segmentation-models-pytorch, or tu-<timm
            model name>
        weights: auto (ImageNet if it can be had), imagenet (or stop), none, a file, or run:RUN_ID
        dropout: probability before the classifying layer
        head: softmax, or sigmoid (one logit) for two classes
        head_hidden: units of a hidden layer before the classifying one; 0 for none
        freeze: none, all (everything but the head), or the number of first stages; BatchNorm statistics with them
        unfreeze_epoch: epoch, counted from 0, from which everything learns
        mask: from probabilities to masks
        loss: the training loss
        optimizer: the optimiser
        schedule: the learning rate over the run
        tta: test-time augmentation: none, flips (4 views) or d4 (those and their quarter turns: 8 views), logits averaged; from the
            best checkpoint's evaluation on, not in the validation of each epoch
        channels_last: NHWC memory format
        compile: torch.compile
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
        """What learns: the name of the backbone, or of the classical classifier."""
        return self.backbone if self.is_network else self.classifier

    @property
    def is_hand_made(self) -> bool:
        """Whether it learns from hand-made features, which are measured in masks of whole images."""
        return not self.is_network and DEEP not in self.classical.features


@dataclass(frozen=True)
class TrainingConfig:
    """What chooses the best epoch and when to stop.

    Args:
        monitor: val/<metric> (maximised; hd95 and ece minimised) or val/loss (minimised); chooses the best checkpoint; auto is
            val/balanced_accuracy, or val/jaccard of segmentation; of the joint task metrics of masks are val/mask_<metric>
        patience: epochs without improvement of the monitor before stopping early; 0 never stops early
        ema_decay: decay per step of averaged weights, which are then what is validated and saved; reaches back 1/(1-decay) steps; 0: none
    """

    monitor: str = "auto"
    patience: int = _key(0, "0 or more", _NETWORK)
    ema_decay: float = _key(0.0, "0 or more and below 1", _NETWORK)


@dataclass(frozen=True)
class TrainerConfig:
    """Arguments of Lightning's Trainer, under their own names.

    Args:
        max_epochs: epochs
        accelerator: auto, cpu, gpu, mps …
        devices: processes that train together on a machine, one a GPU (or a CPU core); "auto" for all GPUs
        num_nodes: machines
        strategy: auto, ddp, or ddp_find_unused_parameters_true (networks parts of which a step does not use); several devices
            always train by ddp
        precision: 32, bf16-mixed or 16-mixed
        accumulate_grad_batches: batches per optimiser step
        gradient_clip_val: clip the gradient's norm (or value) at this
        gradient_clip_algorithm: norm or value
        limit_train_batches: batches (int) or share (float) of an epoch
        limit_val_batches: batches (int) or share (float) of the validation part
        limit_test_batches: batches (int) or share (float) of the test part
        deterministic: only deterministic algorithms
        benchmark: let cuDNN search for the fastest kernels
        sync_batchnorm: BatchNorm statistics over the batches of all devices instead of each device's own
        log_every_n_steps: how often train/loss_step is logged and the loss checked for NaN
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
    """Where the run is written.

    Args:
        uri: MLflow tracking URI; default $MLFLOW_TRACKING_URI, then mlruns/mlflow.db of the project
        system_metrics: log CPU, GPU and memory use
    """

    uri: str | None = None
    system_metrics: bool = True


@dataclass(frozen=True)
class Experiment:
    """One experiment, complete: what `config.yaml` of a run holds.

    Args:
        name: the experiment's name
        description: one line: what it is and where its recipe comes from
        task: classification, segmentation, or joint (both from one pass; images without a mask or a label count for the other)
        seed: drives training (initial weights, order, dropout, augmentation), never the split
        plugins: modules to import first, which register parts of your own (--plugin MODULE adds one); no:NAME leaves an installed one out
        data: which images
        augment: random changes to training images
        model: the network and how it learns
        training: what chooses the best epoch
        trainer: arguments of Lightning's Trainer
        tracking: where the run is written
        search: space of a sweep: dotted key to {low, high, log} or {choices}
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
    """Turn nested sections into dotted keys; a key of the schema that holds a mapping (search) stays whole."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and dotted not in KEYS:
            flat.update(flatten(value, f"{dotted}."))
        else:
            flat[dotted] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested sections."""
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
