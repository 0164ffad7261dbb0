"""What a net computes, taken down while it runs: its operations, what flows between them, and the modules they are in.

The net runs once, in evaluation mode unless it has auxiliary classifiers, on the meta device. A detector's run ends
there where it would choose boxes by their values; one with layers behind that choice runs with storage. A
`TorchFunctionMode` sees every call of torch, hooks see every call of a module. Calls that only rearrange values (a
view, a permutation) are no operations of their own: what comes out of them is what went in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from convatlas.atlas.operations import BOXES, WHOLE, Field, Given, described, makes_weights, multiply_adds
from convatlas.models.costs import count_parameters, is_detector, on_meta_device
from convatlas.models.interfaces import HasDenseOutputs, auxiliary_loss_weights

__all__ = ["IMAGE", "Call", "Operation", "Trace", "trace_net"]

IMAGE = -1
"""The place of the images among the inputs of operations."""


@dataclass
class Operation:
    """One operation of a net.

    Attributes:
        kind: what sort it is, see `convatlas.atlas.operations`.
        text: how it reads in a drawing.
        inputs: the operations whose results it takes, by their place in `Trace.operations`, each once.
        shape: of its result, `(C, H, W)` for maps, without the batch.
        call: the innermost call of a module that it belongs to, by its place in `Trace.calls`.
        macs: multiply-adds for one image.
        parameters: trainable values that no earlier operation uses.
        stored: bytes that autograd keeps for the backward pass from here on, weights left out, of one image.
        field: height and width in pixels of what a value of its result sees of the image, None for all of it,
            0 for none: it is made of weights.
    """

    kind: str
    text: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    call: int
    macs: int = 0
    parameters: int = 0
    stored: int = 0
    field: Field | None = None


@dataclass
class Call:
    """One call of a module: its name in the net, its class, the call around it, and its operations `start` to `end`."""

    name: str
    kind: str
    module: nn.Module
    parent: int
    start: int
    end: int = -1
    children: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Trace:
    """A net's operations and calls, both in the order of execution; `calls[0]` is the net itself."""

    operations: list[Operation]
    calls: list[Call]
    image: tuple[int, ...]

    @cached_property
    def takers(self) -> list[list[int]]:
        """The operations that take the result of each operation."""
        found: list[list[int]] = [[] for _ in self.operations]
        for place, operation in enumerate(self.operations):
            for source in operation.inputs:
                if source != IMAGE:
                    found[source].append(place)
        return found


def trace_net(build: Callable[[], nn.Module], input_size: Sequence[int]) -> Trace:
    """Build a net and take down what it does to one image of `input_size` `(channels, height, width)`."""
    net = on_meta_device(build)
    trace = _trace(net, input_size)
    used = sum(operation.parameters for operation in trace.operations)
    return _trace(build(), input_size) if is_detector(net) and used < count_parameters(net) else trace


def _trace(net: nn.Module, input_size: Sequence[int]) -> Trace:
    trains = bool(auxiliary_loss_weights(net))
    net.train(trains)
    images = torch.zeros(2 if trains else 1, *input_size, device=next(net.parameters()).device)
    recorder = _Recorder(net, images)
    with recorder.watching(), torch.enable_grad():
        if isinstance(net, HasDenseOutputs):
            net.dense_outputs(images)
        elif is_detector(net):
            # Values cannot be read on the meta device; what the trace then lacks is noticed by its parameters.
            with suppress(*([NotImplementedError, RuntimeError] if images.is_meta else [])):
                net(list(images))
        else:
            net(images)
    for call in recorder.calls:
        call.end = len(recorder.operations) if call.end < 0 else call.end
    if is_detector(net):
        _join_boxes(recorder.operations, recorder.calls)
    return Trace(recorder.operations, recorder.calls, tuple(input_size))


def _join_boxes(operations: list[Operation], calls: Sequence[Call]) -> None:
    """Make one operation of each run of those by which a detector chooses boxes: they compute lists, no maps."""
    places: list[int] = []
    joined: list[Operation] = []
    for operation in operations:
        sources = tuple(source if source < 0 else places[source] for source in operation.inputs)
        before = [joined[source] for source in sources if source >= 0]
        is_list = len(operation.shape) != 3 or all(each.kind == "boxes" for each in before)
        is_boxes = operation.kind in BOXES and is_list and not _is_hidden_layer(operation, before)
        if is_boxes and joined and joined[-1].kind == "boxes":
            inner = len(joined) - 1
            taken = (*joined[-1].inputs, *(source for source in sources if source != inner))
            joined[-1].inputs = tuple(dict.fromkeys(taken))
        else:
            kept = replace(operation, inputs=tuple(dict.fromkeys(sources)))
            joined.append(replace(kept, kind="boxes", text="choice of boxes") if is_boxes else kept)
        places.append(len(joined) - 1)
    for call in calls:
        call.start, call.end = ([*places, len(joined)][place] for place in (call.start, call.end))
    operations[:] = joined


def _is_hidden_layer(operation: Operation, before: Sequence[Operation]) -> bool:
    """Say whether an operation is the activation of a linear layer that others follow; scores come of a sigmoid."""
    scores = operation.text in {"sigmoid", "softmax"}
    return operation.kind == "activation" and not scores and all(each.kind == "linear" for each in before)


