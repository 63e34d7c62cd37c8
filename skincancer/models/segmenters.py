"""Segmenters (B, 3, H, W) -> logits (B, 1, H, W): architecture × encoder."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.encoders import get_encoder, get_encoder_names
from timm.data import constants
from torch import nn

from skincancer.errors import ConfigError, nearest
from skincancer.models.backbones import normalisation
from skincancer.models.decoders import FCN, Autoencoder, JointSegmenter, PaddedModel, Segmenter, SegNet
from skincancer.models.maskrcnn import InstanceSegmenter, MaskRCNN
from skincancer.models.names import JOINT_ARCHITECTURES, check_architecture

# Prefix of SMP (segmentation_models_pytorch) before timm's models as encoders.
TIMM_PREFIX = "tu-"
# Stride of the deepest features, px.
STRIDE = 32
# BatchNorm of a single image needs more than one value.
SMALLEST_SIDE = 2 * STRIDE
ENCODERS = {"segnet": ("vgg16_bn", "vgg16"), "maskrcnn": ("resnet50",)}
_DILATED = "Use an encoder with last stages that can be dilated, such as resnet50, mobilenet_v2 or tu-resnet50; not VGG or DenseNet."
_REMEDIES = {
    "deeplabv3": _DILATED,
    "deeplabv3plus": _DILATED,
    "pan": _DILATED,
    "dpt": "It needs a timm vision transformer, such as tu-vit_small_patch16_224.",
}


def encoder_side(size: int) -> int:
    """Return the image side, px, of an encoder of fixed input size."""
    return max(-(-size // STRIDE) * STRIDE, SMALLEST_SIDE)


def _encoder_options(encoder: str, size: int) -> dict[str, Any]:
    """Return the options of an encoder of fixed input size.

    `dynamic_img_size` is set if the encoder can take other sizes.
    """
    name = encoder.removeprefix(TIMM_PREFIX)
    if name == encoder or not timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        return {}
    options: dict[str, Any] = {"img_size": encoder_side(size)}
    try:
        with torch.device("meta"):
            timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # unknown option
        return options
    return options | {"dynamic_img_size": True}


def _fixed_side(options: dict[str, Any]) -> int | None:
    return None if options.get("dynamic_img_size") else options.get("img_size")


def _smp_model(
    architecture: str, encoder: str, size: int, head: dict[str, Any] | None = None
) -> tuple[nn.Module, int, int, int | None]:
    """Return SMP's model, with a class head for `head`, and arguments of `PaddedModel`."""
    options = _encoder_options(encoder, size)
    if architecture == "dpt":
        # DPT takes timm's whole model, with ImageNet's classifier unless the number of classes is 0.
        options["num_classes"] = 0
    model: Any = smp.create_model(architecture, encoder, encoder_weights=None, classes=1, aux_params=head, **options)
    # PAN halves its features of stride 16 three more times.
    smallest = 2 * SMALLEST_SIDE if architecture == "pan" else SMALLEST_SIDE
    return model, STRIDE, smallest, _fixed_side(options)


def build_segmenter(architecture: str, encoder: str, size: int) -> Segmenter:
    """Build a segmenter with random weights.

    The segmenter maps normalised images (B, 3, H, W) of any size from 1 px to logits (B, 1, H, W). Its `encoder` takes ImageNet
    weights. Mask R-CNN returns logits in evaluation mode only, and has a method `own_loss` for training.

    Args:
        architecture: name in `names.ARCHITECTURES`.
        encoder: SMP's name, or `tu-` and timm's name.
        size: image side in px, for encoders of fixed input size (ViT, Swin …). If timm allows, they take other sizes too.

    Raises:
        ConfigError: the architecture takes other encoders only. `check_segmenter` reports all other misfits.
    """
    if architecture in JOINT_ARCHITECTURES:
        return Segmenter(*_smp_model(architecture, encoder, size))
    allowed = ENCODERS.get(architecture, (encoder,))
    if encoder not in allowed:
        raise ConfigError(f"model.backbone is {encoder!r}; {architecture} takes {' and '.join(allowed)}.")
    if architecture == "maskrcnn":
        return InstanceSegmenter(MaskRCNN(), STRIDE, SMALLEST_SIDE)
    options = _encoder_options(encoder, size)
    module = {"fcn": FCN, "segnet": SegNet, "autoencoder": Autoencoder}[architecture]
    return Segmenter(module(get_encoder(encoder, weights=None, **options)), STRIDE, SMALLEST_SIDE, _fixed_side(options))


