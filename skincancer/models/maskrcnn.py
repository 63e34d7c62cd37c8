"""torchvision's Mask R-CNN behind the segmenters' interface: images (B, 3, H, W) to one map of logits (B, 1, H, W)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import masks_to_boxes

from skincancer.models.decoders import Segmenter

# of logit(p): nothing found is p = 0, whose logit is not finite
SMALLEST_PROBABILITY = 1e-6


class _AsGiven(GeneralizedRCNNTransform):
    """Leaves images as they come: the task has normalised them and the data module has chosen their size."""

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[0.0] * 3, image_std=[1.0] * 3, size_divisible=1)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class MaskRCNN(nn.Module):
    """Mask R-CNN (He et al. 2017) with ResNet50-FPN, all layers learning, for one kind of object: the lesion.

    An image shows one lesion, so the numbers that torchvision sets for COCO's crowded scenes are cut: 256 instead of 2,000
    proposals and 64 instead of 512 regions an image in training, 10 instead of 100 instances kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=2,
            rpn_pre_nms_top_n_train=1000, rpn_post_nms_top_n_train=256, rpn_pre_nms_top_n_test=1000,
            rpn_post_nms_top_n_test=100, box_batch_size_per_image=64, box_detections_per_img=10,
        )  # fmt: skip
        self.network.transform = _AsGiven()

    @property
    def encoder(self) -> nn.Module:
        """The ResNet50, without the feature pyramid."""
        return self.network.backbone.body

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) to logits float32 (B, 1, H, W), finite.

        A pixel's probability is the largest of score × mask over the instances found; where nothing is found it is 0, whose
        logit is cut at -13.8.

        Raises:
            RuntimeError: in training mode, where the network gives losses (`loss`) and no masks.
        """
        if self.training:
            raise RuntimeError("Mask R-CNN gives no masks in training mode: call own_loss there, or eval() before.")
        probability = torch.stack([self._probability(found) for found in self.network(list(image))])
        return torch.logit(probability, eps=SMALLEST_PROBABILITY)

    @staticmethod
    def _probability(found: dict[str, Tensor]) -> Tensor:
        masks = found["masks"].float() * found["scores"].float()[:, None, None, None]  # (instances, 1, H, W)
        if not len(masks):
            return masks.new_zeros(masks.shape[1:])
        return masks.amax(0)

    def loss(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return the sum of the network's own losses: class, box, mask, objectness, proposal.

        Args:
            image: (B, 3, H, W).
            mask: float (B, 1, H, W) in {0, 1}. All of it is one instance, however many pieces it has: a lesion is one. An
                empty mask is an image without objects.
        """
        targets = []
        for each in mask > 0.5:
            instances = each[each.flatten(1).any(1)]  # (1, H, W), or (0, H, W) where the mask is empty
            # the last row and column belong to the box, so that it has a width where the lesion has one pixel
            boxes = masks_to_boxes(instances) + torch.tensor([0.0, 0.0, 1.0, 1.0], device=mask.device)
            labels = torch.ones(len(instances), dtype=torch.int64, device=mask.device)
            targets.append({"boxes": boxes, "labels": labels, "masks": instances.to(torch.uint8)})
        losses: dict[str, Any] = self.network(list(image), targets)
        return torch.stack([each.float() for each in losses.values()]).sum()


class InstanceSegmenter(Segmenter):
    """A `Segmenter` that learns by losses of its own instead of a loss on its logits."""

    model: MaskRCNN

    def own_loss(self, image: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        """Return the training loss, a scalar; call it in training mode.

        Args:
            image: normalised, float (B, 3, H, W).
            mask: float (B, 1, H, W) in {0, 1}.
            has_mask: bool (B,); images without are left out. Where none is left the loss is 0, with a gradient of 0.
        """
        if not bool(has_mask.any()):
            return torch.stack([parameter.sum() * 0.0 for parameter in self.parameters()]).sum()
        padded, _, _ = self.pad(image[has_mask])
        padded_mask, _, _ = self.pad(mask[has_mask])  # replicated as the image is, so that the two agree
        return self.model.loss(padded, padded_mask)