class _Recorder(TorchFunctionMode):
    """Takes down operations and calls."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.calls: list[Call] = [Call("", type(net).__name__, net, -1, 0)]
        self._net = net
        self._batch = len(images)
        self._stack = [0]
        self._names = {module: name for name, module in net.named_modules()}
        self._of_tensor: dict[int, int] = {id(images): IMAGE, **{id(image): IMAGE for image in images}}
        self._of_storage: dict[int, int] = {images.untyped_storage()._cdata: IMAGE}
        self._alive: list[Any] = [images]  # the identity of a tensor is used again once it is gone
        self._weights = {t.untyped_storage()._cdata for t in [*net.parameters(), *net.buffers()]}
        self._seen: set[int] = set()
        self._new_parameters = 0
        self._stored: set[int] = set()
        self._new_bytes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take down what happens inside the block."""
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave, always_call=True)
        saved: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept)
        try:
            with saved, self:
                yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, _inputs: Any) -> None:
        if module is self._net:
            return
        self.calls[self._stack[-1]].children.append(len(self.calls))
        name = self._names.get(module, "")
        self.calls.append(Call(name, type(module).__name__, module, self._stack[-1], len(self.operations)))
        self._stack.append(len(self.calls) - 1)

    def _leave(self, module: nn.Module, _inputs: Any, _output: Any) -> None:
        if module is self._net:
            return
        call = self.calls[self._stack.pop()]
        if call.kind in WHOLE and len(self.operations) > call.start:
            self._make_one(call)
        call.end = len(self.operations)

    def _make_one(self, call: Call) -> None:
        """Make one operation of a call's."""
        parts = self.operations[call.start :]
        kind, text = WHOLE[call.kind]
        inputs = tuple(dict.fromkeys(source for part in parts for source in part.inputs if source < call.start))
        place = self.calls.index(call)
        whole = Operation(kind, text, inputs, parts[-1].shape, place, field=parts[-1].field)
        whole.macs, whole.parameters, whole.stored = (
            sum(getattr(part, name) for part in parts) for name in ("macs", "parameters", "stored")
        )
        self.operations[call.start :] = [whole]
        for places in (self._of_tensor, self._of_storage):
            places |= {key: call.start for key, source in places.items() if source > call.start}
        for inner in self.calls[place + 1 :]:
            inner.start = inner.end = call.start
        call.children = []

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights and storage._cdata not in self._stored:
            self._stored.add(storage._cdata)
            self._alive.append(tensor.detach())
            self._new_bytes += storage.nbytes()
        return tensor.detach()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((args, kwargs)))
        for parameter in given:
            if isinstance(parameter, nn.Parameter) and id(parameter) not in self._seen:
                self._seen.add(id(parameter))
                self._new_parameters += parameter.numel() if parameter.requires_grad else 0
        sources = tuple(dict.fromkeys(source for each in given if (source := self._source(each)) is not None))
        shapes = [tuple(each.shape) for each in given]
        result = func(*args, **kwargs)
        results = [each for each in _tensors(result) if not isinstance(each, nn.Parameter)]
        if results and (sources or makes_weights(_name(func), given)):
            shape = tuple(results[0].shape)
            call = Given(_name(func), args, kwargs, shapes, shape, len(sources), self._field(sources))
            place = self._taken_down(call, sources)
            for part, each in zip(self._parts(place, shapes[0], results), results, strict=True):
                self._of_tensor[id(each)] = self._of_storage[each.untyped_storage()._cdata] = part
                self._alive.append(each)
        return result

    def _taken_down(self, given: Given, sources: tuple[int, ...]) -> int:
        """Take a call down, and return the operation that its results come from."""
        found = described(given)
        if found is None:
            before = self.operations[sources[0]] if sources[0] >= 0 else None
            if before is not None and before.kind == "add" and given.divides_by_number:
                before.text = "mean"
            return sources[0]
        shape = given.result[1:]
        if found.kind == "shuffle":  # the table of channels, on its way back to a map
            shape = (shape[0] * shape[1], *shape[2:])
        macs = multiply_adds(given) // self._batch
        operation = Operation(found.kind, found.text, sources, shape, self._stack[-1], macs)
        operation.parameters, operation.stored = self._new_parameters, self._new_bytes // self._batch
        sees_nothing = given.field is not None and not given.field.height
        operation.field = given.field if sees_nothing else found.field
        self._new_parameters = self._new_bytes = 0
        self.operations.append(operation)
        return len(self.operations) - 1

    def _parts(self, place: int, given: tuple[int, ...], results: Sequence[Tensor]) -> list[int]:
        """Return the operation that each result comes from: the parts of channels that are split have one each."""
        is_last = place == len(self.operations) - 1 >= 0 and self.operations[place].kind == "split"
        if not is_last or len(given) < 3 or sum(part.shape[1] for part in results if part.dim() > 1) != given[1]:
            return [place] * len(results)
        split = self.operations.pop()
        first = 1
        for part in results:
            last = first + part.shape[1] - 1
            self.operations.append(replace(split, text=f"channels {first} to {last}", shape=tuple(part.shape[1:])))
            split = replace(split, parameters=0, stored=0)
            first = last + 1
        return list(range(place, place + len(results)))

    def _field(self, sources: Sequence[int]) -> Field | None:
        """Return the largest field of several operations, 0 where none sees the image; None: one sees all of it."""
        fields = [self.operations[source].field if source >= 0 else Field() for source in sources]
        known = [each for each in fields if each is not None]
        largest = max(known, key=lambda each: (each.height, each.width), default=Field(0, 0))
        return largest if len(known) == len(fields) else None

    def _source(self, tensor: Tensor) -> int | None:
        """Return the operation that a tensor comes from; None where it is no result of the images."""
        found = self._of_tensor.get(id(tensor))
        if found is None and not isinstance(tensor, nn.Parameter):
            found = self._of_storage.get(tensor.untyped_storage()._cdata)
        return found


def _name(func: Any) -> str:
    """Return the last part of a function's name; that of a property is `__get__`."""
    return str(getattr(func, "__name__", ""))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Give every tensor in nested plain values."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for each in values.values():
            yield from _tensors(each)
    elif isinstance(values, list | tuple):
        for each in values:
            yield from _tensors(each)
