"""Segmenters (B, 3, H, W) -> logits (B, 1, H, W): architecture × encoder. torch and SMP are imported inside: config needs names alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skincancer.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import nn

    from skincancer.models.decoders import JointSegmenter, Padded, Segmenter


TIMM_PREFIX = "tu-"  # SMP's prefix of timm's models as encoders
STRIDE = 32  # of the deepest features, px
SMALLEST_SIDE = 2 * STRIDE  # BatchNorm of one image then still has more than one value

# global pooling before BatchNorm: in training one image alone has one value a channel, which torch refuses
SMALLEST_BATCH: dict[str, int] = {"deeplabv3": 2, "deeplabv3plus": 2, "pan": 2, "upernet": 2}

OWN_LOSSES = ("maskrcnn",)  # learn by losses of their own: `model.loss.masks` is then that of validation alone
SEGNET_ENCODERS = ("vgg16_bn", "vgg16")
MASKRCNN_ENCODERS = ("resnet50",)
_DILATED = "It needs an encoder whose last stages can be dilated, such as resnet50, mobilenet_v2 or tu-resnet50; not VGG or DenseNet."
_TAKES = {
    "deeplabv3": _DILATED,
    "deeplabv3plus": _DILATED,
    "pan": _DILATED,
    "dpt": "It needs a timm vision transformer, such as tu-vit_small_patch16_224.",
    "segnet": f"It takes {' and '.join(SEGNET_ENCODERS)}.",
    "maskrcnn": f"It takes {' and '.join(MASKRCNN_ENCODERS)}.",
}


def _smp(architecture: str, encoder: str, size: int) -> Segmenter:
    """Any architecture of segmentation_models_pytorch, with its own defaults."""
    from skincancer.models.decoders import Segmenter

    return Segmenter(*_smp_model(architecture, encoder, size))


def _smp_model(
    architecture: str, encoder: str, size: int, head: dict[str, Any] | None = None
) -> tuple[nn.Module, int, int, int | None]:
    """Return SMP's model and the other arguments of its wrapper; `head` are the options of SMP's own head for classes."""
    import segmentation_models_pytorch as smp

    options = _encoder_options(encoder, size)
    if architecture == "dpt":
        options["num_classes"] = 0  # it takes timm's whole model, ImageNet's classifier included
    model: Any = smp.create_model(architecture, encoder, encoder_weights=None, classes=1, aux_params=head, **options)
    # PAN halves its features of stride 16 three times more
    smallest = 2 * SMALLEST_SIDE if architecture == "pan" else SMALLEST_SIDE
    return model, STRIDE, smallest, _fixed_side(options)


def _over_encoder(architecture: str, encoder: str, size: int) -> Segmenter:
    """FCN, SegNet or autoencoder, over one of SMP's encoders."""
    from segmentation_models_pytorch.encoders import get_encoder

    from skincancer.models.decoders import FCN, Autoencoder, Segmenter, SegNet

    if architecture == "segnet" and encoder not in SEGNET_ENCODERS:
        raise ConfigError(f"model.backbone is {encoder!r}, but segnet takes {' and '.join(SEGNET_ENCODERS)}.")
    module = {"fcn": FCN, "segnet": SegNet, "autoencoder": Autoencoder}[architecture]
    options = _encoder_options(encoder, size)
    return Segmenter(module(get_encoder(encoder, weights=None, **options)), STRIDE, SMALLEST_SIDE, _fixed_side(options))


def _maskrcnn(architecture: str, encoder: str, size: int) -> Segmenter:
    """Mask R-CNN of torchvision."""
    from skincancer.models.maskrcnn import InstanceSegmenter, MaskRCNN

    if encoder not in MASKRCNN_ENCODERS:
        raise ConfigError(f"model.backbone is {encoder!r}, but maskrcnn takes {' and '.join(MASKRCNN_ENCODERS)}.")
    return InstanceSegmenter(MaskRCNN(), STRIDE, SMALLEST_SIDE)


ARCHITECTURES: dict[str, Callable[[str, str, int], Segmenter]] = {
    "unet": _smp, "unetplusplus": _smp, "manet": _smp, "linknet": _smp, "fpn": _smp, "pspnet": _smp, "deeplabv3": _smp,
    "deeplabv3plus": _smp, "pan": _smp, "upernet": _smp, "segformer": _smp, "dpt": _smp,
    "fcn": _over_encoder, "segnet": _over_encoder, "autoencoder": _over_encoder, "maskrcnn": _maskrcnn,
}  # fmt: skip
# SMP's take a head for classes
JOINT_ARCHITECTURES = tuple(name for name, build in ARCHITECTURES.items() if build is _smp)


