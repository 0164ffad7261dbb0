"""A GPU that is not there: steps of a training on fake CUDA tensors, which have a device, a type and a shape.

torch's `FakeTensorMode` runs every operation of autocast, of autograd and of the optimiser without values, so that what
CUDA would refuse is refused here too: tensors on two devices, operations that autocast bans, shapes and types that do
not go together. What it cannot say is how fast a GPU is and what it computes.

Three things stand in for the driver. Autocast and CUDA's random number generators check for one, and the check passes.
autograd's engine waits for CUDA's streams, so `differentiate` walks through the graph instead, node by node, by
the same rules. And where a size depends on values (`nonzero`, masks, suppression of boxes), or Python asks for one,
`Watch` writes down the place, because a GPU has to be waited for there, and goes on with a size that it makes up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from random import Random
from typing import Any
from unittest.mock import patch

import torch
import torchvision  # noqa: F401 - its operations are looked up below
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from convatlas.models.layers import reversible

__all__ = ["GPU", "Watch", "differentiate", "fake_gpu", "moved", "on_gpu"]

GPU = torch.device("cuda", 0)
FOUND = 2
"""How many are found wherever only values could tell."""


# ---- moving ---------------------------------------------------------------------------------------------------------


def moved(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Put the parameters and buffers of a module on the GPU, in place, as `module.cuda()` does; nothing else moves."""
    memo: dict[int, Any] = {}
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                if id(parameter) not in memo:
                    fake = mode.from_tensor(parameter.detach()).to(GPU)
                    memo[id(parameter)] = nn.Parameter(fake, parameter.requires_grad), parameter
                each._parameters[name] = memo[id(parameter)][0]
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = mode.from_tensor(buffer).to(GPU)
    return module


def on_gpu(value: Any) -> Any:
    """Return a batch with every tensor in it on the GPU."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(GPU), value)


# ---- where a step waits ---------------------------------------------------------------------------------------------

aten = torch.ops.aten
ASKED = {aten._local_scalar_dense.default: "item", aten.equal.default: "equal"}
MADE_UP: dict[Any, Callable[..., Any]] = {
    aten.nonzero.default: lambda x: x.new_zeros((FOUND, x.ndim), dtype=torch.int64),
    aten.masked_select.default: lambda x, *_: x.new_zeros(FOUND),
    aten._unique2.default: lambda x, *_, **__: (x.new_zeros(FOUND), *(x.new_zeros(FOUND, dtype=torch.int64),) * 2),
    torch.ops.torchvision.nms.default: lambda boxes, *_: boxes.new_zeros(FOUND, dtype=torch.int64),
}


def _by_channel(x: Tensor, number: int) -> tuple[Tensor, ...]:
    return tuple(x.new_zeros(x.shape[1], dtype=torch.float32) for _ in range(number))


CUDA_ALONE: dict[Any, Callable[..., Any]] = {
    aten.batch_norm_stats.default: lambda x, *_: _by_channel(x, 2),
    aten.batch_norm_gather_stats_with_counts.default: lambda x, *_: _by_channel(x, 2),
    aten.batch_norm_elemt.default: lambda x, *_: torch.empty_like(x),
    aten.batch_norm_backward_reduce.default: lambda _, x, *__: _by_channel(x, 4),
    aten.batch_norm_backward_elemt.default: lambda _, x, *__: torch.empty_like(x),
}
"""Batch normalisation over processes, whose shapes torch knows on a GPU alone."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}


