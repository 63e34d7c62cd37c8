"""torchvision's Mask R-CNN as a segmenter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import masks_to_boxes

from skincancer.models.decoders import Segmenter

# The logit of 0, the probability without instances, is not finite.
SMALLEST_PROBABILITY = 1e-6


class _Identity(GeneralizedRCNNTransform):
    """Identity: the task normalises images, and the data module chooses their size."""

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[0.0] * 3, image_std=[1.0] * 3, size_divisible=1)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


class MaskRCNN(nn.Module):
    """Mask R-CNN (He et al. 2017) with ResNet50-FPN for one class, the lesion.

    All layers learn. An image shows one lesion, so torchvision's numbers for COCO's crowded scenes are reduced: per image, 256
    instead of 2,000 proposals and 64 instead of 512 regions in training, and 10 instead of 100 instances.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=2,
            rpn_pre_nms_top_n_train=1000, rpn_post_nms_top_n_train=256, rpn_pre_nms_top_n_test=1000,
            rpn_post_nms_top_n_test=100, box_batch_size_per_image=64, box_detections_per_img=10,
        )  # fmt: skip
        self.network.transform = _Identity()

    @property
    def encoder(self) -> nn.Module:
        """ResNet50 without the feature pyramid."""
        return self.network.backbone.body

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to finite logits, float32 (B, 1, H, W).

        The probability of a pixel is the maximum of score × mask over the instances. Without instances the logit is -13.8.

        Raises:
            RuntimeError: in training mode, in which the network returns losses (`loss`) and no masks.
        """
        if self.training:
            raise RuntimeError("Mask R-CNN returns no masks in training mode; use own_loss, or call eval() before.")
        probability = torch.stack([self._probability(instances) for instances in self.network(list(image))])
        return torch.logit(probability, eps=SMALLEST_PROBABILITY)

    @staticmethod
    def _probability(instances: dict[str, Tensor]) -> Tensor:
        masks = instances["masks"].float() * instances["scores"].float()[:, None, None, None]  # (instances, 1, H, W)
        if not len(masks):
            return masks.new_zeros(masks.shape[1:])
        return masks.amax(0)

    def loss(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return the sum of the network's losses: class, box, mask, objectness, proposal.

        Args:
            image: (B, 3, H, W).
            mask: float (B, 1, H, W) in {0, 1}. All components of a mask are one instance. An image with an empty mask has no
                objects.
        """
        targets = []
        for each in mask > 0.5:
            # (1, H, W), or (0, H, W) of an empty mask.
            instances = each[each.flatten(1).any(1)]
            # The box includes the last row and column, so that a lesion of one pixel has a box with an area.
            boxes = masks_to_boxes(instances) + torch.tensor([0.0, 0.0, 1.0, 1.0], device=mask.device)
            labels = torch.ones(len(instances), dtype=torch.int64, device=mask.device)
            targets.append({"boxes": boxes, "labels": labels, "masks": instances.to(torch.uint8)})
        losses: dict[str, Any] = self.network(list(image), targets)
        return torch.stack([each.float() for each in losses.values()]).sum()


class InstanceSegmenter(Segmenter):
    """Segmenter with training losses of its own instead of a loss on its logits."""

    model: MaskRCNN

    def own_loss(self, image: Tensor, mask: Tensor, has_mask: Tensor) -> Tensor:
        """Return the training loss, a scalar, in training mode.

        Args:
            image: normalised, float (B, 3, H, W).
            mask: float (B, 1, H, W) in {0, 1}.
            has_mask: bool (B,). Other images are left out. Without any mask the loss and its gradient are 0.
        """
        if not bool(has_mask.any()):
            return torch.stack([parameter.sum() * 0.0 for parameter in self.parameters()]).sum()
        padded, _, _ = self.pad(image[has_mask])
        # Padded like the image, so that the two agree.
        padded_mask, _, _ = self.pad(mask[has_mask])
        return self.model.loss(padded, padded_mask)