def build_joint(architecture: str, encoder: str, size: int, classes: int, dropout: float) -> JointSegmenter:
    """Build a segmenter with a class head and random weights.

    The head averages the deepest features of the encoder, and maps them to logits (B, classes) by dropout and a linear layer.

    Args:
        architecture: name in `names.JOINT_ARCHITECTURES`.
        encoder: as for `build_segmenter`.
        size: as for `build_segmenter`.
        classes: number of classes.
        dropout: probability.
    """
    head = {"classes": classes, "dropout": dropout, "pooling": "avg"}
    return JointSegmenter(*_smp_model(architecture, encoder, size, head))


def check_segmenter(architecture: str, encoder: str, size: int, joint: bool = False) -> None:
    """Check that a segmenter takes square images of `size`, without memory for weights.

    Raises:
        ConfigError: unknown architecture or encoder (with the nearest names), or an encoder that does not fit.
    """
    check_architecture(architecture, joint)
    _check_encoder(encoder)

    def build() -> PaddedModel:
        if joint:
            return build_joint(architecture, encoder, size, classes=2, dropout=0.0)
        return build_segmenter(architecture, encoder, size)

    try:
        try:
            with torch.device("meta"):
                segmenter = build()
        # SMP's mit_* read their drop rates from tensors, which the meta device cannot.
        except RuntimeError:
            segmenter = build().to("meta")
        if architecture == "maskrcnn":
            # Mask R-CNN chooses regions by values, which the meta device does not have.
            return
        with torch.device("meta"), torch.no_grad():
            output = segmenter.eval()(torch.zeros(1, 3, size, size))
        shape = tuple((output[0] if joint else output).shape)
        if shape != (1, 1, size, size):
            raise RuntimeError(f"the logits of an image of {size} px have the shape {shape}")
    except ConfigError:
        raise
    except Exception as error:  # SMP and timm raise many types for an encoder that does not fit
        raise ConfigError(
            f"the architecture {architecture} refuses model.backbone {encoder} at {size} px ({type(error).__name__}: {error}). "
            f"{_REMEDIES.get(architecture, 'Use another encoder, such as resnet34.')}"
        ) from error


def _check_encoder(encoder: str) -> None:
    own = get_encoder_names()
    name, tag = encoder.removeprefix(TIMM_PREFIX), encoder.partition(".")[2]
    if encoder in own:
        return
    if name == encoder or not timm.is_model(name.split(".")[0]):
        known = [*own, *(TIMM_PREFIX + model for model in timm.list_models())]
        raise ConfigError(
            f"model.backbone is {encoder!r}, which segmentation_models_pytorch does not know.{nearest(encoder, known)} Allowed: "
            f"its own ({', '.join(own)}), and {TIMM_PREFIX} before a name of timm's."
        )
    tags = [TIMM_PREFIX + known for known in timm.list_pretrained(name.split(".")[0] + ".*")]
    if tag and encoder not in tags:
        raise ConfigError(
            f"model.backbone is {encoder!r}: unknown weights tag.{nearest(encoder, tags)} Known: {', '.join(tags)}."
        )


def encoder_normalisation(encoder: str) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of an encoder's ImageNet weights.

    RGB in [0, 1]. SMP keeps the values of its own encoders on a hub. These are the values of SMP 0.4
    (`_legacy_pretrained_settings.py`).
    """
    if encoder.startswith(TIMM_PREFIX):
        return normalisation(encoder.removeprefix(TIMM_PREFIX))
    if encoder.startswith("dpn"):
        return list(constants.IMAGENET_DPN_MEAN), list(constants.IMAGENET_DPN_STD)
    if encoder.startswith(("inception", "xception", "timm-tf_efficientnet_lite")):
        return list(constants.IMAGENET_INCEPTION_MEAN), list(constants.IMAGENET_INCEPTION_STD)
    return list(constants.IMAGENET_DEFAULT_MEAN), list(constants.IMAGENET_DEFAULT_STD)
