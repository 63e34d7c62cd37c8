"""Sections `data` and `augment` of an experiment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from skincancer.schema.rules import CLASSIFICATION, NAMES, NETWORK, WITH_CLASSES, key

# Threshold of each quality rule, selected by visual inspection of HAM10000 (contrast, ink and brightness also of ISIC 2018
# Task 1): each rule flags images that a human reader would flag. `imaging.quality` describes the rules.
QUALITY_RULES = {
    "resolution": 64, "blurred": 7, "dark": 0.24, "bright": 0.96, "flat": 0.12, "grey": 0.07, "cast": 50, "border": 0.1, "hair": 0.12,
    "ink": 0.01, "ruler": 0.5,
}  # fmt: skip

# Prefix of the run of a segmenter in `data.masks`, and of the digest of a segmenter in tables of images.
RUN = "run:"


def segmenter_run(masks: str) -> str:
    """Return the run of `data.masks`, "" for other mask sources."""
    return masks.removeprefix(RUN) if masks.startswith(RUN) else ""


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


@dataclass(frozen=True)
class DataConfig:
    """Images, their roles and their size.

    Args:
        dataset: name of a data set in the catalog (`python -m skincancer.prepare --list`)
        root: folder of the data set; default $SKINCANCER_DATA/<dataset>, then data/<dataset>
        images: folder of the images that a csv table names; default: the folder of the table
        where: condition on the columns of the table, such as image_type == 'dermoscopic' (csv: columns of the file; other data sets:
            columns of the index, such as dx_type)
        name: name of a folder or csv data set in runs and reports
        split: train:test in percent (80:20), fold:i/k, or official (split of the publisher)
        split_seed: seed of the split; the key seed does not change the split
        target: diagnosis (classes of the data set) or malignancy (benign or malignant)
        malignant: malignant classes, for data sets where the catalog does not define them
        positive: positive class of two classes, the class of sensitivity and precision; default: the malignant class, else the class
            with a name such as melanoma, malignant, positive or 1
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
    images: str | None = key(None, only_with={"data.dataset": ("csv",)})
    where: str | None = None
    name: str | None = key(None, NAMES, {"data.dataset": ("folder", "csv")})
    split: str = "80:20"
    split_seed: int = key(0, "0 or more")
    target: Literal["diagnosis", "malignancy"] = key("diagnosis", only_with=WITH_CLASSES)
    # YAML reads class names such as 1 as numbers. The properties below return texts.
    malignant: list[str | int] = field(default_factory=list, metadata={"only_with": WITH_CLASSES})
    positive: str | int | None = key(None, only_with=WITH_CLASSES)
    balance: str = key("none", only_with=WITH_CLASSES)
    balance_fixed: bool = key(False, only_with={"data.balance": ("undersample",)})
    class_weight_power: float = key(1.0, "above 0, at most 2", {"data.balance": ("class_weights",)})
    groups: str | None = None
    leaks: Literal["stop", "drop_from_train", "allow"] = "stop"
    size: int = key(224, "a whole number of pixels from 1 to 4096")
    resize: Literal["stretch", "pad", "crop"] = "stretch"
    clean: list[str] = field(default_factory=list)
    crop: bool = key(False, only_with=CLASSIFICATION)
    crop_margin: float = key(0.2, "from 0 to 5", {"data.crop": ("true",)})
    masks: str = "auto"
    batch_size: int = key(32, "1 or more")
    workers: int = key(0, "from 0 to 1024", NETWORK)
    skip_bad: bool = False
    quality: Literal["keep", "drop_flagged"] = "keep"
    quality_rules: dict[str, float] = field(
        default_factory=lambda: dict(QUALITY_RULES), metadata={"only_with": {"data.quality": ("drop_flagged",)}}
    )

    @property
    def malignant_names(self) -> tuple[str, ...]:
        """Malignant classes as texts."""
        return tuple(str(name) for name in self.malignant)

    @property
    def positive_name(self) -> str | None:
        """Positive class as text, None if not set."""
        return None if self.positive is None else str(self.positive)
