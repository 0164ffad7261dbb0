"""Reversible layers: the backward pass computes the activations again from the last ones, so that none is stored.

Gomez, Ren, Urtasun, Grosse, "The Reversible Residual Network: Backpropagation Without Storing Activations" (NIPS
2017), section 3 and algorithm 1; Jacobsen, Smeulders, Oyallon, "i-RevNet: Deep Invertible Networks" (ICLR 2018),
equation 1. Everything is made of one step, the coupling `(x1, x2) -> (S x2, S x1 + F(x2))`: i-RevNet's block is one
coupling, RevNet's unit is two of them without S.

A `ReversibleSequence` keeps its two outputs and nothing else, whatever its length. Its backward pass goes from the last
step to the first: it computes F once more, which gives both the step's inputs and its gradients, in about four thirds
of the time of plain autograd. Gradients are those of plain autograd up to the rounding of the inputs computed again.

- Dropout draws the same again; the generators stand behind a backward pass where they stood before it.
- Buffers change in the forward pass alone: the running statistics of batch normalisation count a batch once.
- Under autocast the branches compute in its type, couplings and reconstruction in float32; all in bfloat16, a chain of
  81 units comes back wrong by 2. What is left, because an activation may round to its neighbour the second time, is
  a hundredth of what autocast itself does to the gradients.
- Parameters are inputs of the autograd node, so that their hooks fire once and DistributedDataParallel sees every
  gradient; gradients accumulate as usual, and sequences may stand in one another and in checkpointed regions
  (`use_reentrant=False`).

Not supported, by nature: a second derivative (`create_graph=True` raises an error); asking for some gradients alone
(`torch.autograd.grad(loss, x)`) works and costs as much as all; hooks on tensors and modules inside a sequence see the
forward pass without a graph, and again the second computation. Between a forward and its backward pass the sequence
must not change: neither `train()` and `eval()` nor its parameters. A layer that reads what it changes in its buffers
(spectral norm in training) computes something else the second time. Weights of half precision need autocast instead.
Under `torch.compile` and `torch.export` a sequence is a chain of ordinary layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Pair = tuple[Tensor, Tensor]


def halves(x: Tensor) -> Pair:
    """Split the channels; `(B, 2C, H, W)` to twice `(B, C, H, W)`.

    Raises:
        ValueError: the number of channels is odd.
    """
    if x.shape[1] % 2:
        raise ValueError(f"{x.shape[1]} channels cannot be split in two halves; an even number fits.")
    first, second = x.chunk(2, dim=1)
    return first, second


def space_to_depth(x: Tensor, size: int) -> Tensor:
    """Make the pixels of a `size` x `size` square channels of one pixel; `(B, C, H, W) -> (B, size^2 C, H/size, ...)`.

    The channel of pixel (i, j) of the square and of channel c is `(i * size + j) * C + c`, so that the first half
    of the channels holds the upper half of each square. `depth_to_space` is the inverse.

    Raises:
        ValueError: height or width does not divide by `size`.
    """
    height, width = x.shape[-2:]
    if height % size or width % size:
        raise ValueError(f"A map of {height}x{width} pixels does not divide into squares of {size}x{size}.")
    if size == 1:
        return x
    return F.pixel_unshuffle(x, size).unflatten(1, (-1, size**2)).transpose(1, 2).flatten(1, 2)


def depth_to_space(x: Tensor, size: int) -> Tensor:
    """Make squares of pixels of channels; `(B, size^2 C, H, W) -> (B, C, size H, size W)`.

    Raises:
        ValueError: the channels do not divide by `size`^2.
    """
    if size == 1:
        return x
    if x.shape[1] % size**2:
        raise ValueError(f"{x.shape[1]} channels do not divide into the pixels of squares of {size}x{size}.")
    return F.pixel_shuffle(x.unflatten(1, (size**2, -1)).transpose(1, 2).flatten(1, 2), size)


class Recomputed(NamedTuple):
    """A step computed again: x1 and x2, leaves that require a gradient, and y1 and y2, computed from them."""

    inputs: Pair
    outputs: Pair


class ReversibleBlock(nn.Module, ABC):
    """A map of two tensors with an inverse, as a step of a `ReversibleSequence`.

    A subclass writes `forward` and `inverse`; neither may change its arguments or draw random numbers. That costs a
    third computation; a subclass that can share it between inverse and graph writes `recompute` also.
    """

    @abstractmethod
    def forward(self, x1: Tensor, x2: Tensor) -> Pair:
        """Compute y1 and y2."""

    @abstractmethod
    def inverse(self, y1: Tensor, y2: Tensor) -> Pair:
        """Compute x1 and x2."""

    def recompute(self, y1: Tensor, y2: Tensor) -> Recomputed:
        with torch.no_grad():
            x1, x2 = self.inverse(y1, y2)
        x1, x2 = x1.detach().requires_grad_(), x2.detach().requires_grad_()
        return Recomputed((x1, x2), self(x1, x2))


class Coupling(ReversibleBlock):
    """`(x1, x2) -> (S x2, S x1 + F(x2))`, i-RevNet's block; the inverse is `x2 = S' y1, x1 = S' (y2 - F(x2))`.

    Args:
        branch: F; any module whose output has the shape of S x1. It may draw random numbers, and must leave its
            argument as it is: no in-place ReLU at its beginning.
        downsampling: side of the squares of pixels that S makes channels; with 1 nothing is rearranged.

    Raises:
        ValueError: when it is called, F gives another shape than S x1 has.
        RuntimeError: when it is called, F changed its argument in place.
    """

    def __init__(self, branch: nn.Module, downsampling: int = 1) -> None:
        super().__init__()
        self.branch = branch
        self.downsampling = downsampling

    def _residual(self, x2: Tensor) -> Tensor:
        """Compute F(x2) in the type of x2, whatever autocast made of it."""
        watched = not (torch.compiler.is_compiling() or x2.is_inference())
        version = x2._version if watched else 0
        out: Tensor = self.branch(x2)
        if watched and x2._version != version:
            raise RuntimeError(
                "The branch of a coupling changed its input in place, from which the rest must be computed again; "
                "take inplace=False for its first layers."
            )
        return out.to(x2.dtype)

    def _sum(self, x1: Tensor, residual: Tensor) -> Tensor:
        rearranged = space_to_depth(x1, self.downsampling)
        if rearranged.shape != residual.shape:
            raise ValueError(
                f"The branch of a coupling gives {tuple(residual.shape)}, where {tuple(rearranged.shape)} is wanted: "
                f"{self.downsampling**2} times the channels of its input and its size divided by {self.downsampling}."
            )
        return rearranged + residual

    def forward(self, x1: Tensor, x2: Tensor) -> Pair:
        return space_to_depth(x2, self.downsampling), self._sum(x1, self._residual(x2))

    def second_input(self, y1: Tensor) -> Tensor:
        """Compute x2; a subclass that knows more of it than rounding left can put that in."""
        return depth_to_space(y1, self.downsampling)

    def inverse(self, y1: Tensor, y2: Tensor) -> Pair:
        x2 = self.second_input(y1)
        return depth_to_space(y2 - self._residual(x2), self.downsampling), x2

    def recompute(self, y1: Tensor, y2: Tensor) -> Recomputed:
        x2 = self.second_input(y1).detach().requires_grad_()
        residual = self._residual(x2)
        x1 = depth_to_space(y2 - residual.detach(), self.downsampling).detach().requires_grad_()
        return Recomputed((x1, x2), (space_to_depth(x2, self.downsampling), self._sum(x1, residual)))

    def extra_repr(self) -> str:
        return f"downsampling={self.downsampling}"


class ReversibleSequence(ReversibleBlock):
    """Reversible blocks one after the other; sequences within it are taken apart.

    Args:
        blocks: the blocks, in the order of the forward pass.
        memory_saving: store the outputs alone; otherwise it is plain autograd. The parameters have the same names.
        stored: steps at the beginning that store their activations all the same, because they cannot be inverted
            precisely enough.
    """

    def __init__(self, *blocks: ReversibleBlock, memory_saving: bool = True, stored: int = 0) -> None:
        super().__init__()
        self.memory_saving = memory_saving
        self.stored = stored
        for number, block in enumerate(blocks):
            self.add_module(str(number), block)

    def steps(self) -> list[ReversibleBlock]:
        steps: list[ReversibleBlock] = []
        for block in self.children():
            assert isinstance(block, ReversibleBlock), f"{type(block).__name__} is no ReversibleBlock"
            steps += block.steps() if isinstance(block, ReversibleSequence) else [block]
        return steps

    def forward(self, x1: Tensor, x2: Tensor) -> Pair:
        # Half precision becomes float32 and stays it.
        x1, x2 = _at_least_single(x1), _at_least_single(x2)
        steps = self.steps()
        saving = self.memory_saving and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        stored = self.stored if saving else len(steps)
        for step in steps[:stored]:
            x1, x2 = step(x1, x2)
        if not steps[stored:]:
            return x1, x2
        y1, y2 = _Reversible.apply(steps[stored:], x1, x2, *_parameters(steps[stored:]))
        return y1, y2

    def inverse(self, y1: Tensor, y2: Tensor) -> Pair:
        """Compute the inputs of the first block with plain autograd.

        Running statistics stay as they are. In training the batch must be the one of the forward pass, and what
        dropout draws is not known any more: invert in evaluation mode.
        """
        y1, y2 = _at_least_single(y1), _at_least_single(y2)
        with copied_buffers(self):
            for step in reversed(self.steps()):
                y1, y2 = step.inverse(y1, y2)
        return y1, y2

    def extra_repr(self) -> str:
        return f"memory_saving={self.memory_saving}, stored={self.stored}"


class AdditiveBlock(ReversibleSequence):
    """RevNet's unit (equation 6): `y1 = x1 + F(x2)`, `y2 = x2 + G(y1)`, all of one shape; two couplings without S."""

    def __init__(self, f: nn.Module, g: nn.Module, memory_saving: bool = True) -> None:
        super().__init__(memory_saving=memory_saving)
        self.f = Coupling(f)
        self.g = Coupling(g)


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in {torch.bfloat16, torch.float16} else x


