"""How an operation reads in a drawing, and what it sees of the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["BOXES", "JOINS", "WHOLE", "Field", "Given", "described", "makes_weights", "multiply_adds"]

JOINS = {"add": "+", "multiply": "×", "concat": "concat", "maximum": "max", "subtract": "−", "stack": "mean"}
"""What brings branches together, with its sign. Stacks are made for the mean over branches, FractalNet's join."""

ACTIVATIONS = {
    "relu": "ReLU",
    "relu6": "ReLU6",
    "hardtanh": "ReLU6",
    "silu": "Swish",
    "hardswish": "h-swish",
    "hardsigmoid": "h-sigmoid",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "leaky_relu": "leaky ReLU",
    "softmax": "softmax",
    "log_softmax": "softmax",
    "prelu": "PReLU",
    "elu": "ELU",
    "gelu": "GELU",
    "mish": "Mish",
}
WORDS = {"addcmul": "multiply and add", "ps_roi_align": "PS RoI align", "roi_align": "RoI align"}
NORMS = {"batch_norm": "BN", "group_norm": "group norm", "layer_norm": "layer norm", "local_response_norm": "LRN"}
PLUMBING = frozenset(
    """
    view reshape flatten unflatten permute movedim contiguous unsqueeze squeeze expand expand_as narrow
    __getitem__ select to type_as float detach clone requires_grad_ __get__ repeat unbind as_strided
    view_as zeros_like ones_like new_zeros new_full full_like empty_like dropout dropout2d dropout_
    feature_dropout
    """.split()  # noqa: SIM905 - a list of names reads better as words
)
"""Calls that compute nothing of a net that is used: they rearrange values, or make constants of a shape."""

JOINING = {
    "cat": "concat",
    "concat": "concat",
    "concatenate": "concat",
    "stack": "stack",
    "maximum": "maximum",
    **dict.fromkeys(("add", "__add__", "__radd__", "add_", "__iadd__"), "add"),
    **dict.fromkeys(("sub", "__sub__", "__rsub__", "rsub", "sub_", "__isub__"), "subtract"),
    **dict.fromkeys(("mul", "__mul__", "__rmul__", "mul_", "__imul__"), "multiply"),
}
SCALING = frozenset(JOINING) | {"div", "__truediv__", "div_", "true_divide"}
WHOLE = {
    "LocalResponseNorm": ("norm", "LRN"),
    "WithinChannelResponseNorm": ("norm", "LRN"),
    "LocalContrastNorm": ("norm", "contrast norm"),
    "ScaledTanh": ("activation", "tanh"),
    "Subsampling": ("pool", "2×2 trained pool, /2"),
    "SparseConvolution": ("conv", "5×5 conv, 16, sparse"),
    "RBFOutput": ("linear", "distances to codes"),
    "GeneralizedRCNNTransform": ("norm", "normalise"),
    "FixedSizeTransform": ("norm", "normalise"),
    "KernelGenerator": ("linear", "kernel generator"),
    "WeightScales": ("linear", "scales of the weights"),
}
"""Modules that are one operation to a reader, by class."""
BOXES = frozenset(("other", "scale", "split", "stack", "add", "subtract", "multiply", "activation", "maximum"))
"""What belongs to the choice of boxes where it computes lists of numbers."""
PRODUCTS = frozenset(("matmul", "bmm", "addmm", "mm", "baddbmm", "__matmul__", "__rmatmul__"))


@dataclass(frozen=True)
class Field:
    """What one value sees of the image, in pixels down and across, and how far its neighbours lie apart there."""

    height: float = 1
    width: float = 1
    down: float = 1
    across: float = 1

    def through(self, kernel: Sequence[float], stride: Sequence[float] = (1, 1)) -> Field:
        """Return the field behind a window of `kernel` pixels; a stride below 1 is an enlargement."""
        height = self.height + (kernel[0] - 1) * self.down
        width = self.width + (kernel[1] - 1) * self.across
        return Field(height, width, self.down * stride[0], self.across * stride[1])


