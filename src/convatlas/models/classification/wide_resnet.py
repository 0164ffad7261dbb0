"""Wide ResNet for small images.

Zagoruyko, Komodakis, "Wide Residual Networks" (BMVC 2016): pre-activation residual nets that are k times as wide and
much shallower. Table 1 gives the structure, section 2 the block types B(M), M being the kernel sizes of a block's
convolutions, and the dropout inside a block. Blocks can have the gates of stochastic depth (see
`convatlas.models.layers.stochastic_depth`).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import blocks_for_depth, require_positive, require_probability
from convatlas.models.layers.initialisation import initialise_he
from convatlas.models.layers.stochastic_depth import GatedBlocks, GatedNet, Gates, survival_probabilities, weighted


class WideBlock(nn.Module):
    """One residual block B(M); `(B, in, H, W) -> (B, out, H/stride, W/stride)`.

    Every convolution comes after BN and ReLU and has `out` filters. The first one carries the stride; dropout stands
    before each of the others, behind the ReLU. Where the number of channels changes, a 1x1 projection without BN starts
    from the block's first activation; both are computed even if the gate leaves the rest of the branch out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_sizes: Sequence[int], stride: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * len(kernel_sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, size, stride=stride if i == 0 else 1, padding=size // 2, bias=False)
            for i, (size, (before, after)) in enumerate(zip(kernel_sizes, pairwise(widths), strict=True))
        )
        self.dropout = nn.Dropout(dropout)
        self.projection: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.projection = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor, weight: float = 1.0) -> Tensor:
        if weight == 0 and self.projection is None:
            return x
        activated = F.relu(self.norms[0](x))
        shortcut = x if self.projection is None else self.projection(activated)
        if weight == 0:
            return shortcut
        out = self.convolutions[0](activated)
        for norm, convolution in zip(self.norms[1:], self.convolutions[1:], strict=True):
            out = convolution(self.dropout(F.relu(norm(out))))
        return weighted(out, weight) + shortcut


class WideResNet(GatedNet):
    """WRN-`depth`-`width`.

    Args:
        depth: layers with weights of the net with n blocks B(3,3) a stage, 6n+4. The paper counts the same for
            the other block types, whatever their number of convolutions: its Table 2 has 1.4M parameters for B(1,3,1)
            at depth 40, which n = 6 gives.
        width: the widening factor k; stages have 16k, 32k and 64k filters.
        filters: what stands in the place of these 16.
        block: kernel sizes of a block's convolutions. The paper compares [3, 3], [3, 1, 3], [1, 3, 1], [1, 3], [3, 1]
            and [3, 1, 1].
        dropout: probability of dropping an activation between a block's convolutions (the paper: 0.3 on CIFAR).
        survival: probability of keeping the last block in a training batch (stochastic depth); 1 is the paper's net.
        schedule: that of the other blocks, `linear` or `uniform`, see `survival_probabilities`.
    """

    def __init__(
        self,
        *,
        depth: int = 28,
        width: int = 10,
        filters: int = 16,
        block: Sequence[int] = (3, 3),
        dropout: float = 0.0,
        survival: float = 1.0,
        schedule: str = "linear",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if not block or set(block) - {1, 3}:
            raise ValueError(f"model.block={list(block)} must list kernel sizes 1 and 3, for example [3,3] or [3,1,3].")
        require_positive("width", width)
        require_positive("filters", filters)
        require_probability("dropout", dropout)
        blocks = blocks_for_depth(depth, step=6, others=4)
        self.gates = Gates(survival_probabilities(survival, schedule, 3 * blocks))
        widths = [filters, filters * width, 2 * filters * width, 4 * filters * width]
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.blocks = GatedBlocks()
        for before, after in pairwise(widths):
            first_stride = 2 if len(self.blocks) else 1
            self.blocks.append(WideBlock(before, after, block, first_stride, dropout))
            self.blocks.extend(WideBlock(after, after, block, 1, dropout) for _ in range(blocks - 1))
        self.norm = nn.BatchNorm2d(widths[-1])
        self.classifier = nn.Linear(widths[-1], num_classes)
        initialise_he(self)
        nn.init.zeros_(self.classifier.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 4 * filters * width, H/4, W/4)`, behind the last BN and ReLU."""
        return F.relu(self.norm(self.blocks(self.stem(images), self.gates.weights(self.training))))
