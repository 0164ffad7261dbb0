"""One net that holds the weights of every net of NASNet's space, as ENAS shares them.

Pham et al., "Efficient Neural Architecture Search via Parameter Sharing" (ICML 2018), section 2.4. Each operation has
weights of its own for every block, side and input state. A drawn architecture runs through its own part alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.classification.nasnet import (
    Block,
    Cells,
    Stem,
    Wiring,
    factorized_reduction,
    layout,
    make_operation,
    relu_conv_norm,
    unused_states,
)
from convatlas.search.config import NasnetSpaceConfig
from convatlas.search.supernets import without_running_statistics


class SharedCell(nn.Module):
    """A cell of any wiring: `(B, filters, H, W)` twice to `(B, filters, H/stride, W/stride)`.

    Where a net of its own concatenates the unused states, here the 1x1 convolution behind them is one for each state,
    and their sum is the same as one convolution over the concatenation.

    Args:
        config: blocks and operations.
        in_channels: channels of the cell's input.
        before_channels: channels of the output before it.
        filters: channels of every state.
        stride: of operations on the two inputs.
        halve_before: the output before is twice as large as the input.
    """

    def __init__(
        self,
        config: NasnetSpaceConfig,
        in_channels: int,
        before_channels: int,
        filters: int,
        *,
        stride: int,
        halve_before: bool,
    ) -> None:
        super().__init__()
        self.fit_current = relu_conv_norm(in_channels, filters)
        fit = factorized_reduction if halve_before else relu_conv_norm
        self.fit_before = fit(before_channels, filters)
        self.operations = nn.ModuleDict(
            {
                self.key(block, side, state, name): make_operation(name, filters, filters, stride if state < 2 else 1)
                for block in range(config.blocks)
                for side in ("left", "right")
                for state in range(block + 2)
                for name in config.operations
            }
        )
        self.fit_both = nn.ModuleList(
            relu_conv_norm(2 * filters, filters) for _ in range(config.blocks if "concat" in config.combinations else 0)
        )
        # An input that no block uses goes to the output as well, at the output's size.
        self.outputs = nn.ModuleList(
            nn.Conv2d(filters, filters, 1, stride if state < 2 else 1, bias=False) for state in range(config.blocks + 2)
        )
        self.norm = nn.BatchNorm2d(filters)

    @staticmethod
    def key(block: int, side: str, state: int, name: str) -> str:
        return f"{block}_{side}_{state}_{name}"

    def forward(self, current: Tensor, before: Tensor, blocks: list[Block]) -> Tensor:
        """Run the part of the cell that an architecture uses."""
        states = [self.fit_current(current), self.fit_before(before)]
        for number, block in enumerate(blocks):
            left = self.operations[self.key(number, "left", block.left_state, block.left)](states[block.left_state])
            right = self.operations[self.key(number, "right", block.right_state, block.right)](
                states[block.right_state]
            )
            together = left + right
            if block.combination == "concat":
                together = self.fit_both[number](torch.cat([left, right], 1))
            states.append(together)
        unused = [self.outputs[state](F.relu(states[state])) for state in unused_states(blocks)]
        return self.norm(torch.stack(unused).sum(0))


class SharedNet(nn.Module):
    """NASNet's sequence of cells with shared weights; batch norms always use the statistics of the batch."""

    def __init__(self, config: NasnetSpaceConfig, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = Stem(config.stem, in_channels, config.stem_filters)
        # The wiring of a step is the architecture's; here it only tells normal cells from reductions.
        normal, reduction = Wiring((), ()), Wiring((), (0,))
        steps = layout(Cells(normal, reduction), config.repeats, config.filters, config.stem, False)
        self.cells = nn.ModuleList()
        self.reductions = [step.wiring is reduction for step in steps]
        channels, halvings = [config.stem_filters], [0]
        for step in steps:
            before = -2 if len(channels) > 1 else -1
            halve = halvings[before] < halvings[-1]
            self.cells.append(
                SharedCell(config, channels[-1], channels[before], step.filters, stride=step.stride, halve_before=halve)
            )
            channels.append(step.filters)
            halvings.append(halvings[-1] + int(step.stride == 2))
        self.classifier = nn.Linear(channels[-1], num_classes)
        without_running_statistics(self)

    def forward(self, images: Tensor, cells: dict[str, list[Block]]) -> Tensor:
        """`(B, C, H, W) -> (B, num_classes)` logits of the net with these normal and reduction blocks."""
        outputs = [self.stem(images)]
        for cell, reduces in zip(self.cells, self.reductions, strict=True):
            before = outputs[-2] if len(outputs) > 1 else outputs[-1]
            outputs.append(cell(outputs[-1], before, cells["reduction" if reduces else "normal"]))
        return self.classifier(F.relu(outputs[-1]).mean((2, 3)))