class Watch(TorchDispatchMode):
    """Counts the places where the CPU waits for the GPU.

    Attributes:
        waits: the operations that wait, in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._draws = Random(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "c10d":  # NCCL takes tensors of GPUs alone
            assert all(t.is_cuda for t in tree_leaves(args) if isinstance(t, Tensor)), f"{func} of a tensor on the CPU"
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is None:
            return func(*args, **kwargs)
        if func in ASKED:
            if first.is_cuda:
                self.waits.append(ASKED[func])
            return self._answer(first) if func is aten._local_scalar_dense.default else False
        if not any(isinstance(each, Tensor) and each.is_cuda for each in args):
            return func(*args, **kwargs)
        if func in CUDA_ALONE:
            return CUDA_ALONE[func](*args, **kwargs)
        if func in MADE_UP:
            self.waits.append(func.overloadpacket.__name__)
            return MADE_UP[func](*args, **kwargs)
        if func is aten._to_copy.default and torch.device(kwargs.get("device") or first.device).type == "cpu":
            self.waits.append("cpu")
        if func is aten.copy_.default and first.device.type == "cpu":
            self.waits.append("cpu")
        if func in INDEXED:
            args = (first, self._without_masks(args[1]), *args[2:])
        return func(*args, **kwargs)

    def _answer(self, scalar: Tensor) -> float | int | bool:
        """Make a number up; those that are drawn on the CPU, for dropped paths, should be of many kinds."""
        if scalar.is_cuda and scalar.dtype == torch.bool:  # "is there a box without area?"
            return False
        drawn = self._draws.random()
        if scalar.dtype == torch.bool:
            return drawn < 0.5
        return drawn if scalar.dtype.is_floating_point else int(2 * drawn)

    def _without_masks(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for index in indices:
            if index is not None and index.dtype == torch.bool:
                self.waits.append("mask")
                found += [index.new_zeros(FOUND, dtype=torch.int64)] * index.ndim
            else:
                found.append(index)
        return found


# ---- autograd -------------------------------------------------------------------------------------------------------


_walks = count()


def differentiate(
    outputs: Sequence[Tensor], gradients: Sequence[Tensor | None], inputs: Sequence[Tensor] | None
) -> list[Tensor | None]:
    """Walk back from outputs; add to the leaves' `grad`, or return the gradients of `inputs` where they are given.

    Raises:
        AssertionError: a gradient has another shape, type or device than what it belongs to.
    """
    edges = [get_gradient_edge(each) for each in inputs or ()]
    wanted = {(edge.node, edge.output_nr): number for number, edge in enumerate(edges)}
    found: list[Tensor | None] = [None] * len(edges)
    roots = [get_gradient_edge(each) for each in outputs]
    waiting = _consumers([root.node for root in roots])
    received: dict[Any, list[Tensor | None]] = {}
    queue: list[tuple[int, int, Any]] = []
    number = count()
    walk = next(_walks)

    def receive(node: Any, place: int, gradient: Tensor | None) -> None:
        slots = received.setdefault(node, [None] * max(1, len(node._input_metadata)))
        if gradient is not None:
            gradient = _as_declared(node, place, gradient)
            slots[place] = gradient if slots[place] is None else slots[place] + gradient

    def ready(node: Any) -> None:
        heapq.heappush(queue, (-node._sequence_nr(), next(number), node))

    with torch.no_grad(), patch.object(torch._C, "_current_graph_task_id", lambda: walk):
        for output, root, gradient in zip(outputs, roots, gradients, strict=True):
            receive(root.node, root.output_nr, torch.ones_like(output) if gradient is None else gradient)
        for node in dict.fromkeys(root.node for root in roots):
            if not waiting[node]:
                ready(node)
        while queue:
            node = heapq.heappop(queue)[2]
            slots = received.pop(node, [None])
            for (wanted_node, place), index in wanted.items():
                if wanted_node is node:
                    found[index] = slots[place]
            for (following, place), gradient in zip(node.next_functions, _apply(node, slots, inputs), strict=False):
                if following is not None:
                    receive(following, place, gradient)
                    waiting[following] -= 1
                    if not waiting[following]:
                        ready(following)
    return found


def _consumers(roots: Sequence[Any]) -> dict[Any, int]:
    """Count for each node of the graph the edges that lead to it."""
    counts: dict[Any, int] = dict.fromkeys(roots, 0)
    stack = list(counts)
    while stack:
        for following, _ in stack.pop().next_functions:
            if following is None:
                continue
            if following not in counts:
                counts[following] = 0
                stack.append(following)
            counts[following] += 1
    return counts


def _apply(node: Any, slots: list[Tensor | None], inputs: Sequence[Tensor] | None) -> Sequence[Tensor | None]:
    if hasattr(node, "variable"):
        if inputs is None and slots[0] is not None:
            leaf = node.variable
            leaf.grad = slots[0] if leaf.grad is None else leaf.grad + slots[0]
        return ()
    if all(slot is None for slot in slots):
        return [None] * len(node.next_functions)
    if isinstance(node, BackwardCFunction):
        metadata = node._input_metadata
        full = [
            torch.zeros(tuple(m.shape), dtype=m.dtype, device=m.device) if slot is None else slot
            for slot, m in zip(slots, metadata, strict=True)
        ]
        given = node.apply(*full)
        return [g for g, needed in zip(_tuple(given), node.needs_input_grad, strict=True) if _is_edge(g, needed)]
    return _tuple(node(*slots))


def _is_edge(gradient: Any, needed: bool) -> bool:
    return needed or isinstance(gradient, Tensor)


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _as_declared(node: Any, place: int, gradient: Tensor) -> Tensor:
    """Sum and convert a gradient to the shape and type that its tensor had, as autograd's engine does."""
    declared = node._input_metadata[place]
    shape = tuple(declared.shape)
    if tuple(gradient.shape) != shape:
        gradient = gradient.sum_to_size(shape)
    assert gradient.device == declared.device, f"{node.name()}: gradient on {gradient.device}, not {declared.device}"
    return gradient.to(declared.dtype)


def _backward(tensors: Any, grad_tensors: Any = None, *_: Any, **__: Any) -> None:
    outputs = _tuple(tensors)
    differentiate(outputs, [None] * len(outputs) if grad_tensors is None else _tuple(grad_tensors), None)


def _grad(outputs: Any, inputs: Any, grad_outputs: Any = None, **_: Any) -> tuple[Tensor | None, ...]:
    outs = _tuple(outputs)
    gradients = [None] * len(outs) if grad_outputs is None else _tuple(grad_outputs)
    return tuple(differentiate(outs, gradients, _tuple(inputs)))


# ---- the whole ------------------------------------------------------------------------------------------------------


@contextmanager
def fake_gpu() -> Iterator[tuple[FakeTensorMode, Watch]]:
    """Run what is inside on the GPU that is not there."""
    mode, watch = FakeTensorMode(allow_non_fake_inputs=True), Watch()
    with ExitStack() as stack:
        for target, name, new in (
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (torch.autograd, "backward", _backward),
            (torch.autograd, "grad", _grad),
            (reversible, "_random_state", lambda _: []),
            (reversible, "_set_random_state", lambda *_: None),
        ):
            stack.enter_context(patch.object(target, name, new))
        stack.enter_context(mode)
        stack.enter_context(watch)
        yield mode, watch
