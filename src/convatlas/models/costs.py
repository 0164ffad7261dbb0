"""What a net costs without training it: parameters, multiply-adds, bytes of weights, bytes kept for backward.

Conventions, stated wherever these figures are printed: parameters are trainable tensors (the running statistics of
batch normalisation are not); MACs are the multiply-adds of convolutions and linear layers for one image (papers often
print them as FLOPs); activation bytes are what autograd saves for the backward pass at a named batch size, each storage
counted once, weights left out.
"""

import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convatlas.models.interfaces import FollowsTraining, HasDenseOutputs, auxiliary_loss_weights, leaves_gradients_out
from convatlas.models.layers.reversible import copied_buffers


@dataclass(frozen=True)
class Costs:
    """The costs of one net at one input size."""

    parameters: int  # trainable values
    macs: int  # multiply-adds of one image through the whole net, auxiliary classifiers included
    macs_inference: int  # the same without what only training uses
    macs_of_weights: int
    """Multiply-adds that generate weights, once for a batch of any size; 0 for nets that keep theirs."""
    weight_megabytes: float  # parameters and buffers as they are stored, in 10^6 bytes
    # bytes saved for backward by one training step of `batch_size` images; the mean over several draws for a net that
    # leaves parts of itself out
    activation_bytes: int
    batch_size: int  # the batch that `activation_bytes` belongs to


def count_parameters(net: nn.Module) -> int:
    """Count the trainable values of a net."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def on_meta_device(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a net whose tensors have shapes and no storage, so that the largest nets are profiled in seconds."""
    with torch.device("meta"):
        return build()


def costs_of(build: Callable[[], nn.Module], input_size: Sequence[int], batch_size: int = 1) -> Costs:
    """Build a net and measure it: without storage where that is possible.

    What a detector computes depends on what it sees, in its suppression of overlapping boxes; a detector that offers
    `dense_outputs` is measured by those alone.
    """
    return measure_costs(counted(build), input_size, batch_size)


def counted(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a net for `measure_costs`: on the meta device where its multiply-adds do not depend on values."""
    net = on_meta_device(build)
    needs_storage = is_detector(net) and not isinstance(net, HasDenseOutputs)
    return build() if needs_storage else net


def is_detector(net: nn.Module) -> bool:
    """Say whether a net follows torchvision's convention for detectors: `forward(images, targets)`."""
    return "targets" in inspect.signature(net.forward).parameters


def measure_costs(net: nn.Module, input_size: Sequence[int], batch_size: int = 1) -> Costs:
    """Measure a net.

    Args:
        net: the net, on any device; the meta device costs neither time nor memory.
        input_size: `(channels, height, width)` of one image.
        batch_size: images in the step whose saved activations are counted.
    """
    whole, inference, of_weights = multiply_adds(net, input_size)
    was_training = net.training
    images = torch.zeros(max(2, batch_size), *input_size, device=next(net.parameters()).device)
    saved = mean_activation_bytes(net.train(), images)
    net.train(was_training)
    return Costs(
        parameters=count_parameters(net),
        macs=whole,
        macs_inference=inference,
        macs_of_weights=of_weights,
        weight_megabytes=sum(t.numel() * t.element_size() for t in [*net.parameters(), *net.buffers()]) / 1e6,
        activation_bytes=saved if batch_size > 1 else saved // 2,
        batch_size=batch_size,
    )


def multiply_adds(net: nn.Module, input_size: Sequence[int]) -> tuple[int, int, int]:
    """Count the multiply-adds of one image through the whole net, those at inference, and those that make weights."""
    was_training = net.training
    # batch norm cannot train on a single value a channel
    images = torch.zeros(2, *input_size, device=next(net.parameters()).device)
    net.eval()
    one, two = (_flops(net, images[:number]) // 2 for number in (1, 2))  # two FLOPs are one multiply-add
    inference = two - one
    net.train()
    whole = _flops(net, images) // 4 if auxiliary_loss_weights(net) else inference
    net.train(was_training)
    return whole, inference, one - inference


def _flops(net: nn.Module, images: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, copied_buffers(_norms(net)):
        _forward(net, images)
    return counter.get_total_flops()


def _norms(net: nn.Module) -> nn.ModuleList:
    """Return the layers whose running statistics must stay as they are: looking at a net must not change it."""
    return nn.ModuleList(m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def _forward(net: nn.Module, images: Tensor) -> Any:
    """Run a net; a detector in training gets one box an image."""
    if not is_detector(net):
        return net(images)
    if isinstance(net, HasDenseOutputs):
        return net.dense_outputs(images)
    box = torch.tensor([[0.0, 0.0, images.shape[3] / 2, images.shape[2] / 2]], device=images.device)
    target = {"boxes": box, "labels": torch.ones(1, dtype=torch.int64, device=images.device)}
    return net(list(images), [target] * len(images) if net.training else None)


def mean_activation_bytes(net: nn.Module, images: Tensor) -> int:
    """Count the bytes kept for backward; of a net that leaves parts of itself out, the mean over the same 16 draws."""
    if not (isinstance(net, FollowsTraining) and leaves_gradients_out(net)):
        return activation_bytes(net, images)
    counts = []
    for seed in range(16):
        net.begin_step(0, 1, seed)
        counts.append(activation_bytes(net, images))
    return round(statistics.fmean(counts))


def activation_bytes(net: nn.Module, images: Tensor) -> int:
    """Count the bytes that one training forward pass keeps for the backward pass, each storage once."""
    weights = {t.untyped_storage()._cdata for t in [*net.parameters(), *net.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        detached = tensor.detach()  # a tensor that its own gradient function held as it is would never be freed
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = detached  # holding the tensor keeps its storage's address from being used again
        return detached

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), copied_buffers(_norms(net)):
        output = _forward(net, images)
    del output
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def measure_latency(net: nn.Module, input_size: Sequence[int], batch_size: int = 1, repeats: int = 20) -> float:
    """Return the median seconds of one inference of a batch on the net's device, after some that are not counted.

    A GPU is waited for at each; ten of its first answers are left out, in which libraries choose their kernels.
    """
    device = next(net.parameters()).device
    images = torch.rand(batch_size, *input_size, device=device, dtype=next(net.parameters()).dtype)
    net.eval()
    seconds = []
    first = 10 if device.type == "cuda" else 3
    with torch.inference_mode():
        for repeat in range(repeats + first):
            start = time.perf_counter()
            net(list(images)) if is_detector(net) else net(images)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat >= first:
                seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
