"""Batch normalisation over several processes against torch's own over all of their images in one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from convatlas.core.errors import UserError
from convatlas.training import sync_batch_norm
from convatlas.training.sync_batch_norm import SyncBatchNormAnywhere

LAYERS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class Processes:
    """What `torch.distributed` offers, among threads: each calls with its own tensors, and all go on together."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._barrier = threading.Barrier(number, timeout=20)
        self._rank = threading.local()
        self._given: list[Tensor] = [torch.empty(0)] * number

    def is_initialized(self) -> bool:
        return True

    def get_world_size(self) -> int:
        return self.number

    def all_gather(self, found: list[Tensor], mine: Tensor) -> None:
        self._given[self._rank.value] = mine.clone()
        self._barrier.wait()
        for place, tensor in zip(found, self._given, strict=True):
            place.copy_(tensor)
        self._barrier.wait()

    def all_reduce(self, mine: Tensor) -> None:
        parts = [torch.empty_like(mine) for _ in range(self.number)]
        self.all_gather(parts, mine)
        mine.copy_(torch.stack(parts).sum(0))

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Call the function with each rank, side by side, and return what each call returns."""
        found: list[Any] = [None] * self.number

        def one(rank: int) -> None:
            self._rank.value = rank
            found[rank] = work(rank)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def one_step(layer: nn.Module, images: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Return the normalised images, and the gradients of images, scales and shifts."""
    images = images.clone().requires_grad_()
    out = layer(images)
    out.backward(gradient)
    parameters = [p.grad for p in layer.parameters()]
    assert images.grad is not None
    return out.detach(), images.grad, *parameters


def new_layer(dimensions: int, affine: bool, dtype: torch.dtype) -> nn.Module:
    layer = LAYERS[dimensions](3, affine=affine, momentum=0.3).to(dtype)
    if affine:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
            layer.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    return layer


@pytest.mark.parametrize(
    ("shape", "affine", "dtype", "tolerance"),
    [
        ((8, 3, 5, 4), True, torch.float32, 2e-6),
        ((8, 3, 5, 4), False, torch.float32, 2e-6),
        ((8, 3, 5, 4), True, torch.float64, 1e-12),
        ((6, 3, 7), True, torch.float32, 2e-6),
        ((6, 3, 2, 3, 2), True, torch.float32, 2e-6),
    ],
)
@pytest.mark.parametrize("images_of_the_first", [2, 3])
def test_two_processes_normalise_as_one(monkeypatch, shape, affine, *, dtype, tolerance, images_of_the_first) -> None:
    """Also where the shares are of different sizes, and where channels lie far from zero."""
    torch.manual_seed(0)
    offsets = torch.tensor([0.0, 100.0, -3.0], dtype=dtype).view(3, *[1] * (len(shape) - 2))
    images, gradient = torch.randn(shape, dtype=dtype) + offsets, torch.randn(shape, dtype=dtype)
    alone = new_layer(len(shape), affine, dtype)
    expected = one_step(alone, images, gradient)
    processes = Processes(2)
    monkeypatch.setattr(sync_batch_norm, "dist", processes)
    layers = [SyncBatchNormAnywhere(on_gpu=False).apply(new_layer(len(shape), affine, dtype)) for _ in range(2)]
    shares = [slice(0, images_of_the_first), slice(images_of_the_first, None)]
    found = processes.run(lambda rank: one_step(layers[rank], images[shares[rank]], gradient[shares[rank]]))
    for place, whole in enumerate(expected):
        # Images come one share after the other; of scales and shifts DDP adds up the processes' gradients.
        ours = torch.cat([f[place] for f in found]) if place < 2 else found[0][place] + found[1][place]
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, whole, rtol=10 * tolerance, atol=10 * tolerance)
    for layer in layers:
        assert layer.state_dict().keys() == alone.state_dict().keys()
        torch.testing.assert_close(layer.state_dict(), alone.state_dict(), rtol=tolerance, atol=0)


def test_an_activation_in_the_same_layer_stays(monkeypatch) -> None:
    """timm's layers on the processor; on a GPU, timm's own synchronised layer takes their place."""
    torch.manual_seed(0)
    images, gradient = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4)
    expected = one_step(BatchNormAct2d(3, act_layer=nn.SiLU), images, gradient)
    processes = Processes(2)
    monkeypatch.setattr(sync_batch_norm, "dist", processes)
    nets = [nn.Sequential(BatchNormAct2d(3, act_layer=nn.SiLU)) for _ in range(2)]
    layers = [SyncBatchNormAnywhere(on_gpu=False).apply(net) for net in nets]
    found = processes.run(lambda rank: one_step(layers[rank], images[rank::2], gradient[rank::2]))
    for place in (0, 1):
        whole = torch.stack([f[place] for f in found], dim=1).flatten(0, 1)
        torch.testing.assert_close(whole, expected[place], rtol=1e-5, atol=1e-5)
    [on_gpu] = SyncBatchNormAnywhere(on_gpu=True).apply(nn.Sequential(BatchNormAct2d(3, act_layer=nn.SiLU)))
    assert isinstance(on_gpu, nn.SyncBatchNorm)
    assert isinstance(on_gpu.act, nn.SiLU)


def test_another_kind_of_batch_norm_is_refused() -> None:
    class Own(nn.BatchNorm2d):
        def forward(self, images: Tensor) -> Tensor:
            return 2 * super().forward(images)

    with pytest.raises(UserError, match=r"sync_batchnorm: Own is .* set trainer\.sync_batchnorm=false"):
        SyncBatchNormAnywhere(on_gpu=False).apply(nn.Sequential(Own(3)))


def test_half_precision_keeps_wide_statistics(monkeypatch) -> None:
    """Images in bfloat16 come out in bfloat16; mean and variance have float32's digits."""
    torch.manual_seed(0)
    images = (torch.randn(64, 3, 8, 8) + 20).bfloat16()
    processes = Processes(2)
    monkeypatch.setattr(sync_batch_norm, "dist", processes)
    layers = [SyncBatchNormAnywhere(on_gpu=False).apply(nn.BatchNorm2d(3, momentum=1.0)) for _ in range(2)]
    found = processes.run(lambda rank: one_step(layers[rank], images[rank::2], torch.ones_like(images[rank::2])))
    assert all(out.dtype == gradient.dtype == torch.bfloat16 for out, gradient, *_ in found)
    exact = images.double()
    torch.testing.assert_close(layers[0].running_mean.double(), exact.mean([0, 2, 3]), rtol=1e-6, atol=0)
    torch.testing.assert_close(layers[0].running_var.double(), exact.var([0, 2, 3]), rtol=1e-6, atol=0)
