"""NASNet-A, PNASNet-5, and every other net of the same search space: searched cells, the cells given as data.

Zoph, Vasudevan, Shlens, Le, "Learning Transferable Architectures for Scalable Image Recognition" (CVPR 2018), section 3
and figure 4. Liu, Zoph et al., "Progressive Neural Architecture Search" (ECCV 2018), figure 1. What the papers leave
open (stems, how sizes are matched, TensorFlow's padding) follows the authors' published TF-slim definition.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from convatlas.models.checks import (
    require_all_positive,
    require_choice,
    require_image_size,
    require_probability,
)
from convatlas.models.interfaces import AuxiliaryOutput
from convatlas.models.layers import cells
from convatlas.models.layers.cells import AuxiliaryHead, CellNet, check_edge
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.models.layers.scheduled_drop_path import ScheduledDropPath

# ---- the cells as data ----------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Two operations on two earlier states, added or concatenated."""

    left: str
    left_state: int
    right: str
    right_state: int
    combination: str = "add"


class Wiring(NamedTuple):
    """A cell: state 0 is its input, state 1 the output of the cell before, block i makes state i + 2."""

    blocks: tuple[Block, ...]
    concatenated: tuple[int, ...]
    """States that make the cell's output: those that no block uses."""


class Cells(NamedTuple):
    """The cells of one net; without a reduction cell the first cell of a stage is the normal one with stride 2."""

    normal: Wiring
    reduction: Wiring | None


NASNET_A = Cells(
    normal=Wiring(
        blocks=(
            Block("separable_5x5", 0, "separable_3x3", 1),
            Block("separable_5x5", 1, "separable_3x3", 1),
            Block("average_3x3", 0, "identity", 1),
            Block("average_3x3", 1, "average_3x3", 1),
            Block("separable_3x3", 0, "identity", 0),
        ),
        concatenated=(1, 2, 3, 4, 5, 6),
    ),
    reduction=Wiring(
        blocks=(
            Block("separable_5x5", 0, "separable_7x7", 1),
            Block("max_3x3", 0, "separable_7x7", 1),
            Block("average_3x3", 0, "separable_5x5", 1),
            Block("identity", 3, "average_3x3", 2),
            Block("separable_3x3", 2, "max_3x3", 0),
        ),
        concatenated=(3, 4, 5, 6),
    ),
)

PNASNET_5 = Cells(
    normal=Wiring(
        blocks=(
            Block("separable_5x5", 1, "max_3x3", 1),
            Block("separable_7x7", 0, "max_3x3", 0),
            Block("separable_5x5", 0, "separable_3x3", 0),
            Block("separable_3x3", 4, "max_3x3", 0),
            Block("separable_3x3", 1, "identity", 0),
        ),
        concatenated=(2, 3, 4, 5, 6),
    ),
    reduction=None,
)

CELLS = {"nasnet_a": NASNET_A, "pnasnet_5": PNASNET_5}

OPERATIONS = (
    "identity",
    "conv_1x3_3x1",
    "conv_1x7_7x1",
    "dilated_3x3",
    "average_3x3",
    "max_3x3",
    "max_5x5",
    "max_7x7",
    "conv_1x1",
    "conv_3x3",
    "separable_3x3",
    "separable_5x5",
    "separable_7x7",
)
"""The thirteen operations of section 3, from which the controller chooses."""

COMBINATIONS = ("add", "concat")


def read_cells(cells: str | Mapping[str, Any]) -> Cells:
    """Look cells up by their name, or read them from `{normal: {blocks: [...]}, reduction: {blocks: [...]}}`.

    A block is `[operation, state, operation, state, combination]`. States that no block uses make the output;
    `concatenated` beside `blocks` names others.
    """
    if isinstance(cells, str):
        require_choice("cells", cells, CELLS)
        return CELLS[cells]
    if set(cells) != {"normal", "reduction"}:
        raise ValueError(f"model.cells must have the keys normal and reduction, not {', '.join(sorted(cells))}.")
    return Cells(_read_wiring("normal", cells["normal"]), _read_wiring("reduction", cells["reduction"]))


