"""RevNet: residual nets whose activations are computed again from the last ones instead of being stored.

Gomez, Ren, Urtasun, Grosse, "The Reversible Residual Network: Backpropagation Without Storing Activations" (NIPS
2017), section 3.2 and table 1. The channels are split in two halves; a unit adds F of the second to the first and G of
the new first to the second. F and G are the pre-activation branches of He et al. (2016), with basic or bottleneck
convolutions. A unit that changes the shape has no inverse: its input is stored. What the paper leaves open (shortcuts,
the activation left out of the first branch, epsilon) follows the authors' published code.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import blocks_for_depth, require_choice, require_counts, require_positive, require_strides
from convatlas.models.layers.classifier import PooledClassifier
from convatlas.models.layers.initialisation import initialise_he
from convatlas.models.layers.reversible import AdditiveBlock, ReversibleSequence, halves, recomputed

STEMS = ("small", "imagenet")
EXPANSION = 4


Norm = partial(nn.BatchNorm2d, eps=1e-3)
"""Batch normalisation with the authors' epsilon."""


def make_branch(
    in_channels: int, out_channels: int, stride: int = 1, *, bottleneck: bool = False, activated: bool = True
) -> nn.Sequential:
    """Build F or G; `(B, in, H, W) -> (B, out, H/stride, W/stride)`.

    Two 3x3 convolutions, or 1x1, 3x3 and 1x1 with a quarter of the channels between them; the first has the stride.
    BN and ReLU come before each, but not before the first unless `activated`.
    """
    inner = out_channels // EXPANSION if bottleneck else out_channels
    widths = [in_channels, inner, inner, out_channels] if bottleneck else [in_channels, inner, out_channels]
    layers: list[nn.Module] = []
    for number, kernel_size in enumerate((1, 3, 1) if bottleneck else (3, 3)):
        if activated or number > 0:
            layers += [Norm(widths[number]), nn.ReLU()]
        step = stride if number == 0 else 1
        layers.append(
            nn.Conv2d(widths[number], widths[number + 1], kernel_size, step, padding=kernel_size // 2, bias=False)
        )
    return nn.Sequential(*layers)


class PaddedPool(nn.Module):
    """The basic unit's shortcut: average pooling, and as many zero channels before the others as behind them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.avg_pool2d(x, self.stride), (0, 0, 0, 0, self.padding, self.padding))


class ShapeChange(nn.Module):
    """A unit that changes channels or size, and so has no inverse; both halves are `(B, in, H, W)`.

    `y1 = shortcut(x1) + F(x2)` and `y2 = shortcut(x2) + G(y1)`; each `(B, out, H/stride, W/stride)`. In bottleneck nets
    each half has a strided 1x1 convolution as its shortcut, in the others `PaddedPool`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, bottleneck: bool, activated: bool) -> None:
        super().__init__()
        self.f = make_branch(in_channels, out_channels, stride, bottleneck=bottleneck, activated=activated)
        self.g = make_branch(out_channels, out_channels, bottleneck=bottleneck)
        shortcut = partial(nn.Conv2d, kernel_size=1, bias=False) if bottleneck else PaddedPool
        self.shortcut1, self.shortcut2 = (shortcut(in_channels, out_channels, stride=stride) for _ in range(2))

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        y1 = self.shortcut1(x1) + self.f(x2)
        return y1, self.shortcut2(x2) + self.g(y1)


class Stage(nn.Module):
    """Units of one shape; a first unit that changes the shape stands in front of the reversible ones.

    Args:
        in_channels: channels of the input, both halves together.
        units: units, the first one included.
        activated: whether the first branch of the first unit begins with BN and ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        units: int,
        stride: int,
        *,
        bottleneck: bool,
        activated: bool,
        memory_saving: bool,
    ) -> None:
        super().__init__()
        half_in, half = in_channels // 2, out_channels // 2
        self.memory_saving = memory_saving
        self.first: ShapeChange | None = None
        if stride > 1 or in_channels != out_channels:
            self.first = ShapeChange(half_in, half, stride, bottleneck=bottleneck, activated=activated)
        reversible = units if self.first is None else units - 1
        blocks = []
        for number in range(reversible):
            behind_norm = activated or number > 0 or self.first is not None
            branch = make_branch(half, half, bottleneck=bottleneck, activated=behind_norm)
            blocks.append(AdditiveBlock(branch, make_branch(half, half, bottleneck=bottleneck)))
        self.units = ReversibleSequence(*blocks, memory_saving=memory_saving)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, in/2, H, W)` twice to `(B, out/2, H/stride, W/stride)` twice."""
        if self.first is not None:
            x1, x2 = recomputed(self.first, x1, x2) if self.memory_saving else self.first(x1, x2)
        return self.units(x1, x2)