def encoder_side(size: int) -> int:
    """Return the image side, px, for which an encoder of fixed input size is built: `size`, padded as `Padded` pads."""
    return max(-(-size // STRIDE) * STRIDE, SMALLEST_SIDE)


def _encoder_options(encoder: str, size: int) -> dict[str, Any]:
    """Return what an encoder of fixed input size needs: its size, and to take other ones too where it can."""
    import timm
    import torch

    name = encoder.removeprefix(TIMM_PREFIX)
    if name == encoder or not timm.get_pretrained_cfg_value(name, "fixed_input_size"):
        return {}
    options: dict[str, Any] = {"img_size": encoder_side(size)}
    try:
        with torch.device("meta"):
            timm.create_model(name, dynamic_img_size=True, **options)
    except TypeError:  # it has no such option
        return options
    return options | {"dynamic_img_size": True}


def _fixed_side(options: dict[str, Any]) -> int | None:
    return None if options.get("dynamic_img_size") else options.get("img_size")


def check_architecture(architecture: str, joint: bool = False) -> None:
    """Check the name of an architecture, and that it has a class head where one is needed.

    Raises:
        ConfigError: unknown (with the nearest), or without; says which are allowed.
    """
    allowed = JOINT_ARCHITECTURES if joint else tuple(ARCHITECTURES)
    if architecture not in allowed:
        reason = ", which has no class head for a joint task" if architecture in ARCHITECTURES else ""
        raise ConfigError(
            f"model.architecture is {architecture!r}{reason}; choose one of {', '.join(allowed)}.{nearest(architecture, allowed)}"
        )


def check_segmenter(architecture: str, encoder: str, size: int, joint: bool = False) -> None:
    """Check that a segmenter, or a joint one, can be built and takes square images of `size`, without spending memory on weights.

    Raises:
        ConfigError: unknown architecture or encoder (with the nearest names), or the architecture refuses the encoder.
    """
    import torch

    check_architecture(architecture, joint)
    _check_encoder(encoder)

    def build() -> Padded:
        if joint:
            return build_joint(architecture, encoder, size, classes=2, dropout=0.0)
        return build_segmenter(architecture, encoder, size)

    try:
        try:
            with torch.device("meta"):
                segmenter = build()
        except (
            RuntimeError
        ):  # SMP's mit_* compute their drop rates as tensors and read them, which the meta device cannot
            segmenter = build().to("meta")
        if architecture == "maskrcnn":
            return  # it chooses regions by their values, and the meta device has none
        with torch.device("meta"), torch.no_grad():
            found = segmenter.eval()(torch.zeros(1, 3, size, size))
        given = tuple((found[0] if joint else found).shape)
        if given != (1, 1, size, size):
            raise RuntimeError(f"it gives logits of {given} for an image of {size} px")
    except ConfigError:
        raise
    except Exception as error:  # whatever SMP and timm raise over an encoder that does not fit
        raise ConfigError(
            f"the architecture {architecture} refuses model.backbone {encoder} at {size} px ({type(error).__name__}: {error}). "
            f"{_TAKES.get(architecture, 'Choose another encoder, such as resnet34.')}"
        ) from error


def _check_encoder(encoder: str) -> None:
    import timm
    from segmentation_models_pytorch.encoders import get_encoder_names

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


def build_segmenter(architecture: str, encoder: str, size: int) -> Segmenter:
    """Build a segmenter with random weights.

    It takes normalised images (B, 3, H, W) of any size from 1 px and gives logits (B, 1, H, W); its `encoder` is the part that
    takes ImageNet weights. Mask R-CNN gives logits in evaluation mode alone, and has a method `own_loss` for training.

    Args:
        architecture: a name in `ARCHITECTURES`.
        encoder: a name of SMP's, or `tu-` and a name of timm's.
        size: image side in px, for encoders of fixed input size (ViT, Swin …); they take other sizes too, if timm can.

    Raises:
        ConfigError: the architecture takes other encoders alone (`check_segmenter` tells of all that may not fit).
    """
    return ARCHITECTURES[architecture](architecture, encoder, size)


def build_joint(architecture: str, encoder: str, size: int, classes: int, dropout: float) -> JointSegmenter:
    """Build a segmenter with random weights whose encoder's deepest features, averaged, also go through a linear layer to classes.

    Args:
        architecture: a name in `JOINT_ARCHITECTURES`.
        encoder: as for `build_segmenter`.
        size: as for `build_segmenter`.
        classes: C, of the logits (B, C) that it gives beside those of the masks.
        dropout: before the linear layer.
    """
    from skincancer.models.decoders import JointSegmenter

    head = {"classes": classes, "dropout": dropout, "pooling": "avg"}
    return JointSegmenter(*_smp_model(architecture, encoder, size, head))


def encoder_normalisation(encoder: str) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation (RGB in [0, 1]) that an encoder's ImageNet weights were trained with.

    SMP keeps those of its own encoders on a hub; these are the values that it published before (0.4, `_legacy_pretrained_settings.py`).

    Args:
        encoder: as for `build_segmenter`.
    """
    from timm.data import constants

    from skincancer.models.backbones import normalisation

    if encoder.startswith(TIMM_PREFIX):
        return normalisation(encoder.removeprefix(TIMM_PREFIX))
    if encoder.startswith("dpn"):
        return list(constants.IMAGENET_DPN_MEAN), list(constants.IMAGENET_DPN_STD)
    if encoder.startswith(("inception", "xception", "timm-tf_efficientnet_lite")):
        return list(constants.IMAGENET_INCEPTION_MEAN), list(constants.IMAGENET_INCEPTION_STD)
    return list(constants.IMAGENET_DEFAULT_MEAN), list(constants.IMAGENET_DEFAULT_STD)