def unused_states(blocks: Sequence[Block]) -> tuple[int, ...]:
    """Return the states that no block takes; the last one always is among them."""
    used = {state for block in blocks for state in (block.left_state, block.right_state)}
    return tuple(state for state in range(len(blocks) + 2) if state not in used)


def _read_wiring(key: str, wiring: Mapping[str, Any]) -> Wiring:
    if not wiring.get("blocks"):
        raise ValueError(f"model.cells.{key} must have at least one block.")
    blocks = tuple(_read_block(f"model.cells.{key}", number, block) for number, block in enumerate(wiring["blocks"]))
    concatenated = tuple(wiring.get("concatenated") or unused_states(blocks))
    if not set(concatenated) <= set(range(len(blocks) + 2)):
        raise ValueError(f"model.cells.{key}.concatenated={list(concatenated)}: states go from 0 to {len(blocks) + 1}.")
    return Wiring(blocks, concatenated)


def _read_block(key: str, number: int, block: Sequence[Any]) -> Block:
    if len(block) != 5 or not all(isinstance(block[place], int) for place in (1, 3)):
        raise ValueError(
            f"{key}: block {number} is {list(block)}; write [operation, state, operation, state, combination]."
        )
    found = Block(*block)
    for operation, state in ((found.left, found.left_state), (found.right, found.right_state)):
        check_edge(f"{key}: block {number}", number, operation, state, OPERATIONS)
    if found.combination not in COMBINATIONS:
        raise ValueError(f"{key}: block {number} combines by {found.combination}; choose add or concat.")
    return found


# ---- operations -----------------------------------------------------------------------------------------------------


Norm = partial(nn.BatchNorm2d, eps=1e-3)
"""Batch normalisation with the authors' epsilon."""
relu_conv_norm = partial(cells.relu_conv_norm, norm=Norm)
factorized_reduction = partial(cells.FactorizedReduction, norm=Norm)


class SeparableConv(nn.Module):
    """A depthwise and a pointwise convolution with nothing between them, padded as TensorFlow's SAME does.

    `(B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))`. With stride 2 and an even size SAME puts the odd row
    and column of zeros behind the map, where a symmetric padding would look at other pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.depthwise = Conv2dSame(in_channels, in_channels, kernel_size, stride, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


class StackedSeparableConv(nn.Sequential):
    """ReLU, separable convolution, BN, twice; only the first one strides and changes the number of channels."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        super().__init__(
            nn.ReLU(),
            SeparableConv(in_channels, out_channels, kernel_size, stride),
            Norm(out_channels),
            nn.ReLU(),
            SeparableConv(out_channels, out_channels, kernel_size, 1),
            Norm(out_channels),
        )


