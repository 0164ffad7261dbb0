"""DARTS: nets of the cells that the differentiable search found, the cells given as data.

Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search" (ICLR 2019), section 3, figures 4 and 5, appendix A.
The genotypes are those that the authors published: of the first order (`darts_v1`) and the second order (`darts_v2`).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convatlas.core.errors import near_matches
from convatlas.models.checks import require_choice, require_positive, require_probability
from convatlas.models.interfaces import AuxiliaryOutput
from convatlas.models.layers.cells import AuxiliaryHead, CellNet, FactorizedReduction, check_edge, relu_conv_norm
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.models.layers.scheduled_drop_path import ScheduledDropPath


class Edge(NamedTuple):
    """An operation on an earlier state: 0 is the output before the last, 1 the last one, 2 the cell's first node."""

    operation: str
    state: int


Node = tuple[Edge, ...]


class Genotype(NamedTuple):
    """The nodes of both cells; a node is the sum of its edges, and a cell's output the concatenation of its nodes."""

    normal: tuple[Node, ...]
    reduction: tuple[Node, ...]


GENOTYPES = {
    "darts_v1": Genotype(
        normal=(
            (Edge("sep_conv_3x3", 1), Edge("sep_conv_3x3", 0)),
            (Edge("skip_connect", 0), Edge("sep_conv_3x3", 1)),
            (Edge("skip_connect", 0), Edge("sep_conv_3x3", 1)),
            (Edge("sep_conv_3x3", 0), Edge("skip_connect", 2)),
        ),
        reduction=(
            (Edge("max_pool_3x3", 0), Edge("max_pool_3x3", 1)),
            (Edge("skip_connect", 2), Edge("max_pool_3x3", 0)),
            (Edge("max_pool_3x3", 0), Edge("skip_connect", 2)),
            (Edge("skip_connect", 2), Edge("avg_pool_3x3", 0)),
        ),
    ),
    "darts_v2": Genotype(
        normal=(
            (Edge("sep_conv_3x3", 0), Edge("sep_conv_3x3", 1)),
            (Edge("sep_conv_3x3", 0), Edge("sep_conv_3x3", 1)),
            (Edge("sep_conv_3x3", 1), Edge("skip_connect", 0)),
            (Edge("skip_connect", 0), Edge("dil_conv_3x3", 2)),
        ),
        reduction=(
            (Edge("max_pool_3x3", 0), Edge("max_pool_3x3", 1)),
            (Edge("skip_connect", 2), Edge("max_pool_3x3", 1)),
            (Edge("max_pool_3x3", 0), Edge("skip_connect", 2)),
            (Edge("skip_connect", 2), Edge("max_pool_3x3", 1)),
        ),
    ),
}


def read_genotype(genotype: str | Mapping[str, Any]) -> Genotype:
    """Look a genotype up by its name, or read one from `{normal: [[[operation, state], ...], ...], reduction: ...}`."""
    if isinstance(genotype, str):
        if genotype not in GENOTYPES:
            raise ValueError(f"model.genotype={genotype} is not known. {near_matches(genotype, GENOTYPES)}")
        return GENOTYPES[genotype]
    if set(genotype) != {"normal", "reduction"}:
        raise ValueError(f"model.genotype must have the keys normal and reduction, not {', '.join(sorted(genotype))}.")
    return Genotype(_read_cell("normal", genotype["normal"]), _read_cell("reduction", genotype["reduction"]))


def _read_cell(key: str, nodes: Sequence[Sequence[Sequence[Any]]]) -> tuple[Node, ...]:
    if not nodes or not all(nodes):
        raise ValueError(f"model.genotype.{key} must have at least one node, and every node at least one edge.")
    for number, node in enumerate(nodes):
        for edge in node:
            if len(edge) != 2 or not isinstance(edge[1], int):
                raise ValueError(f"model.genotype.{key}: node {number} has the edge {edge}; write [operation, state].")
            check_edge(f"model.genotype.{key}: node {number}", number, edge[0], edge[1], OPERATIONS)
    return tuple(tuple(Edge(*edge) for edge in node) for node in nodes)


