"""Stochastic depth: residual blocks that a training batch leaves out, not masks, so that their time is saved.

Huang, Sun, Liu, Sedra, Weinberger, "Deep Networks with Stochastic Depth" (ECCV 2016), section 3. Every block l of L has
a gate that is open with its survival probability p_l, drawn once for a whole mini-batch. In training the residual
branch of a closed block is never called: no time, no memory, no gradient (`grad` stays None), no update of batch
normalisation; that of an open block counts in full. In evaluation every branch is computed and weighted by p_l.

The gates travel as plain Python numbers, as an argument of the block: nothing waits for the device, and a block that is
computed again for its gradient (checkpointing of blocks or stages) goes the way it went before.

`torch.compile` belongs on the branches, `block.branch.compile()`, which know nothing of gates and give whole graphs,
one for each shape in training and in evaluation; all count together against `torch._dynamo.config.recompile_limit`. A
whole net is no one graph, and would be compiled anew for each combination of gates until the limit ends it. The closed
form of a whole block is an empty graph, after which PyTorch 2.15 runs all blocks uncompiled.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convatlas.models.checks import require_choice
from convatlas.models.layers.classifier import PooledClassifier

SCHEDULES = ("linear", "uniform")


def survival_probabilities(survival: float, schedule: str, blocks: int) -> tuple[float, ...]:
    """Return p_1 to p_L.

    Args:
        survival: p_L, of the last block.
        schedule: `linear`, p_l = 1 - l/L (1 - p_L) (equation 4), whose first block can already be left out; or
            `uniform`, p_l = p_L.
    """
    if not 0 < survival <= 1:
        raise ValueError(
            f"model.survival={survival} is the probability of keeping the last block; choose above 0 and at most 1."
        )
    require_choice("schedule", schedule, SCHEDULES)
    if schedule == "uniform":
        return (survival,) * blocks
    return tuple(1 - block / blocks * (1 - survival) for block in range(1, blocks + 1))


class Gates:
    """The gates of all blocks of one net.

    Args:
        survival: the probability of each block, in the order in which the net calls them.

    Attributes:
        open: which blocks the last training batch computed; all of them before there was one.
    """

    def __init__(self, survival: Sequence[float]) -> None:
        self.survival = tuple(survival)
        self.open = (True,) * len(self.survival)
        self._generator: torch.Generator | None = None

    @property
    def can_close(self) -> bool:
        return any(p < 1 for p in self.survival)

    def seed(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[bool, ...]:
        """Draw the gates of one training batch, all at once; gates that can not close draw no random number."""
        if self.can_close:
            # On the CPU, whatever torch's default device is: the result is read in Python.
            draws = torch.rand(len(self.survival), dtype=torch.float64, device="cpu", generator=self._generator)
            self.open = tuple(u < p for u, p in zip(draws.tolist(), self.survival, strict=True))
        return self.open

    def weights(self, training: bool) -> tuple[float, ...]:
        """Return the weights of the branches for one forward pass: drawn 0 or 1 in training, p_l in evaluation."""
        return tuple(float(gate) for gate in self.draw()) if training else self.survival


def weighted(branch: Tensor, weight: float) -> Tensor:
    """Weight the output of a branch; by 1, which is every weight in training, without a multiplication."""
    return branch if weight == 1 else weight * branch


class GatedBlocks(nn.ModuleList):
    """Blocks one after another, each called as `block(x, weight)` with a weight of its own."""

    def forward(self, x: Tensor, weights: Sequence[float]) -> Tensor:
        for block, weight in zip(self, weights, strict=True):
            x = block(x, weight)
        return x


class GatedNet(PooledClassifier):
    """A net of blocks with gates, and what it offers the training; see `convatlas.models.interfaces`."""

    gates: Gates
    stage1: GatedBlocks
    stage2: GatedBlocks
    stage3: GatedBlocks

    def gated_stages(self, x: Tensor) -> Tensor:
        """Compute `stage1` to `stage3`, which have equally many `GatedBlocks`, with the weights of this pass."""
        stages, weights = (self.stage1, self.stage2, self.stage3), self.gates.weights(self.training)
        blocks = len(weights) // 3
        for number, stage in enumerate(stages):
            x = stage(x, weights[number * blocks : (number + 1) * blocks])
        return x

    @property
    def leaves_gradients_out(self) -> bool:
        return self.gates.can_close

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        self.gates.seed(seed)

    def step_figures(self) -> dict[str, float]:
        """Return the share of blocks that the last training batch computed; nothing if none can be left out."""
        if not self.gates.can_close:
            return {}
        return {"active_blocks": sum(self.gates.open) / len(self.gates.open)}
