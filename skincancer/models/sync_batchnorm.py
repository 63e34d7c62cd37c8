"""BatchNorm over the batches of all ranks together: what `trainer.sync_batchnorm` switches on.

torch's own conversion drops the activation that timm's BatchNormAct2d holds, and its layer refuses CPUs. Here the layers keep
parameters, buffers and activation of those that they stand in for, so that checkpoints are the same with and without.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.plugins import LayerSync
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_TORCHS: Any = nn.SyncBatchNorm  # its forward is borrowed by a class that is none of its own


class SyncBatchNorm(_BatchNorm):
    """Stands in for a BatchNorm layer in training, with statistics of the images of all ranks; on GPUs by torch's kernels.

    Not a subclass of torch's layer of this name, which DDP refuses on CPUs.

    Args:
        layer: the layer; parameters, buffers and what follows it (timm's drop and act) stay its own.
    """

    process_group = None  # all ranks
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        # the very dicts, so that what is moved or loaded here is moved or loaded there
        self._parameters, self._buffers, self._modules = layer._parameters, layer._buffers, layer._modules
        self.training = layer.training

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, …) over all dimensions but C, and over ranks."""
        joint = self.training and torch.distributed.is_initialized() and not input.is_cuda
        output = self._normalise(input) if joint else _TORCHS.forward(self, input)
        for following in self._modules.values():
            assert following is not None
            output = following(output)
        return output

    def _normalise(self, input: Tensor) -> Tensor:
        values = input.float()
        axes = [axis for axis in range(values.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(values.ndim)]
        own = values.new_full((1,), values.numel() / values.shape[1])
        sums = _SumOverRanks.apply(torch.cat([values.sum(axes), own]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.reshape(shape)
        variance = _SumOverRanks.apply(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        output = centred * (variance + self.eps).rsqrt().reshape(shape)
        if self.affine:
            output = output * self.weight.reshape(shape) + self.bias.reshape(shape)
        return output.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class SyncedBatchNorm(LayerSync):
    """Lightning's plugin: puts `SyncBatchNorm` in the place of every BatchNorm layer while a model is fitted."""

    def __init__(self) -> None:
        self._layers: dict[str, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers, and keep them."""
        modules = model.named_modules(remove_duplicate=False)
        self._layers = {name: layer for name, layer in modules if isinstance(layer, _BatchNorm)}
        synced = {layer: SyncBatchNorm(layer) for layer in self._layers.values()}
        for name, layer in self._layers.items():
            model.set_submodule(name, synced[layer])
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the layers back."""
        for name, layer in self._layers.items():
            layer.train(model.get_submodule(name).training)
            model.set_submodule(name, layer)
        self._layers = {}
        return model
