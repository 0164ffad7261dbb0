"""Search spaces: a list of decisions, each with its choices, and the net that they make.

An architecture is a tuple with the index of the choice for each decision. Random search draws them uniformly, a
controller learns to draw them, and a differentiable search relaxes them; all end in the same architecture file.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from convatlas.core.errors import UserError, near_matches
from convatlas.models.classification import darts, fbnet, nasnet
from convatlas.models.classification.searched import searched
from convatlas.search.config import DartsSpaceConfig, FBNetSpaceConfig, NasnetSpaceConfig

Decisions = tuple[int, ...]
Choices = tuple[tuple[str, ...], ...]
"""For every decision the names of its choices."""


class Space(ABC):
    """Decisions and what they mean."""

    family: str  # of the nets, as in an architecture file
    choices: Choices  # for every decision the names of its choices

    @abstractmethod
    def net(self, decisions: Decisions) -> dict[str, Any]:
        """Return the arguments of the net that the decisions make, as plain values."""

    @abstractmethod
    def describe(self, decisions: Decisions) -> str:
        """Return the architecture as one short line."""

    def architecture(self, decisions: Decisions) -> dict[str, Any]:
        return {"family": self.family, "net": self.net(decisions)}

    def build(self, decisions: Decisions, num_classes: int, in_channels: int) -> nn.Module:
        return searched(self.architecture(decisions), num_classes=num_classes, in_channels=in_channels)

    def sample(self, generator: torch.Generator) -> Decisions:
        """Draw every decision uniformly from its choices."""
        return tuple(int(torch.randint(len(names), (), generator=generator)) for names in self.choices)

    @property
    def size(self) -> int:
        """Architectures in the space; some may be the same net in another order."""
        return math.prod(len(names) for names in self.choices)


@dataclass(frozen=True)
class Layer:
    """One searched layer: its shape and the candidates that fit it."""

    stage: int  # number of its stage, from 1
    in_channels: int
    out_channels: int
    stride: int
    size: int  # side of its input in pixels
    candidates: tuple[str, ...]  # names of `fbnet.BLOCKS`, and `skip` where neither stride nor channels change

    def block(self, name: str, *, always_expand: bool) -> nn.Module:
        """Build a candidate, without biases: batch norm follows every convolution."""
        if name == fbnet.SKIP:
            return nn.Identity()
        shape = (self.in_channels, self.out_channels, fbnet.BLOCKS[name])
        return fbnet.FBNetBlock(*shape, stride=self.stride, always_expand=always_expand, bias=False)

    def operator(self, name: str) -> str:
        """Name a candidate with its shape: layers of equal shape share what was measured."""
        return f"{name} {self.in_channels}-{self.out_channels} stride {self.stride} at {self.size}"


class FBNetSpace(Space):
    """FBNet's space (table 1 and 2): one decision a layer.

    Raises:
        UserError: a candidate is not known, or none fits a layer; the message names the layer.
    """

    family = "fbnet"

    def __init__(self, config: FBNetSpaceConfig, image_size: int) -> None:
        self.config = config
        _check_names("search.space.candidates", config.candidates, [*fbnet.BLOCKS, fbnet.SKIP])
        self.image_size = image_size
        self.layers: list[Layer] = []
        channels, size = config.stem_channels, -(-image_size // config.stem_stride)
        for number, stage in enumerate(config.stages, start=1):
            for index in range(stage.layers):
                stride = stage.stride if index == 0 else 1
                layer = Layer(number, channels, stage.channels, stride, size, ())
                fitting = tuple(name for name in config.candidates if _fits(layer, name))
                if not fitting:
                    raise UserError(
                        f"search.space: layer {len(self.layers) + 1} (layer {index + 1} of stage {number}, {channels} "
                        f"to {stage.channels} channels, stride {stride}) has no valid candidate among "
                        f"{', '.join(config.candidates)}; add one, for example k3_e3."
                    )
                self.layers.append(replace(layer, candidates=fitting))
                channels, size = stage.channels, -(-size // stride)
        self.head_size = size
        self.choices = tuple(layer.candidates for layer in self.layers)

    def names(self, decisions: Decisions) -> list[str]:
        return [layer.candidates[choice] for layer, choice in zip(self.layers, decisions, strict=True)]

    def blocks(self, decisions: Decisions) -> list[list[str]]:
        stages: list[list[str]] = [[] for _ in self.config.stages]
        for layer, name in zip(self.layers, self.names(decisions), strict=True):
            stages[layer.stage - 1].append(name)
        return stages

    def net(self, decisions: Decisions) -> dict[str, Any]:
        config = self.config
        return {
            "blocks": self.blocks(decisions),
            "stem_channels": config.stem_channels,
            "stage_channels": [stage.channels for stage in config.stages],
            "head_channels": config.head_channels,
            "strides": [config.stem_stride, *(stage.stride for stage in config.stages)],
            "always_expand": config.always_expand,
            "conv_bias": False,
        }

    def describe(self, decisions: Decisions) -> str:
        return " | ".join(" ".join(names) for names in self.blocks(decisions))


def _fits(layer: Layer, name: str) -> bool:
    if name == fbnet.SKIP:
        return layer.stride == 1 and layer.in_channels == layer.out_channels
    groups = fbnet.BLOCKS[name].groups
    return layer.in_channels % groups == 0 and layer.out_channels % groups == 0


CELL_NAMES = ("normal", "reduction")


class CellSpace(Space):
    """A normal and a reduction cell of equally many nodes; the first half of the decisions makes the normal cell.

    Args:
        operations: names of the operations of every node.
        known: all operations that there are.
        nodes: for every node of a cell the choices of its decisions.
    """

    def __init__(self, operations: Sequence[str], known: Iterable[str], nodes: Sequence[Choices]) -> None:
        _check_names("search.space.operations", operations, known)
        self.choices = tuple(names for node in nodes for names in node) * len(CELL_NAMES)
        self._decisions_per_node = len(nodes[0])

    def cells(self, decisions: Decisions) -> dict[str, list[Decisions]]:
        half, each = len(decisions) // 2, self._decisions_per_node
        starts = {"normal": range(0, half, each), "reduction": range(half, 2 * half, each)}
        return {cell: [decisions[start : start + each] for start in starts[cell]] for cell in CELL_NAMES}


class NasnetSpace(CellSpace):
    """NASNet's space: for each block of both cells two states, two operations, and how they are combined.

    With five blocks a cell these are the 50 decisions of section 3.
    """

    family = "nasnet"

    def __init__(self, config: NasnetSpaceConfig) -> None:
        self.config = config
        states = [tuple(f"state {state}" for state in range(block + 2)) for block in range(config.blocks)]
        rest = (config.operations, config.operations, config.combinations)
        super().__init__(config.operations, nasnet.OPERATIONS, [(names, names, *rest) for names in states])

    def blocks(self, decisions: Decisions) -> dict[str, list[nasnet.Block]]:
        return {cell: [self._block(*block) for block in blocks] for cell, blocks in self.cells(decisions).items()}

    def _block(self, left_state: int, right_state: int, left: int, right: int, combination: int) -> nasnet.Block:
        names = self.config.operations
        return nasnet.Block(names[left], left_state, names[right], right_state, self.config.combinations[combination])

    def net(self, decisions: Decisions) -> dict[str, Any]:
        cells = {cell: {"blocks": [list(b) for b in blocks]} for cell, blocks in self.blocks(decisions).items()}
        return {"cells": cells, **self.config.model_dump(include={"repeats", "filters", "stem", "stem_filters"})}

    def describe(self, decisions: Decisions) -> str:
        sign = {"add": "+", "concat": "&"}
        cells = []
        for cell, blocks in self.blocks(decisions).items():
            words = [f"{b.left}({b.left_state}){sign[b.combination]}{b.right}({b.right_state})" for b in blocks]
            cells.append(f"{cell}: {' '.join(words)}")
        return " | ".join(cells)


class DartsSpace(CellSpace):
    """DARTS's space: for each node of both cells a pair of earlier states and two operations."""

    family = "darts"

    def __init__(self, config: DartsSpaceConfig) -> None:
        self.config = config
        pairs = [tuple(f"states {a} {b}" for a, b in state_pairs(node)) for node in range(config.nodes)]
        nodes = [(names, config.operations, config.operations) for names in pairs]
        super().__init__(config.operations, darts.OPERATIONS, nodes)

    def genotype(self, decisions: Decisions) -> dict[str, list[list[list[Any]]]]:
        names = self.config.operations
        return {
            cell: [
                [[names[chosen], state] for chosen, state in zip(operations, state_pairs(node)[pair], strict=True)]
                for node, (pair, *operations) in enumerate(nodes)
            ]
            for cell, nodes in self.cells(decisions).items()
        }

    def net(self, decisions: Decisions) -> dict[str, Any]:
        config = self.config
        genotype = self.genotype(decisions)
        return {"genotype": genotype, "channels": config.channels, "layers": config.layers, "stem": config.stem}

    def describe(self, decisions: Decisions) -> str:
        cells = []
        for cell, nodes in self.genotype(decisions).items():
            words = ["+".join(f"{name}({state})" for name, state in node) for node in nodes]
            cells.append(f"{cell}: {' '.join(words)}")
        return " | ".join(cells)


def state_pairs(node: int) -> list[tuple[int, int]]:
    """Return the pairs of different states that a node may take: both inputs of the cell and earlier nodes."""
    return [(a, b) for b in range(node + 2) for a in range(b)]


def _check_names(key: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{key}: {name} is not known. {near_matches(name, known)}")


def make_space(config: FBNetSpaceConfig | NasnetSpaceConfig | DartsSpaceConfig, image_size: int) -> Space:
    """Return the space of a configuration for images of this size."""
    if isinstance(config, FBNetSpaceConfig):
        return FBNetSpace(config, image_size)
    return NasnetSpace(config) if isinstance(config, NasnetSpaceConfig) else DartsSpace(config)