class Pool(nn.Module):
    """Average or maximum pooling, padded as TensorFlow's SAME; the average leaves the padding out.

    `(B, C, H, W) -> (B, C, ceil(H/stride), ceil(W/stride))`.
    """

    def __init__(self, kind: str, stride: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.kind = kind
        self.stride = stride
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        # With stride 2 an even size gets the larger part of its padding behind, by rounding the size up.
        half = self.kernel_size // 2
        padding = (half, half) if self.stride == 1 else (half - 1 + height % 2, half - 1 + width % 2)
        if self.kind == "max":
            return F.max_pool2d(x, self.kernel_size, self.stride, padding, ceil_mode=self.stride > 1)
        return F.avg_pool2d(
            x, self.kernel_size, self.stride, padding, ceil_mode=self.stride > 1, count_include_pad=False
        )


def relu_convs_norm(in_channels: int, out_channels: int, kernels: list[tuple[int, int]], stride: int) -> nn.Sequential:
    """ReLU, convolution and BN for every kernel `(height, width)`; the first one strides and changes the channels."""
    layers: list[nn.Module] = []
    for kernel in kernels:
        unit = ConvNormAct(in_channels, out_channels, kernel, stride, norm=Norm, activation=None)
        layers += [nn.ReLU(), *unit]
        in_channels, stride = out_channels, 1
    return nn.Sequential(*layers)


def make_operation(name: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Build one operation of a block; what does not change the channels by itself gets a 1x1 convolution if it must."""
    kind, _, size = name.partition("_")
    if kind == "separable":
        return StackedSeparableConv(in_channels, out_channels, int(size[0]), stride)
    if kind == "conv":
        kernels = [(int(kernel[0]), int(kernel[2])) for kernel in size.split("_")]
        return relu_convs_norm(in_channels, out_channels, kernels, stride)
    if kind == "dilated":
        convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=2, dilation=2, bias=False)
        return nn.Sequential(nn.ReLU(), convolution, Norm(out_channels))
    if kind in {"max", "average"}:
        pool = Pool(kind, stride, int(size[0]))
        fit = nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), Norm(out_channels))
        return pool if in_channels == out_channels else fit
    assert kind == "identity", name
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return relu_conv_norm(in_channels, out_channels, stride)


# ---- the cell -------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """What a cell must know of an earlier output: its channels, and how often the image was halved."""

    channels: int
    halvings: int


class Step(NamedTuple):
    """One cell in the sequence of a net, every block of which has as many `filters`."""

    wiring: Wiring
    filters: int
    stride: int
    """2 halves the map; only operations on states 0 and 1 stride."""
    back: int
    """Which earlier output is state 1, counted back from the cell's input, which is 1."""


class Combination(nn.Module):
    """One block of a cell: two operations, each followed by drop path unless it is an identity, brought together.

    They are added, or concatenated and brought back to `filters` channels, so that all states are alike.
    """

    def __init__(
        self, block: Block, state_channels: list[int], filters: int, stride: int, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.states = (block.left_state, block.right_state)
        self.left, self.right = (
            self._operation(name, state_channels[state], filters, stride if state < 2 else 1, drop_path_rate)
            for name, state in ((block.left, block.left_state), (block.right, block.right_state))
        )
        self.fit_both = relu_conv_norm(2 * filters, filters) if block.combination == "concat" else None

    @staticmethod
    def _operation(name: str, in_channels: int, filters: int, stride: int, drop_path_rate: float) -> nn.Module:
        operation = make_operation(name, in_channels, filters, stride)
        return operation if name == "identity" else nn.Sequential(operation, ScheduledDropPath(drop_path_rate))

    def forward(self, states: list[Tensor]) -> Tensor:
        left, right = self.left(states[self.states[0]]), self.right(states[self.states[1]])
        return left + right if self.fit_both is None else self.fit_both(torch.cat([left, right], 1))


class Cell(nn.Module):
    """One cell: its input and the output before it to `(B, filters * concatenated states, H/stride, W/stride)`.

    Args:
        step: wiring, filters and stride.
        current: shape of the cell's input.
        previous: shape of the output before it, which is brought to the size of the input and to `filters` channels;
            None in the first cell of a net, which takes its raw input in this place.
        drop_path_rate: final rate of dropping the result of an operation.
    """

    def __init__(self, step: Step, current: Shape, previous: Shape | None, drop_path_rate: float) -> None:
        super().__init__()
        wiring, filters, stride, _ = step
        self.concatenated = wiring.concatenated
        self.fit_previous = self._fit_previous(filters, current, previous)
        self.fit_current = relu_conv_norm(current.channels, filters)
        channels = [filters] * (2 + len(wiring.blocks))
        channels[1] = current.channels if previous is None else filters
        self.blocks = nn.ModuleList(
            Combination(block, channels, filters, stride, drop_path_rate) for block in wiring.blocks
        )
        # An input that is part of the output gets the size of the other parts and, if it is raw, their channels.
        self.fit_raw: nn.Module = nn.Identity()
        if 1 in wiring.concatenated and channels[1] != filters and stride == 1:
            self.fit_raw = nn.Sequential(nn.Conv2d(channels[1], filters, 1, bias=False), Norm(filters))
        halved = [state for state in wiring.concatenated if state < 2 and stride > 1]
        self.halve = nn.ModuleDict({str(state): factorized_reduction(channels[state], filters) for state in halved})

    @staticmethod
    def _fit_previous(filters: int, current: Shape, previous: Shape | None) -> nn.Module:
        if previous is None or previous == Shape(filters, current.halvings):
            return nn.Identity()
        if previous.halvings < current.halvings:
            return factorized_reduction(previous.channels, filters)
        return relu_conv_norm(previous.channels, filters)

    def forward(self, current: Tensor, previous: Tensor) -> Tensor:
        states = [self.fit_current(current), self.fit_previous(previous)]
        for block in self.blocks:
            states.append(block(states))
        states[1] = self.fit_raw(states[1])
        for state, halve in self.halve.items():
            states[int(state)] = halve(states[int(state)])
        return torch.cat([states[i] for i in self.concatenated], 1)


# ---- the net --------------------------------------------------------------------------------------------------------


MIN_IMAGE = {"cifar": 1, "imagenet": 3, "small": 1}
"""By stem: side in pixels from which every convolution has something to look at."""

MIN_IMAGE_WITH_AUXILIARY = {"cifar": 27, "imagenet": 211, "small": 105}
"""By stem: side in pixels from which 14x14 are left before the second reduction, the least the head can take."""


class Stem(nn.Sequential):
    """The convolutions before the first cell; `(B, in, H, W) -> (B, filters, H', W')`.

    `cifar` keeps the size, `imagenet` halves it without padding, `small`, which is not in the papers, quarters it.
    """

    def __init__(self, kind: str, in_channels: int, filters: int) -> None:
        unit = partial(ConvNormAct, out_channels=filters, kernel_size=3, norm=Norm)
        if kind == "small":
            super().__init__(*unit(in_channels, stride=2), *unit(filters, stride=2, activation=None))
        elif kind == "imagenet":
            super().__init__(*unit(in_channels, stride=2, padding=0, activation=None))
        else:
            super().__init__(*unit(in_channels, activation=None))
        self.halvings = {"cifar": 0, "imagenet": 1, "small": 2}[kind]


def layout(cells: Cells, repeats: int, filters: int, stem: str, skip_reduction_input: bool) -> list[Step]:
    """List the cells of a net: two strided ones of an ImageNet stem, then three stages of `repeats` normal cells."""
    steps = []
    if stem == "imagenet":
        strided = cells.reduction or cells.normal
        steps = [Step(strided, filters // 4, 2, 2), Step(strided, filters // 2, 2, 2)]
    for stage in range(3):
        width = filters * 2**stage
        first = Step(cells.normal, width, stride=1, back=2)
        if stage > 0 and cells.reduction is None:
            first = first._replace(stride=2)
        elif stage > 0 and cells.reduction is not None:
            steps.append(Step(cells.reduction, width, stride=2, back=2))
            first = first._replace(back=3 if skip_reduction_input else 2)
        steps += [first] + [Step(cells.normal, width, stride=1, back=2)] * (repeats - 1)
    return steps


class NASNet(CellNet):
    """A net of searched cells, for example NASNet-A (6 @ 768): `repeats` 6, last output 6 * 4 * `filters` = 768.

    Args:
        cells: `nasnet_a`, `pnasnet_5`, or the blocks of both cells, see `read_cells`.
        repeats: normal cells in each of the three stages (the papers' N).
        filters: channels of a block in the first stage, doubled in each further one.
        stem: `cifar`, a 3x3 convolution; `imagenet`, a strided one and two strided cells; `small`, two strided ones.
        stem_filters: channels of those convolutions.
        skip_reduction_input: the first normal cell behind a reduction cell takes, as its previous output, the one that
            the reduction cell took, not the reduction cell's input (as in NASNet-A large); not for `pnasnet_5`.
        drop_path_rate: probability of dropping an operation's result in the last cell at the end of the training; it
            grows in proportion to the cell's position and to the training's progress, see `begin_step`. The
            authors' values are 0.4 (CIFAR), 0.3 (large) and 0 (mobile).
        auxiliary: add a classifier before the second reduction, with loss weight 0.4; training then returns a
            `AuxiliaryOutput`.
    """

    def __init__(
        self,
        *,
        cells: str | Mapping[str, Any] = "nasnet_a",
        repeats: int = 6,
        filters: int = 32,
        stem: str = "cifar",
        stem_filters: int = 96,
        skip_reduction_input: bool = False,
        drop_path_rate: float = 0.0,
        dropout: float = 0.0,
        auxiliary: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__(auxiliary, MIN_IMAGE_WITH_AUXILIARY.get(stem, 0))
        found = read_cells(cells)
        self._check(repeats, filters, stem, stem_filters)
        require_probability("drop_path_rate", drop_path_rate)
        require_probability("dropout", dropout)
        if skip_reduction_input and found.reduction is None:
            raise ValueError(
                f"model.skip_reduction_input=true has no meaning with model.cells={cells}, which has no reduction cell."
            )
        steps = layout(found, repeats, filters, stem, skip_reduction_input)
        self.stem = Stem(stem, in_channels, stem_filters)
        self.cells = nn.ModuleList()
        shapes = [Shape(stem_filters, self.stem.halvings)]
        for position, step in enumerate(steps, start=1):
            current, previous = shapes[-1], shapes[-step.back] if position > 1 else None
            rate = drop_path_rate * position / len(steps)
            self.cells.append(Cell(step, current, previous, rate))
            channels = step.filters * len(step.wiring.concatenated)
            shapes.append(Shape(channels, current.halvings + int(step.stride == 2)))
        self.smallest_image = MIN_IMAGE[stem]
        self.backs = [step.back for step in steps]
        self.auxiliary_index = max(i for i, step in enumerate(steps) if step.stride == 2) - 1
        self.auxiliary_head = None
        if auxiliary:
            inner = shapes[self.auxiliary_index + 1].channels
            self.auxiliary_head = AuxiliaryHead(inner, num_classes, pool_stride=3, side=4, norm=Norm)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(shapes[-1].channels, num_classes)
        self._initialise()

    @staticmethod
    def _check(repeats: int, filters: int, stem: str, stem_filters: int) -> None:
        require_choice("stem", stem, MIN_IMAGE)
        require_all_positive(repeats=repeats, filters=filters, stem_filters=stem_filters)
        if stem == "imagenet" and filters < 4:
            raise ValueError(f"model.filters={filters} must be at least 4 with model.stem=imagenet, which quarters it.")

    def _initialise(self) -> None:
        """He initialisation over a filter's outputs; for a depthwise filter these are as many as its inputs."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                depthwise = module.groups > 1
                nn.init.kaiming_normal_(module.weight, mode="fan_in" if depthwise else "fan_out", nonlinearity="relu")

    def _outputs(self, images: Tensor) -> list[Tensor]:
        require_image_size(images, self.smallest_image, "this net")
        outputs = [self.stem(images)]
        for cell, back in zip(self.cells, self.backs, strict=True):
            previous = outputs[-back] if len(outputs) > 1 else outputs[-1]
            outputs.append(cell(outputs[-1], previous))
        return outputs

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, channels, H', W')`, behind the last ReLU.

        H' is H/4 with a CIFAR stem, H/16 with a small one, about H/32 with one for ImageNet.
        """
        return F.relu(self._outputs(images)[-1])

    def forward(self, images: Tensor) -> Tensor | AuxiliaryOutput:
        with_auxiliary = self.uses_auxiliary_head(images)
        outputs = self._outputs(images)
        logits = self.classifier(self.dropout(F.relu(outputs[-1]).mean((2, 3))))
        if self.auxiliary_head is None or not with_auxiliary:
            return logits
        return AuxiliaryOutput(logits, (self.auxiliary_head(outputs[self.auxiliary_index + 1]),))
