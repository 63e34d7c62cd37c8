"""Segmenters: a wrapper for images of any size, and architectures that SMP lacks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn
from torch.nn import functional

from skincancer.errors import ConfigError


class PaddedModel(nn.Module):
    """Model that pads images of any size. A subclass crops the output back.

    The border is replicated. Reflection cannot pad an image by more than its own side, and shows a second lesion if a lesion
    touches the border. Zeros would add an edge that no image has. The padding is the same on both sides, so that flips commute
    with it.

    Args:
        model: takes images (B, 3, H, W) with sides that are multiples of `multiple`, px, and at least `smallest`. Has an
            attribute `encoder`.
        fixed: only side that an encoder of fixed input size takes, px. Larger images are refused.
    """

    def __init__(self, model: nn.Module, multiple: int = 32, smallest: int = 64, fixed: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.multiple, self.smallest, self.fixed = multiple, smallest, fixed

    @property
    def encoder(self) -> nn.Module:
        """Encoder, which takes ImageNet weights."""
        return cast(nn.Module, self.model.encoder)

    def pad(self, image: Tensor) -> tuple[Tensor, slice, slice]:
        """Pad images (B, C, H, W). Also return rows and columns of the original.

        Raises:
            ConfigError: the encoder is built for smaller images.
        """
        sides = []
        for side in image.shape[2:]:
            if self.fixed is not None and side > self.fixed:
                raise ConfigError(
                    f"an image of {tuple(image.shape[2:])} px, but the segmenter's encoder is built for {self.fixed} px; "
                    f"use images of at most {self.fixed} px, or train with another --data.size or encoder."
                )
            padded = self.fixed or max(-(-side // self.multiple) * self.multiple, self.smallest)
            before = (padded - side) // 2
            sides.append((before, padded - side - before, slice(before, before + side)))
        (top, bottom, rows), (left, right, columns) = sides
        if top or bottom or left or right:
            image = functional.pad(image, (left, right, top, bottom), mode="replicate")
        return image, rows, columns


class Segmenter(PaddedModel):
    """Segmenter of images of any size, without classes."""

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, 1, H, W)."""
        padded, rows, columns = self.pad(image)
        return self.model(padded)[:, :, rows, columns]


class JointSegmenter(PaddedModel):
    """Segmenter with a class head on the deepest features of its encoder."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images to logits of masks and classes.

        (B, 3, H, W) becomes (B, 1, H, W) and (B, C).
        """
        padded, rows, columns = self.pad(image)
        masks, classes = self.model(padded)
        return masks[:, :, rows, columns], classes


class FCN(nn.Module):
    """FCN-8s (Long, Shelhamer and Darrell 2015).

    The logits are the sum of upsampled scores of strides 32, 16 and 8. As published, scores are 1 × 1 convolutions of the encoder's
    features. All upsampling is bilinear. The paper learns the first two steps from a bilinear start.

    Args:
        encoder: an SMP encoder of five stages.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.scores = nn.ModuleList(nn.Conv2d(channels, 1, 1) for channels in encoder.out_channels[:-4:-1])

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, 1, H, W)."""
        # The deepest features come first.
        features = self.encoder(image)[:-4:-1]
        logits, *finer = (score(feature) for score, feature in zip(self.scores, features, strict=True))
        for score in finer:
            logits = score + functional.interpolate(logits, score.shape[2:], mode="bilinear", align_corners=False)
        return functional.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)


class Autoencoder(nn.Module):
    """Encoder and decoder without skip connections: SMP's U-Net decoder of the deepest features.

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
        """Map images (B, 3, H, W) to logits (B, 1, H, W)."""
        *finer, deepest = self.encoder(image)
        # Skips without channels give the decoder the sizes to upsample to.
        return self.head(self.decoder([*(feature[:, :0] for feature in finer), deepest]))


class SegNet(nn.Module):
    """SegNet (Badrinarayanan, Kendall and Cipolla 2017): VGG16 and its mirror image.

    The decoder puts values back at the positions of the pooling maxima. Every convolution of the decoder has BatchNorm and ReLU.
    With `vgg16_bn` those of the encoder have BatchNorm too, as published.

    Args:
        encoder: SMP's `vgg16_bn` or `vgg16`.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        # Per stage, the channels of the input and of each convolution.
        stages: list[list[int]] = [[3]]
        for layer in encoder.features:
            if isinstance(layer, nn.Conv2d):
                stages[-1].append(layer.out_channels)
            elif isinstance(layer, nn.MaxPool2d):
                stages.append([stages[-1][-1]])
        self.decoder = nn.ModuleList()
        for channels in reversed(stages[:-1]):
            layers: list[nn.Module] = []
            for wide, narrow in pairwise(reversed(channels)):
                # The mirror of the very first convolution returns the logits.
                if narrow == 3:
                    layers.append(nn.Conv2d(wide, 1, 3, padding=1))
                else:
                    layers += [nn.Conv2d(wide, narrow, 3, padding=1), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
            self.decoder.append(nn.Sequential(*layers))
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, 1, H, W)."""
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
