"""Grad-CAM maps of classifiers (Selvaraju et al., ICCV 2017), by the library `grad-cam`.

The map of a class is ReLU(Σ αᵏ Aᵏ): channels Aᵏ of the last features before pooling, weighted by the mean gradient αᵏ of the class
logit. In transformers with a class token, the patches have no gradient at the end. Their maps use the output of the first norm of
the last block, as the documentation of `grad-cam` advises, with the patch tokens arranged as in the image.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from skincancer.errors import RunError
from skincancer.models.tasks.classification import ClassificationTask
from skincancer.models.tasks.joint import JointTask

NO_MAP = (
    "{name}: the spatial layout of its features is unknown ({found}). Grad-CAM maps exist for CNNs and for ViTs of "
    "square patches."
)


class Maps(NamedTuple):
    """Grad-CAM maps of a batch.

    Attributes:
        values: float32 (B, H, W), from 0 (least support for the class in the image) to 1 (most). All 0 if no cell supports the
            class, or all cells do equally.
        cells: Rows and columns of the features before enlargement.
    """

    values: npt.NDArray[np.float32]
    cells: tuple[int, int]


def grad_cam(task: ClassificationTask | JointTask, image: Tensor, label: Sequence[int]) -> Maps:
    """Compute the map of one class per image, without test-time augmentation.

    For a sigmoid head with logit z, the class logits are −z/2 and z/2, which have the same softmax.

    Args:
        task: network, in evaluation mode afterwards.
        image: float32 (B, 3, H, W), RGB in [0, 1].
        label: B classes.

    Raises:
        RunError: the backbone's features are neither maps nor tokens of square patches.
    """
    classifier = _Classifier(task)
    image, height, width = image.to(task.device), slice(None), slice(None)
    if isinstance(task, JointTask):
        image, height, width = task.segmenter.pad(image)
    layer = classifier.layer()
    with _without_gradients(task):
        # This hook is the first of the layer. It cuts the graph, so that the backward pass runs through the head only.
        cut = layer.register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_())
        cam = GradCAM(classifier, [layer], reshape_transform=classifier.lay_out)
        try:
            values = cam(image, [ClassifierOutputTarget(number) for number in label])
            cells = cam.activations_and_grads.activations[0].shape[2:]
        finally:
            cam.activations_and_grads.release()
            cut.remove()
    return Maps(values[:, height, width].astype(np.float32), (int(cells[0]), int(cells[1])))


class _Classifier(nn.Module):
    """Classifier of a task, with the last features passing through `last`."""

    def __init__(self, task: ClassificationTask | JointTask) -> None:
        super().__init__()
        self.task, self.last = task, nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        task, image = self.task, self.task.normalise(image)
        if isinstance(task, JointTask):
            # The class head does not use the decoder.
            model: Any = task.segmenter.model
            return model.classification_head(self.last(model.encoder(image)[-1]))
        backbone: Any = task.backbone
        if not hasattr(backbone, "forward_head"):
            raise self._unknown("it has no forward_features and forward_head")
        logits = task.classify(backbone.forward_head(self.last(backbone.forward_features(image))))
        return logits - logits.mean(1, keepdim=True) if task.hparams["head"] == "sigmoid" else logits

    def layer(self) -> nn.Module:
        """Return the layer of the maps."""
        backbone: Any = getattr(self.task, "backbone", None)
        if getattr(backbone, "global_pool", None) != "token":
            return self.last
        try:
            return backbone.blocks[-1].norm1
        except (AttributeError, TypeError, IndexError) as error:
            raise self._unknown("it pools a token, and has no blocks with a first norm") from error

    def lay_out(self, features: Tensor) -> Tensor:
        """Arrange the features of the layer as (B, C, rows, columns)."""
        backbone = getattr(self.task, "backbone", None)
        if features.ndim == 4:
            return features.permute(0, 3, 1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else features
        if features.ndim == 3:
            tokens = features.shape[1]
            for prefix in (int(getattr(backbone, "num_prefix_tokens", 0) or 0), 0):
                side = math.isqrt(max(tokens - prefix, 0))
                if side and side**2 == tokens - prefix:
                    return features[:, prefix:].transpose(1, 2).unflatten(2, (side, side))
        raise self._unknown(f"features of {tuple(features.shape)}")

    def _unknown(self, found: str) -> RunError:
        return RunError(NO_MAP.format(name=self.task.hparams["backbone"], found=found))


@contextlib.contextmanager
def _without_gradients(task: nn.Module) -> Iterator[None]:
    """Disable the gradients of parameters, which would only take memory."""
    trainable = [parameter for parameter in task.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
