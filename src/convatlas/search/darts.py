"""DARTS, first order: every edge of a cell mixes all operations, and the strongest remain.

Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search" (ICLR 2019), section 2 and appendix A.1. In the search
batch norms have no scale and shift, pooling is followed by one, and `none`, which gives zeros, is one more operation.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.classification import darts
from convatlas.models.layers.cells import FactorizedReduction, relu_conv_norm
from convatlas.search.budget import INPUT_GRADIENTS, TRAINING, macs_of
from convatlas.search.config import Darts, DartsSpaceConfig
from convatlas.search.proxy import correct_answers
from convatlas.search.spaces import CELL_NAMES, DartsSpace, Decisions, state_pairs
from convatlas.search.strategy import Context, Row, seeded
from convatlas.search.supernets import SuperNetSearch, without_running_statistics

WEIGHTS, ARCHITECTURE = 21, 22  # streams of random numbers


class MixedEdge(nn.Module):
    """All operations on one state but `none`, which adds zeros."""

    def __init__(self, operations: Sequence[str], channels: int, stride: int) -> None:
        super().__init__()
        self.operations = nn.ModuleList()
        for name in operations:
            operation = darts.make_operation(name, channels, stride)
            if "pool" in name:
                operation = nn.Sequential(operation, nn.BatchNorm2d(channels))
            self.operations.append(operation)

    def forward(self, x: Tensor, mixture: Tensor) -> Tensor:
        pairs = zip(mixture[1:], self.operations, strict=True)
        return torch.stack([weight * operation(x) for weight, operation in pairs]).sum(0)


class MixedCell(nn.Module):
    """A cell in which every node takes every earlier state, by all operations."""

    def __init__(
        self,
        config: DartsSpaceConfig,
        before_channels: int,
        last_channels: int,
        channels: int,
        *,
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        fit = FactorizedReduction if after_reduction else relu_conv_norm
        self.fit_before = fit(before_channels, channels)
        self.fit_last = relu_conv_norm(last_channels, channels)
        self.nodes = config.nodes
        self.edges = nn.ModuleList(
            MixedEdge(config.operations, channels, 2 if reduction and state < 2 else 1)
            for node in range(config.nodes)
            for state in range(node + 2)
        )

    def forward(self, before: Tensor, last: Tensor, mixtures: Tensor) -> Tensor:
        states = [self.fit_before(before), self.fit_last(last)]
        edge = 0
        for _ in range(self.nodes):
            made = []
            for state in states:
                made.append(self.edges[edge](state, mixtures[edge]))
                edge += 1
            states.append(torch.stack(made).sum(0))
        return torch.cat(states[2:], 1)


class MixedNet(nn.Module):
    """`DartsNet` with mixed cells.

    Attributes:
        alphas: for normal and reduction cells the logits of `none` and the operations, `(edges, 1 + operations)`.
    """

    def __init__(self, config: DartsSpaceConfig, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem, self.second_stem, stem_channels = darts.make_stem(config.stem, in_channels, config.channels)
        edges = sum(node + 2 for node in range(config.nodes))
        shape = (edges, 1 + len(config.operations))
        self.alphas = nn.ParameterDict({name: nn.Parameter(1e-3 * torch.randn(shape)) for name in CELL_NAMES})
        reductions = (config.layers // 3, 2 * config.layers // 3)
        before, last, width = stem_channels, stem_channels, config.channels
        after_reduction = self.second_stem is not None
        self.cells, self.kinds = nn.ModuleList(), []
        for layer in range(config.layers):
            reduction = layer in reductions
            width *= 2 if reduction else 1
            self.cells.append(
                MixedCell(config, before, last, width, reduction=reduction, after_reduction=after_reduction)
            )
            self.kinds.append(CELL_NAMES[int(reduction)])
            before, last, after_reduction = last, config.nodes * width, reduction
        self.classifier = nn.Linear(last, num_classes)
        without_running_statistics(self)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_parameter("weight", None)
                module.register_parameter("bias", None)

    def forward(self, images: Tensor) -> Tensor:
        mixtures = {name: alpha.softmax(1) for name, alpha in self.alphas.items()}
        before = self.stem(images)
        last = before if self.second_stem is None else self.second_stem(before)
        for cell, kind in zip(self.cells, self.kinds, strict=True):
            before, last = last, cell(before, last, mixtures[kind])
        return self.classifier(last.mean((2, 3)))


def strongest(alphas: Sequence[Tensor], nodes: int) -> Decisions:
    """Return the net that remains of alphas `(edges, 1 + operations)` of normal and reduction cells.

    Each node keeps the two edges whose best operation, `none` left out, weighs most, and of them that operation.
    """
    decisions: list[int] = []
    for alpha in alphas:
        weights = alpha.softmax(1)[:, 1:]
        first = 0
        for node in range(nodes):
            best, operations = weights[first : first + node + 2].max(1)
            kept = sorted(best.argsort(descending=True, stable=True)[:2].tolist())
            pair = state_pairs(node).index((kept[0], kept[1]))
            decisions += [pair, int(operations[kept[0]]), int(operations[kept[1]])]
            first += node + 2
    return tuple(decisions)


class DartsSearch(SuperNetSearch):
    """Steps of alphas and weights in turns, batch by batch; then one proxy training."""

    def __init__(self, context: Context) -> None:
        config, space = context.run.search.strategy, context.space
        assert isinstance(config, Darts)
        assert isinstance(space, DartsSpace)
        self.config, self.space = config, space
        seed = seeded(context.run.seed, WEIGHTS)
        self.net = MixedNet(space.config, *context.shape)
        super().__init__(context, config, self.net, self.net.alphas.values(), seed)
        self.macs = macs_of(self.net, context.data.one_image().to(context.device))

    @property
    def steps(self) -> int:
        """Epochs, then the found net."""
        return self.config.epochs + 1

    def advance(self, step: int) -> list[Row]:
        decisions = strongest([self.net.alphas[name].detach().cpu() for name in CELL_NAMES], self.space.config.nodes)
        if step == self.config.epochs:
            return [{**self.try_net(decisions), "entropy": self._entropy()}]
        row = self._epoch(step)
        return [{**row, "entropy": self._entropy(), "likeliest": self.space.describe(decisions)}]

    def _epoch(self, epoch: int) -> Row:
        batches, others = self.weight_batches, self.architecture_batches
        losses, correct, seen = [], 0, 0
        for number in range(len(batches)):
            rounds, place = divmod(number, len(others))
            self.step_architecture(self._loss(others[epoch * len(batches) + rounds, place])[0])
            loss, answers = self._loss(batches[epoch, number])
            self.step_weights(loss, epoch, number)
            losses.append(loss.detach())
            correct, seen = correct + answers, seen + batches.batch_size
            self.spent += self.macs * (TRAINING * batches.batch_size + INPUT_GRADIENTS * others.batch_size)
        return {"weight_loss": float(torch.stack(losses).mean()), "weight_accuracy": correct / seen}

    def _loss(self, batch: dict[str, Any]) -> tuple[Tensor, int]:
        images, labels = self.context.on_device(batch)
        logits = self.net(images)
        return F.cross_entropy(logits, labels), correct_answers(logits.detach(), labels)

    def _entropy(self) -> float:
        logs = torch.cat([alpha.detach().log_softmax(1) for alpha in self.net.alphas.values()])
        return float(-(logs.exp() * logs).sum(1).mean())
