"""Segmenters as modules: the wrapper that takes any image size, and the architectures that SMP has not."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn
from torch.nn import functional

from skincancer.errors import ConfigError


class Padded(nn.Module):
    """Takes images of any size: pads them to what an architecture takes; a subclass crops its answer back.

    The border is replicated. Reflection cannot pad an image by more than its own side, and shows a second lesion where one
    touches the border; zeros would be an edge that no photograph has. The padding is even on both sides, as under a flip.

    Args:
        model: takes images (B, 3, H, W) whose sides are multiples of `multiple` and at least `smallest`; with an attribute
            `encoder`.
        multiple: of each side, px.
        smallest: side, px.
        fixed: the one side that it takes, px, where an encoder is built for it (then larger images are refused); else None.
    """

    def __init__(self, model: nn.Module, multiple: int = 32, smallest: int = 64, fixed: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.multiple, self.smallest, self.fixed = multiple, smallest, fixed

    @property
    def encoder(self) -> nn.Module:
        """The part with ImageNet weights, which a classifier can share."""
        return cast(nn.Module, self.model.encoder)

    def pad(self, image: Tensor) -> tuple[Tensor, slice, slice]:
        """Return images (B, C, H', W') that the model takes, and where in them the given ones (B, C, H, W) lie.

        Raises:
            ConfigError: the encoder is built for smaller images.
        """
        sides = []
        for side in image.shape[2:]:
            if self.fixed is not None and side > self.fixed:
                raise ConfigError(
                    f"an image of {tuple(image.shape[2:])} px, but the segmenter's encoder is built for {self.fixed} px alone; "
                    f"give images of at most that, or train with another --data.size or encoder."
                )
            wanted = self.fixed or max(-(-side // self.multiple) * self.multiple, self.smallest)
            before = (wanted - side) // 2
            sides.append((before, wanted - side - before, slice(before, before + side)))
        (top, bottom, rows), (left, right, columns) = sides
        if top or bottom or left or right:
            image = functional.pad(image, (left, right, top, bottom), mode="replicate")
        return image, rows, columns


class Segmenter(Padded):
    """A model from images (B, 3, H, W) to logits (B, 1, H, W), for any size."""

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, 1, H, W)."""
        padded, rows, columns = self.pad(image)
        return self.model(padded)[:, :, rows, columns]


class JointSegmenter(Padded):
    """A segmenter whose model also gives logits of classes, from its encoder's deepest features, in the same pass."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, 3, H, W) to logits of masks (B, 1, H, W) and of classes (B, C)."""
        padded, rows, columns = self.pad(image)
        masks, classes = self.model(padded)
        return masks[:, :, rows, columns], classes


class FCN(nn.Module):
    """FCN-8s (Long, Shelhamer and Darrell 2015): scores of the strides 32, 16 and 8, upsampled and added.

    As published, the scores are 1 × 1 convolutions of the encoder's features. Upsampling is bilinear throughout, which in
    the paper is the start of the first two (learned) steps and the whole of the last.

    Args:
        encoder: an SMP encoder of five stages.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.scores = nn.ModuleList(nn.Conv2d(channels, 1, 1) for channels in encoder.out_channels[:-4:-1])

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, 1, H, W)."""
        features = self.encoder(image)[:-4:-1]  # the deepest first
        logits, *finer = (score(feature) for score, feature in zip(self.scores, features, strict=True))
        for score in finer:
            logits = score + functional.interpolate(logits, score.shape[2:], mode="bilinear", align_corners=False)
        return functional.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)


class Autoencoder(nn.Module):
    """Encoder and decoder without skip connections: SMP's U-Net decoder, fed the deepest features alone.

    Args:
        encoder: an SMP encoder of five stages.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        channels = (256, 128, 64, 32, 16)
        self.encoder = encoder
        self.decoder = UnetDecoder([0] * 5 + [encoder.out_channels[-1]], channels, n_blocks=5)
        self.head = SegmentationHead(channels[-1], 1, kernel_size=3)
        initialize_decoder(self.decoder)
        initialize_head(self.head)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, 1, H, W)."""
        *finer, deepest = self.encoder(image)
        # skips of no channels: the decoder takes from them the sizes to upsample to
        return self.head(self.decoder([*(feature[:, :0] for feature in finer), deepest]))


class SegNet(nn.Module):
    """SegNet (Badrinarayanan, Kendall and Cipolla 2017): the thirteen convolutions of VGG16, and their mirror image.

    Each pooling remembers where its maxima lay, and the decoder puts its values back there. Every convolution of the
    decoder has BatchNorm and ReLU; those of the encoder have BatchNorm, as published, with `vgg16_bn`.

    Args:
        encoder: SMP's `vgg16_bn` or `vgg16`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        stages: list[list[int]] = [[3]]  # per stage the channels of its input and of each of its convolutions
        for layer in encoder.features:
            if isinstance(layer, nn.Conv2d):
                stages[-1].append(layer.out_channels)
            elif isinstance(layer, nn.MaxPool2d):
                stages.append([stages[-1][-1]])
        self.decoder = nn.ModuleList()
        for channels in reversed(stages[:-1]):
            layers: list[nn.Module] = []
            for wide, narrow in pairwise(reversed(channels)):
                if narrow == 3:  # the mirror of the very first convolution gives the logits
                    layers.append(nn.Conv2d(wide, 1, 3, padding=1))
                else:
                    layers += [nn.Conv2d(wide, narrow, 3, padding=1), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
            self.decoder.append(nn.Sequential(*layers))
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to logits (B, 1, H, W)."""
        x, pooled = image, []
        for layer in self.encoder.features:
            if isinstance(layer, nn.MaxPool2d):
                size = x.shape[2:]
                x, where = functional.max_pool2d(x, 2, return_indices=True)
                pooled.append((where, size))
            else:
                x = layer(x)
        for stage in self.decoder:
            where, size = pooled.pop()
            x = stage(functional.max_unpool2d(x, where, [2, 2], output_size=list(size)))
        return x