class RevNet(PooledClassifier):
    """RevNet of any size.

    Args:
        filters: channels behind the stem and of each stage, as the authors' tables have them; with bottlenecks the
            stages are four times as wide.
        stem: `small` (3x3) or `imagenet` (7x7 with stride 2 and 3x3 max pooling).
        memory_saving: store one input a stage and compute the other activations again; the gradients are those of plain
            autograd up to rounding, and the parameters have the same names.
    """

    def __init__(
        self,
        *,
        units: Sequence[int] = (2, 2, 11, 2),
        filters: Sequence[int] = (128, 128, 256, 512, 832),
        strides: Sequence[int] = (1, 2, 2, 2),
        bottleneck: bool = True,
        stem: str = "imagenet",
        memory_saving: bool = True,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("stem", stem, STEMS)
        _check_lists(units, filters, strides)
        _check_filters(filters, bottleneck)
        widths = [filters[0], *(EXPANSION * f if bottleneck else f for f in filters[1:])]
        self.stem = _make_stem(stem, in_channels, widths[0])
        self.stages = nn.ModuleList()
        for number, (count, stride) in enumerate(zip(units, strides, strict=True)):
            options = {"bottleneck": bottleneck, "activated": number > 0, "memory_saving": memory_saving}
            self.stages.append(Stage(widths[number], widths[number + 1], count, stride, **options))
        self.norm = Norm(widths[-1])
        self.classifier = nn.Linear(widths[-1], num_classes)
        # Average pooling and a padded convolution halve an odd size differently; two strided convolutions do not.
        self.required_multiple = 1 if bottleneck else math.prod(strides) * (4 if stem == "imagenet" else 1)
        initialise_he(self)
        nn.init.zeros_(self.classifier.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W)` to the last stage's channels, `(B, C', H', W')`, behind the last BN and ReLU."""
        height, width = images.shape[-2:]
        if height % self.required_multiple or width % self.required_multiple:
            raise ValueError(
                "data.image_size: this RevNet takes heights and widths that are multiples of "
                f"{self.required_multiple}; these images have {height}x{width} pixels."
            )
        x1, x2 = halves(self.stem(images))
        for stage in self.stages:
            x1, x2 = stage(x1, x2)
        return F.relu(self.norm(torch.cat([x1, x2], 1)))


def _make_stem(kind: str, in_channels: int, channels: int) -> nn.Sequential:
    if kind == "small":
        return nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), Norm(channels), nn.ReLU())
    convolution = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(convolution, Norm(channels), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))


def _check_lists(units: Sequence[int], filters: Sequence[int], strides: Sequence[int]) -> None:
    require_counts("units", units, max(1, len(units)))
    if len(filters) != len(units) + 1:
        raise ValueError(
            f"model.filters={list(filters)} does not fit {len(units)} stages: it needs {len(units) + 1} entries, the "
            "first for the stem."
        )
    require_strides(strides, len(units))


def _check_filters(filters: Sequence[int], bottleneck: bool) -> None:
    """Check that channels can be split and that zero-padded shortcuts are symmetric."""
    for count in filters:
        require_positive("filters", count)
        if count % 2:
            raise ValueError(
                f"model.filters={list(filters)}: {count} channels cannot be split in two halves; all must be even."
            )
    if bottleneck:
        return
    for before, after in pairwise(filters):
        if after < before or (after - before) % 4:
            raise ValueError(
                f"model.filters={list(filters)}: from {before} to {after} channels a shortcut cannot pad each half "
                "alike on both sides; each entry must be the one before it, or a multiple of 4 more."
            )


PUBLISHED = {38: (False, (32, 32, 64, 112)), 110: (False, (32, 32, 64, 128)), 164: (True, (32, 32, 64, 128))}
"""By depth what table 1 says of a net for CIFAR: whether it has bottlenecks, and its filters."""


def revnet_cifar(
    *,
    depth: int = 38,
    bottleneck: bool | None = None,
    filters: Sequence[int] | None = None,
    memory_saving: bool = True,
    num_classes: int = 10,
    in_channels: int = 3,
) -> RevNet:
    """Build the RevNet of `depth` layers for images of 32 pixels: three stages of n units, two branches a unit.

    Args:
        depth: layers with weights, 12n+2, with bottlenecks 18n+2; the paper has 38, 110 and 164.
        bottleneck: use 1x1-3x3-1x1 branches; None does what the paper does at this depth, and at others does not.
        filters: channels behind the stem and of the three stages; None takes the paper's of this depth, and at others
            32, 32, 64 and 128.
    """
    with_bottlenecks, published_filters = PUBLISHED.get(depth, PUBLISHED[110])
    bottleneck = with_bottlenecks if bottleneck is None else bottleneck
    units = blocks_for_depth(depth, step=18 if bottleneck else 12, others=2)
    return RevNet(
        units=(units,) * 3,
        filters=published_filters if filters is None else filters,
        strides=(1, 2, 2),
        bottleneck=bottleneck,
        stem="small",
        memory_saving=memory_saving,
        num_classes=num_classes,
        in_channels=in_channels,
    )