class Given(NamedTuple):
    """A call of torch: its name, arguments, the shapes of all tensors among them and of the result, with the batch.

    `joined` counts the operations that they come from, `field` is the largest of theirs, None the whole image.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    shapes: Sequence[tuple[int, ...]]
    result: tuple[int, ...]
    joined: int
    field: Field | None

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument, by its place or name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    @property
    def divides_by_number(self) -> bool:
        """Whether it divides by a whole number, which makes a mean of a sum."""
        return self.name in {"div", "__truediv__", "true_divide"} and isinstance(self.argument(1, "other"), int)


class Description(NamedTuple):
    """The kind of an operation, its words, and the field of its result."""

    kind: str
    text: str
    field: Field | None


def described(given: Given) -> Description | None:
    """Say what a call does; None where it only rearranges values."""
    name, plain = given.name, given.name.rstrip("_")
    if name in JOINING and given.joined > 1:
        return Description(JOINING[name], JOINS[JOINING[name]], given.field)
    if name in PLUMBING or (name in SCALING and len(given.shapes) < 2) or name in {"cat", "stack"}:
        return None
    for kind, names in (("activation", ACTIVATIONS), ("norm", NORMS)):
        if plain in names:
            return Description(kind, names[plain], given.field)
    if name in _KINDS:
        return _KINDS[name](given)
    words = "scale" if name in SCALING else WORDS.get(plain, name.strip("_").replace("_", " "))
    return Description("scale" if name in SCALING else "other", words, given.field)


def _conv(given: Given) -> Description:
    filters, stride = given.shapes[1], _pair(given.argument(3, "stride", 1))
    dilation, groups = _pair(given.argument(5, "dilation", 1)), given.argument(6, "groups", 1)
    kernel, width = filters[2:], given.result[1]
    depthwise = groups > 1 and groups == given.shapes[0][1]
    words = [f"{_by(kernel)} {'depthwise' if depthwise else 'conv'}, {width}"]
    words += [f"{groups} groups"] if groups > 1 and not depthwise else []
    words += _strided(stride) + ([f"dilation {_short(dilation)}"] if set(dilation) != {1} else [])
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    return Description("conv", ", ".join(words), given.field and given.field.through(reach, stride))


def _up_conv(given: Given) -> Description:
    kernel, stride = given.shapes[1][2:], _pair(given.argument(3, "stride", 1))
    reach = [-(-k // s) for k, s in zip(kernel, stride, strict=True)]
    seen = given.field and given.field.through(reach, [1 / s for s in stride])
    return Description("conv", f"{_by(kernel)} up-conv, {given.result[1]}, ×{_short(stride)}", seen)


def _linear(given: Given) -> Description:
    return Description("linear", f"linear, {given.result[-1]}", None)


def _pool(given: Given) -> Description:
    kernel = _pair(given.argument(1, "kernel_size"))
    stride = _pair(given.argument(2, "stride") or kernel)
    which = "max" if "max" in given.name else "average"
    text = ", ".join([f"{_by(kernel)} {which} pool", *_strided(stride)])
    return Description("pool", text, given.field and given.field.through(kernel, stride))


def _adaptive_pool(given: Given) -> Description | None:
    which, before, after = "max" if "max" in given.name else "average", given.shapes[0][-2:], given.result[-2:]
    if before == after:
        return None
    if set(after) == {1}:
        return Description("pool", f"global {which} pool", None)
    sides = [b / a for b, a in zip(before, after, strict=True)]
    text = f"{which} pool to {_by(after)}"
    return Description("pool", text, given.field and given.field.through(sides, sides))


def _mean(given: Given) -> Description | None:
    before, after = given.shapes[0], given.result
    if len(before) >= 4 and len(after) >= 2 and (len(after) == 2 or set(after[2:]) == {1}) and len(before) == 4:
        return Description("pool", "global average pool" if given.name == "mean" else "global max pool", None)
    if given.name == "amax" and len(before) == 5 and len(after) == 4:
        return Description("activation", "maxout", given.field)
    return None


def _resize(given: Given) -> Description | None:
    before, after = given.shapes[0][-2:], given.result[-2:]
    if before == after:
        return None
    factors = [a / b for a, b in zip(after, before, strict=True)]
    linear = "linear" in str(given.argument(3, "mode", "nearest"))
    text = f"resize ×{factors[0]:.3g}" if factors[0] == factors[1] else f"resize to {_by(after)}"
    return Description("resize", text, given.field and given.field.through((1 + linear,) * 2, [1 / f for f in factors]))


def _unshuffle(given: Given) -> Description:
    size = given.argument(1, "downscale_factor", 2)
    field = given.field and given.field.through((size, size), (size, size))
    return Description("resize", f"{size}×{size} pixels to channels", field)


def _transpose(given: Given) -> Description | None:
    """A table of channels that is turned over is a channel shuffle."""
    is_shuffle = len(given.shapes[0]) == 5 and {given.argument(1, "dim0"), given.argument(2, "dim1")} == {1, 2}
    return Description("shuffle", "channel shuffle", given.field) if is_shuffle else None


def _pad(given: Given) -> Description | None:
    """Zeros around a map belong to the next operation; further channels of zeros are one of their own."""
    channels = len(given.result) == 4 and given.result[1] != given.shapes[0][1]
    return Description("pad", f"zeros to {given.result[1]} channels", given.field) if channels else None


def _split(given: Given) -> Description:
    return Description("split", "split", given.field)


def _recurrent(given: Given) -> Description:
    return Description("recurrent", f"{given.name.rpartition('_')[0] or given.name} layer".upper()[:4], None)


def _product(given: Given) -> Description:
    return Description("linear", f"matrix product, {given.result[-1]}", given.field)


_KINDS: dict[str, Callable[[Given], Description | None]] = {
    "conv2d": _conv,
    "conv_transpose2d": _up_conv,
    "linear": _linear,
    **dict.fromkeys(("max_pool2d", "_max_pool2d", "avg_pool2d", "max_pool2d_with_indices"), _pool),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_max_pool2d", "_adaptive_max_pool2d"), _adaptive_pool),
    **dict.fromkeys(("mean", "amax"), _mean),
    **dict.fromkeys(("interpolate", "upsample"), _resize),
    "pixel_unshuffle": _unshuffle,
    "transpose": _transpose,
    "pad": _pad,
    **dict.fromkeys(("chunk", "split", "tensor_split", "split_with_sizes"), _split),
    **dict.fromkeys(PRODUCTS, _product),
}


def multiply_adds(given: Given) -> int:
    """Count the multiply-adds of a call for the whole batch; those of convolutions and matrix products."""
    name, shapes = given.name, given.shapes
    if name in {"conv2d", "conv_transpose2d"}:
        places = given.result if name == "conv2d" else shapes[0]
        return math.prod(places) * math.prod(shapes[1][1:])
    if name == "linear":
        return math.prod(given.result) * shapes[1][-1]
    if name in PRODUCTS:
        left = shapes[1] if name in {"addmm", "baddbmm"} else shapes[0]
        return math.prod(given.result) * left[-1]
    return 0


def makes_weights(name: str, tensors: Sequence[Tensor]) -> bool:
    """Say whether a call makes weights from weights: a matrix product into which no image goes."""
    return name in {"linear", *PRODUCTS} and any(isinstance(each, nn.Parameter) for each in tensors)


def _pair(value: Any) -> tuple[int, int]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return (values[0], values[-1])


def _by(sides: Sequence[int]) -> str:
    return "×".join(map(str, sides))


def _short(pair: Sequence[int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else _by(pair)


def _strided(stride: Sequence[int]) -> list[str]:
    return [] if set(stride) == {1} else [f"/{_short(stride)}"]