class _Reversible(torch.autograd.Function):
    """Steps as one node of the graph, which saves the two outputs."""

    @staticmethod
    def forward(ctx: Any, steps: Sequence[ReversibleBlock], x1: Tensor, x2: Tensor, *parameters: Tensor) -> Pair:  # noqa: ARG004 - parameters are named for autograd
        ctx.steps = steps
        ctx.autocast = _current_autocast(x1.device.type)
        ctx.device = x1.device
        ctx.random_states = []
        state = _random_state(ctx.device)
        with ctx.autocast():
            for step in steps:
                x1, x2 = step(x1, x2)
                after = _random_state(ctx.device)
                has_drawn = any(not torch.equal(a, b) for a, b in zip(state, after, strict=True))
                if has_drawn and type(step).recompute is ReversibleBlock.recompute:
                    raise RuntimeError(
                        f"{type(step).__name__} draws random numbers, which only a Coupling's branch may: the inverse "
                        "of other blocks draws in another order."
                    )
                ctx.random_states.append(state if has_drawn else None)
                state = after
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A reversible sequence has no second derivative (create_graph=True); take memory_saving=False for it."
            )
        y1, y2 = ctx.saved_tensors
        parameters = _parameters(ctx.steps)
        summed: dict[int, Tensor] = {}
        with _random_state_kept(ctx.device):
            for step, random_state in zip(reversed(ctx.steps), reversed(ctx.random_states), strict=True):
                if random_state is not None:
                    _set_random_state(ctx.device, random_state)
                with copied_buffers(step), _own_gradients(step) as stand_ins:
                    with torch.enable_grad(), ctx.autocast():
                        inputs, outputs = step.recompute(y1.detach(), y2.detach())
                    wanted = {number: p for number, p in stand_ins.items() if p.requires_grad}
                    found = torch.autograd.grad(outputs, (*inputs, *wanted.values()), grads, allow_unused=True)
                del outputs  # the graph of one step at a time
                y1, y2 = inputs
                grads = tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found[:2], strict=True))
                for number, grad in zip(wanted, found[2:], strict=True):
                    if grad is not None:
                        summed[number] = summed[number] + grad if number in summed else grad
        return None, *grads, *(summed.get(id(p)) for p in parameters)