def depthwise_separable(channels: int, kernel_size: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    """List ReLU, depthwise convolution, pointwise convolution and BN; nothing stands between the two convolutions."""
    padding = dilation * (kernel_size // 2)
    depthwise = nn.Conv2d(channels, channels, kernel_size, stride, padding, dilation, groups=channels, bias=False)
    return [nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]


OPERATIONS = (
    "skip_connect",
    "max_pool_3x3",
    "avg_pool_3x3",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""What the search chooses from, without its `none`, which no found cell keeps."""


def make_operation(name: str, channels: int, stride: int) -> nn.Module:
    """Build one of `OPERATIONS`: `(B, channels, H, W) -> (B, channels, H/stride, W/stride)`.

    A separable convolution is applied twice and strides the first time; a dilated one is applied once, with dilation 2.
    """
    kernel_size = int(name[-1]) if name[-1].isdigit() else 0
    if name.startswith("sep_conv"):
        first = depthwise_separable(channels, kernel_size, stride)
        return nn.Sequential(*first, *depthwise_separable(channels, kernel_size, stride=1))
    if name.startswith("dil_conv"):
        return nn.Sequential(*depthwise_separable(channels, kernel_size, stride, dilation=2))
    if name == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, padding=1)
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
    assert name == "skip_connect", name
    return nn.Identity() if stride == 1 else FactorizedReduction(channels, channels)


class Cell(nn.Module):
    """One cell: the last two outputs to `(B, nodes * channels, H/stride, W/stride)`.

    Args:
        nodes: the nodes' edges.
        before_channels: channels of the output before the last.
        last_channels: channels of the last output.
        channels: channels of every node.
        reduction: halve the map; edges from the two inputs stride.
        after_reduction: the output before the last is twice as large as the last.
        drop_path_rate: final rate of dropping the result of an edge other than a plain skip.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        before_channels: int,
        last_channels: int,
        channels: int,
        *,
        reduction: bool,
        after_reduction: bool,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        fit = FactorizedReduction if after_reduction else relu_conv_norm
        self.fit_before = fit(before_channels, channels)
        self.fit_last = relu_conv_norm(last_channels, channels)
        self.states = [[edge.state for edge in node] for node in nodes]
        self.nodes = nn.ModuleList(
            nn.ModuleList(
                self._edge(edge.operation, channels, 2 if reduction and edge.state < 2 else 1, drop_path_rate)
                for edge in node
            )
            for node in nodes
        )

    @staticmethod
    def _edge(name: str, channels: int, stride: int, drop_path_rate: float) -> nn.Module:
        operation = make_operation(name, channels, stride)
        if isinstance(operation, nn.Identity):
            return operation
        return nn.Sequential(operation, ScheduledDropPath(drop_path_rate))

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        states = [self.fit_before(before), self.fit_last(last)]
        for operations, sources in zip(self.nodes, self.states, strict=True):
            assert isinstance(operations, nn.ModuleList)
            edges = [operation(states[source]) for operation, source in zip(operations, sources, strict=True)]
            states.append(sum(edges[1:], edges[0]))
        return torch.cat(states[2:], 1)


MIN_IMAGE_WITH_AUXILIARY = {"cifar": 29, "imagenet": 193, "small": 113}
"""By stem: side in pixels from which the pooling of the auxiliary head leaves 2x2."""


def make_stem(kind: str, in_channels: int, channels: int) -> tuple[nn.Sequential, nn.Sequential | None, int]:
    """Return the stem, its second part, which gives the first cell a second input, and their channels."""
    unit = partial(ConvNormAct, kernel_size=3, stride=2)
    if kind == "cifar":
        return unit(in_channels, 3 * channels, stride=1, activation=None), None, 3 * channels
    first = nn.Sequential(*unit(in_channels, channels // 2), *unit(channels // 2, channels, activation=None))
    second = nn.Sequential(nn.ReLU(), *unit(channels, channels, activation=None)) if kind == "imagenet" else None
    return first, second, channels


class DartsNet(CellNet):
    """A net of `layers` cells; those at one and two thirds of its depth are reduction cells.

    Args:
        genotype: a name (`darts_v1`, `darts_v2`), or the nodes of both cells, see `read_genotype`.
        channels: channels of a node in the first third, doubled by each reduction.
        stem: `cifar`, one 3x3 convolution with three times `channels`; `imagenet`, three strided ones; `small`, not in
            the paper, two strided ones.
        drop_path_rate: probability of dropping an edge at the end of the training, to which it grows in proportion to
            the training's progress, see `begin_step`; the paper's is 0.2 for CIFAR.
        auxiliary: add a classifier behind the second reduction, with loss weight 0.4; training then returns a
            `AuxiliaryOutput`.
    """

    def __init__(
        self,
        *,
        genotype: str | Mapping[str, Any] = "darts_v2",
        channels: int = 36,
        layers: int = 20,
        stem: str = "cifar",
        drop_path_rate: float = 0.0,
        auxiliary: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__(auxiliary, MIN_IMAGE_WITH_AUXILIARY.get(stem, 0))
        self._check(channels, layers, stem, drop_path_rate)
        found = read_genotype(genotype)
        self.stem, self.second_stem, stem_channels = make_stem(stem, in_channels, channels)
        reductions = (layers // 3, 2 * layers // 3)
        before, last, width = stem_channels, stem_channels, channels
        after_reduction = self.second_stem is not None
        self.cells = nn.ModuleList()
        for layer in range(layers):
            reduction = layer in reductions
            width *= 2 if reduction else 1
            nodes = found.reduction if reduction else found.normal
            sizes = {"reduction": reduction, "after_reduction": after_reduction}
            self.cells.append(Cell(nodes, before, last, width, **sizes, drop_path_rate=drop_path_rate))
            before, last, after_reduction = last, len(nodes) * width, reduction
        self.auxiliary_index = reductions[1]
        self.auxiliary_head = None
        if auxiliary:
            inner, pool_stride = len(found.reduction) * 4 * channels, 2 if stem == "imagenet" else 3
            self.auxiliary_head = AuxiliaryHead(inner, num_classes, pool_stride=pool_stride, side=2)
        self.classifier = nn.Linear(last, num_classes)

    @staticmethod
    def _check(channels: int, layers: int, stem: str, drop_path_rate: float) -> None:
        require_positive("channels", channels)
        if layers < 3:
            raise ValueError(
                f"model.layers={layers} must be at least 3, so that one and two thirds of it are two cells."
            )
        require_choice("stem", stem, MIN_IMAGE_WITH_AUXILIARY)
        if stem != "cifar" and channels % 2:
            raise ValueError(
                f"model.channels={channels} must be even with model.stem={stem}, for example {channels + 1}."
            )
        require_probability("drop_path_rate", drop_path_rate)

    def _outputs(self, images: Tensor) -> list[Tensor]:
        before = self.stem(images)
        last = before if self.second_stem is None else self.second_stem(before)
        outputs = []
        for cell in self.cells:
            before, last = last, cell(before, last)
            outputs.append(last)
        return outputs

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, nodes * 4 * channels, H', W')`; H' is H/4 (CIFAR), H/16 (small) or H/32 (ImageNet)."""
        return self._outputs(images)[-1]

    def forward(self, images: Tensor) -> Tensor | AuxiliaryOutput:
        with_auxiliary = self.uses_auxiliary_head(images)
        outputs = self._outputs(images)
        logits = self.classifier(outputs[-1].mean((2, 3)))
        if self.auxiliary_head is None or not with_auxiliary:
            return logits
        return AuxiliaryOutput(logits, (self.auxiliary_head(outputs[self.auxiliary_index]),))
