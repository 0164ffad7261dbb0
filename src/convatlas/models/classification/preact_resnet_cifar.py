"""Pre-activation ResNet for small images.

He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks" (ECCV 2016): batch normalisation and ReLU come before
each convolution, and nothing stands between two additions. Basic blocks, 6n+2 layers: parameter-free shortcuts (option
A). Bottleneck blocks, 9n+2 layers: 1x1 projections without batch normalisation where the shape changes, with the stride
on the first 1x1 convolution, as the authors' code has it. Blocks can have the gates of stochastic depth (see
`convatlas.models.layers.stochastic_depth`).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import blocks_for_depth, require_positive
from convatlas.models.layers.initialisation import initialise_he
from convatlas.models.layers.shortcuts import ZeroPadShortcut
from convatlas.models.layers.stochastic_depth import GatedBlocks, GatedNet, Gates, survival_probabilities, weighted


class PreactBlock(nn.Module):
    """A branch beside a shortcut; `(B, in, H, W) -> (B, expansion * channels, H/stride, W/stride)`.

    `shared` says that the shortcut starts behind the first BN and ReLU instead of before it: so it is in the net's
    first block (the paper's appendix) and wherever the shape changes. There they belong to the shortcut, which is
    computed even if the gate leaves the rest of the branch out.
    """

    expansion: int
    bn1: nn.BatchNorm2d
    shortcut: nn.Module

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.shared = shared

    def convolutions(self, activated: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, weight: float = 1.0) -> Tensor:
        if weight == 0 and not self.shared:
            return self.shortcut(x)
        activated = F.relu(self.bn1(x))
        shortcut = self.shortcut(activated if self.shared else x)
        return shortcut if weight == 0 else weighted(self.convolutions(activated), weight) + shortcut


class PreactBasicBlock(PreactBlock):
    """Two 3x3 convolutions, each after BN and ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1, shared: bool = False) -> None:
        super().__init__(shared)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = ZeroPadShortcut(in_channels, channels, stride)

    def convolutions(self, activated: Tensor) -> Tensor:
        return self.conv2(F.relu(self.bn2(self.conv1(activated))))


class PreactBottleneck(PreactBlock):
    """1x1, 3x3 and 1x1 convolutions, each after BN and ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1, shared: bool = False) -> None:
        super().__init__(shared)
        out_channels = self.expansion * channels
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def convolutions(self, activated: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return self.conv3(F.relu(self.bn3(out)))


class PreactResNetCifar(GatedNet):
    """Pre-activation ResNet of `depth` layers.

    Args:
        depth: layers with weights: 6n+2, with bottlenecks 9n+2.
        bottleneck: use 1x1-3x3-1x1 blocks, whose outputs are four times as wide.
        width: filters of the first stage; the next two have twice and four times as many.
    """

    def __init__(
        self,
        depth: int = 110,
        bottleneck: bool = False,
        *,
        width: int = 16,
        survival: float = 1.0,
        schedule: str = "linear",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        block = PreactBottleneck if bottleneck else PreactBasicBlock
        blocks = blocks_for_depth(depth, step=9 if bottleneck else 6, others=2)
        require_positive("width", width)
        self.gates = Gates(survival_probabilities(survival, schedule, 3 * blocks))
        out = block.expansion * width
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.stage1 = self._stage(block, width, width, blocks, stride=1)
        self.stage2 = self._stage(block, out, 2 * width, blocks, stride=2)
        self.stage3 = self._stage(block, 2 * out, 4 * width, blocks, stride=2)
        self.norm = nn.BatchNorm2d(4 * out)
        self.classifier = nn.Linear(4 * out, num_classes)
        initialise_he(self)

    @staticmethod
    def _stage(
        block: type[PreactBasicBlock | PreactBottleneck], in_channels: int, channels: int, blocks: int, stride: int
    ) -> GatedBlocks:
        first = block(in_channels, channels, stride, shared=True)
        return GatedBlocks([first, *(block(block.expansion * channels, channels) for _ in range(blocks - 1))])

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, 4 * width * expansion, H/4, W/4)`, behind the last BN and ReLU."""
        return F.relu(self.norm(self.gated_stages(self.stem(images))))