def _parameters(steps: Sequence[nn.Module]) -> list[Tensor]:
    return list({id(p): p for step in steps for p in step.parameters()}.values())


def _current_autocast(device_type: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the autocast of now, for the forward pass and again for the backward pass.

    Without its cache: weights cast without a graph would be taken from it where they need one.
    """
    if not (torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)):
        return nullcontext
    return partial(torch.autocast, device_type, dtype=torch.get_autocast_dtype(device_type), cache_enabled=False)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type not in {"cpu", "meta"}:
        states.append(torch.get_device_module(device).get_rng_state(*_generator_of(device)))
    return states


def _set_random_state(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module(device).set_rng_state(state, *_generator_of(device))


def _generator_of(device: torch.device) -> tuple[torch.device, ...]:
    """Return what names a device's generator; Apple's single device takes no name."""
    return () if device.type == "mps" else (device,)


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    states = _random_state(device)
    try:
        yield
    finally:
        _set_random_state(device, states)


@contextmanager
def copied_buffers(block: nn.Module) -> Iterator[None]:
    """Let `block` change copies of its buffers: a batch that is computed again must not count twice."""
    with _swapped([module._buffers for module in block.modules()], lambda buffer: buffer.clone()):
        yield


@contextmanager
def _own_gradients(block: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Let `block` compute with copies of its parameters that share their memory and have no hooks.

    Yields:
        the stand-ins by the identity of the parameters, whose memory they share.
    """
    stand_ins: dict[int, Tensor] = {}

    def stand_in(parameter: Tensor) -> Tensor:
        if id(parameter) not in stand_ins:
            stand_ins[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        return stand_ins[id(parameter)]

    with _swapped([module._parameters for module in block.modules()], stand_in):
        yield stand_ins


@contextmanager
def _swapped(tables: Sequence[dict[str, Any]], replacement: Callable[[Tensor], Tensor]) -> Iterator[None]:
    before = [dict(table) for table in tables]
    for table in tables:
        table.update({name: replacement(value) for name, value in table.items() if value is not None})
    try:
        yield
    finally:
        for table, values in zip(tables, before, strict=True):
            table.update(values)


def recomputed(block: nn.Module, x1: Tensor, x2: Tensor) -> Pair:
    """Call a block that has no inverse, and store its inputs instead of its activations.

    For the first unit of a stage (section 3.2 of RevNet). Running statistics count a batch once.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        contexts = partial(recomputing, block)
        y1, y2 = checkpoint(block, x1, x2, use_reentrant=False, context_fn=contexts)
    else:
        y1, y2 = block(x1, x2)
    return y1, y2


def recomputing(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second computation of a block under `checkpoint`."""
    return nullcontext(), copied_buffers(block)
