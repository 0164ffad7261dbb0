"""Batch normalisation over all processes, on the processor as well: `torch.nn.SyncBatchNorm` works on GPUs alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["SyncBatchNormAnywhere"]


class SyncBatchNormAnywhere(LayerSync):
    """Lets Lightning synchronise batch normalisation: torch's own on GPUs, `ProcessorSyncBatchNorm` elsewhere."""

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace every batch normalisation of the model."""
        return TorchSyncBatchNorm().apply(model) if self.on_gpu else _replaced(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave it as it is: alone, the layers do what they replaced, under the same names."""
        return model


def _replaced(module: nn.Module) -> nn.Module:
    """Change the class of the layers, and nothing else: what refers to them goes on referring to them."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.__class__ = ProcessorSyncBatchNorm
    return module


class ProcessorSyncBatchNorm(_BatchNorm):
    """Batch normalisation whose statistics are of the batches of all processes together; `(B, C, ...)` as before."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        pass  # that of the layer whose class was changed; any number of dimensions does

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise by the mean and the variance over all processes; in evaluation by the running ones."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        channels = input.shape[1]
        shape = (1, channels, *[1] * (input.ndim - 2))
        wide = torch.promote_types(input.dtype, torch.float32)
        by_channel = input.transpose(0, 1).reshape(channels, -1).to(wide)
        count = _sum_over_processes(torch.tensor([float(by_channel.shape[1])], device=input.device))
        mean = _sum_over_processes(by_channel.sum(1)) / count
        variance = _sum_over_processes((by_channel - mean[:, None]).square().sum(1)) / count
        self._update(mean.detach(), (variance * count / (count - 1).clamp(min=1)).detach())
        out = (input - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; the gradient of a process's part is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:  # noqa: ARG004
        total = part.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(part: Tensor) -> Tensor:
    summed: Tensor = _SumOverProcesses.apply(part)
    return summed
