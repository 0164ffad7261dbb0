"""Batch normalisation over all processes, on the CPU as well: `torch.nn.SyncBatchNorm` works on GPUs alone.

Each image is summed by itself, and the sums of images are added up in float64; only the results are rounded to float32.
So several processes normalise by the statistics of one, however the images are divided among them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_lightning.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convatlas.core.errors import UserError

__all__ = ["SyncBatchNormAnywhere"]


class SyncBatchNormAnywhere(LayerSync):
    """Lets Lightning synchronise batch normalisation: torch's own on GPUs, `ProcessorSyncBatchNorm` elsewhere.

    In timm's nets a normalisation and the activation behind it are one layer (`BatchNormAct2d`). torch's converter
    takes it for a normalisation and leaves the activation out; here it stays.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace every batch normalisation of the model.

        Raises:
            UserError: a layer normalises in a way of its own.
        """
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        activated = {layer for layer in layers if _is_activated(layer)}
        if not self.on_gpu:
            for layer in layers:  # change the class, and nothing else: what refers to a layer goes on referring to it
                layer.__class__ = ProcessorSyncBatchNormAct if layer in activated else ProcessorSyncBatchNorm
            return model
        if activated:
            from timm.layers.norm_act import convert_sync_batchnorm

            return cast("nn.Module", convert_sync_batchnorm(model))
        return TorchSyncBatchNorm().apply(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave it as it is: alone, the layers do what they replaced, under the same names."""
        return model


def _is_activated(layer: _BatchNorm) -> bool:
    if type(layer).forward is _BatchNorm.forward or isinstance(layer, ProcessorSyncBatchNorm | nn.SyncBatchNorm):
        return isinstance(layer, ProcessorSyncBatchNormAct)
    from timm.layers.norm_act import BatchNormAct2d

    if type(layer).forward is not BatchNormAct2d.forward:
        raise UserError(
            f"trainer.sync_batchnorm: {type(layer).__name__} is a batch normalisation of its own kind, which cannot be "
            "taken over several processes; set trainer.sync_batchnorm=false."
        )
    return True


class ProcessorSyncBatchNorm(_BatchNorm):
    """Batch normalisation whose statistics are of the batches of all processes together; `(B, C, ...)` as before."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        pass  # that of the layer whose class was changed; any number of dimensions does

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise by the mean and the variance over all processes; in evaluation by the running ones."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(input)
        normalised, mean, variance, count = _NormaliseOverProcesses.apply(input, self.weight, self.bias, self.eps)
        self._update(mean, variance * count / (count - 1).clamp(min=1))
        return cast("Tensor", normalised)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class ProcessorSyncBatchNormAct(ProcessorSyncBatchNorm):
    """The same for timm's `BatchNormAct2d`: dropped units and an activation follow the normalisation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise, drop, activate."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


class _NormaliseOverProcesses(torch.autograd.Function):
    """Algorithm 1 of Ioffe and Szegedy, "Batch Normalization" (2015), over the batches of all processes.

    Also returns mean, variance (both `(C,)`, not rounded) and the number of values of a channel.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        mean, variance, count = _statistics(images)
        narrow = torch.promote_types(images.dtype, torch.float32)
        normalised = F.batch_norm(images, mean.to(narrow), variance.to(narrow), weight, bias, training=False, eps=eps)
        ctx.save_for_backward(images, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        images, weight, mean, scale, count = ctx.saved_tensors
        narrow = torch.promote_types(images.dtype, torch.float32)
        centred, gradient = images - _by_channel(mean, images), gradient.to(narrow)
        of_bias, of_weight = _sum(gradient), _sum(gradient * centred) * scale
        # These two are of this process's images, and DDP puts them together; the images' gradient needs everyone's.
        total = torch.stack([of_bias, of_weight])
        dist.all_reduce(total)
        level, slope = total[0] / count, total[1] / count * scale
        factor = scale if weight is None else scale * weight
        of_images = centred.mul_(_by_channel(-slope, images)).add_(gradient).sub_(_by_channel(level, images))
        of_images = of_images.mul_(_by_channel(factor, images)).to(images.dtype)
        if weight is None:
            return of_images, None, None, None
        return of_images, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def _statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance `(C,)` of each channel and the number of its values, over all processes, in float64."""
    number = images.numel() // images.shape[1]
    mean = _sum(images) / number
    squares = _sum((images - _by_channel(mean, images)).square_())
    mine = torch.cat([mean, squares, mean.new_tensor([number])])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    # Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
    channels = images.shape[1]
    means, squares, counts = torch.stack(everyone).split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (counts * means).sum(0) / count
    variance = (squares + counts * (means - mean).square()).sum(0) / count
    return mean, variance, count


def _sum(values: Tensor) -> Tensor:
    """Sum `(B, C, ...)` to `(C,)`, float64: each image in its own precision, float32 at least, then over the images."""
    if values.ndim > 2:
        values = values.sum(list(range(2, values.ndim)), dtype=torch.promote_types(values.dtype, torch.float32))
    return values.double().sum(0)


def _by_channel(values: Tensor, images: Tensor) -> Tensor:
    """Shape `(C,)` so that it meets the channels of images, in their precision, float32 at least."""
    narrow = torch.promote_types(images.dtype, torch.float32)
    return values.to(narrow).view(-1, *[1] * (images.ndim - 2))
