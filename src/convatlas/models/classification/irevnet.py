"""i-RevNet: a net that loses nothing of the image up to its classifier, and can be inverted.

Jacobsen, Smeulders, Oyallon, "i-RevNet: Deep Invertible Networks" (ICLR 2018), section 3 and figure 1. Every block is
the coupling `(x1, x2) -> (S x2, S x1 + F(x2))`; where a stage halves the map, S makes channels of pixels, so that
nothing is dropped. The bijective net has as many values in every layer as the image; the injective one adds zero
channels to the image first. F is a bottleneck of a quarter of the channels: 1x1, 3x3 and 1x1 as in the paper, or three
3x3 convolutions as in the authors' later released code.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convatlas.models.checks import (
    require_choice,
    require_counts,
    require_positive,
    require_probability,
    require_strides,
)
from convatlas.models.layers.reversible import Coupling, ReversibleSequence, depth_to_space, halves, space_to_depth

KERNELS = {"paper": (1, 3, 1), "released": (3, 3, 3)}

PADDED_BLOCKS = 2
"""Blocks whose normalisation sees channels without variance when zero channels are added, see `IRevNet`."""


def make_bottleneck(
    in_channels: int, out_channels: int, stride: int, kernels: Sequence[int], dropout: float, *, activated: bool
) -> nn.Sequential:
    """Build F; `(B, in, H, W) -> (B, out, H/stride, W/stride)`.

    Three convolutions with a quarter of the output channels between them; the first has the stride. BN and ReLU come
    before each, but not before the first unless `activated`; dropout stands behind the second.
    """
    inner = out_channels // 4
    widths = (in_channels, inner, inner, out_channels)
    layers: list[nn.Module] = []
    for number, size in enumerate(kernels):
        if activated or number > 0:
            layers += [nn.BatchNorm2d(widths[number]), nn.ReLU()]
        strided = stride if number == 0 else 1
        layers.append(nn.Conv2d(widths[number], widths[number + 1], size, strided, padding=size // 2, bias=False))
        if number == 1:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


class PaddedCoupling(Coupling):
    """The first block of an injective net, whose inverse knows which channels of x2 are zero.

    Args:
        branch: F.
        downsampling: the block's stride.
        kept: channels of x2 that come from the image; those behind them are zero.
    """

    def __init__(self, branch: nn.Module, downsampling: int, kept: int) -> None:
        super().__init__(branch, downsampling)
        self.kept = kept

    def second_input(self, y1: Tensor) -> Tensor:
        """Compute x2 with zeros where zeros were."""
        x2 = super().second_input(y1)
        return F.pad(x2[:, : self.kept], (0, 0, 0, 0, 0, x2.shape[1] - self.kept))


class IRevNet(nn.Module):
    """i-RevNet.

    In an injective net the added channels carry no variance in the first two blocks. Batch normalisation multiplies
    what rounding leaves in them by 1/sqrt(epsilon), about 300, at every layer: in training, and in evaluation as soon
    as the running variances have come down. Inverted step by step, such a net is wrong by more than the image's own
    range. So the inverse puts the zeros of the first block back in, and with `memory_saving` the first two blocks store
    their activations. What remains is the rounding of the other blocks: with 54 of them the gradients in float32 are
    3 percent away from those in float64, where plain autograd's own rounding makes half a percent.

    Args:
        channels: channels of each half in each stage. None is the bijective net, whose channels follow from the image;
            larger ones make it injective.
        strides: stride of each stage's first block, 1 or 2. A stage has `stride`^2 times the channels of the one
            before it: 2 * out = 4 * in at stride 2.
        initial_downsampling: side of the squares of pixels that become channels before the first block; 1 leaves the
            image as it is.
        block: `paper` (1x1, 3x3, 1x1) or `released` (three times 3x3).
        dropout: probability of dropping an activation in each branch, in the CIFAR script 0.1.
        memory_saving: store the last features alone and compute the other activations again; the gradients are those
            of plain autograd up to rounding, and the parameters have the same names.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int] = (6, 16, 72, 6),
        channels: Sequence[int] | None = None,
        strides: Sequence[int] = (2, 2, 2, 2),
        initial_downsampling: int = 2,
        block: str = "paper",
        dropout: float = 0.0,
        memory_saving: bool = True,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_choice("block", block, KERNELS)
        require_probability("dropout", dropout)
        _check_stages(blocks, strides, initial_downsampling)
        entering = in_channels * initial_downsampling**2
        if channels is None:
            channels = _bijective_channels(entering, strides, initial_downsampling)
        _check_channels(channels, strides, entering)
        self.in_channels = in_channels
        self.initial_downsampling = initial_downsampling
        self.padding = 2 * channels[0] // strides[0] ** 2 - entering
        self.features = 2 * channels[-1]
        self.total_stride = initial_downsampling * math.prod(strides)
        couplings: list[Coupling] = []
        before = (entering + self.padding) // 2
        for count, width, stride in zip(blocks, channels, strides, strict=True):
            for number in range(count):
                strided = stride if number == 0 else 1
                branch = make_bottleneck(before, width, strided, KERNELS[block], dropout, activated=len(couplings) > 0)
                couplings.append(
                    PaddedCoupling(branch, strided, max(0, entering - before))
                    if self.padding and not couplings
                    else Coupling(branch, strided)
                )
                before = width
        stored = PADDED_BLOCKS if self.padding else 0
        self.blocks = ReversibleSequence(*couplings, memory_saving=memory_saving, stored=stored)
        self.norm = nn.BatchNorm2d(self.features)
        self.classifier = nn.Linear(self.features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute the features, of which `inverse` makes the images again; `(B, C, H, W)` to `(B, C', H/s, W/s)`.

        Both halves of the last block are concatenated: C' is twice the last stage's channels, s is all downsampling.
        """
        height, width = images.shape[-2:]
        if height % self.total_stride or width % self.total_stride:
            raise ValueError(
                f"data.image_size: this i-RevNet takes heights and widths that are multiples of {self.total_stride}; "
                f"these images have {height}x{width} pixels."
            )
        x = space_to_depth(images, self.initial_downsampling)
        return torch.cat(self.blocks(*halves(F.pad(x, (0, 0, 0, 0, 0, self.padding)))), 1)

    def inverse(self, features: Tensor) -> Tensor:
        """Compute the images from `forward_features`; `(B, C', H/s, W/s) -> (B, C, H, W)`.

        Precise to about 1e-6; of an injective net in training, or after it, to 1e-5, or with 54 blocks to 1e-3; float64
        makes each about nine digits better. In training the features must be those of the same batch, and drawn
        without dropout.
        """
        if features.shape[1] != self.features:
            raise ValueError(f"The features of this i-RevNet have {self.features} channels, not {features.shape[1]}.")
        x = torch.cat(self.blocks.inverse(*halves(features)), 1)
        return depth_to_space(x[:, : x.shape[1] - self.padding], self.initial_downsampling)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(F.relu(self.norm(self.forward_features(images))).mean((2, 3)))


def _check_stages(blocks: Sequence[int], strides: Sequence[int], initial_downsampling: int) -> None:
    require_counts("blocks", blocks, max(1, len(blocks)))
    require_strides(strides, len(blocks))
    require_positive("initial_downsampling", initial_downsampling)


def _bijective_channels(entering: int, strides: Sequence[int], initial_downsampling: int) -> list[int]:
    """Return the channels of each half in each stage of a net that keeps the number of values."""
    if entering % 2:
        raise ValueError(
            f"model.initial_downsampling={initial_downsampling}: {entering} channels cannot be split in two halves; "
            "take 2 or another even number, or give model.channels, which adds zero channels."
        )
    channels, width = [], entering // 2
    for stride in strides:
        width *= stride**2
        channels.append(width)
    return channels


def _check_channels(channels: Sequence[int], strides: Sequence[int], entering: int) -> None:
    """Check that channels follow from the first stage's by the strides, and hold as much as the image."""
    given = f"model.channels={list(channels)}"
    if len(channels) != len(strides):
        raise ValueError(f"{given} does not fit {len(strides)} stages; give one number for each.")
    if channels[0] < 4:
        raise ValueError(
            f"{given}: the branches have a quarter of the channels, of which the first stage needs at least 4; "
            "take stride 2 there, or a larger model.initial_downsampling or model.channels."
        )
    if channels[0] % strides[0] ** 2:
        raise ValueError(f"{given}: with model.strides={list(strides)} the first must be a multiple of 4.")
    fitting = [channels[0]]
    for stride in strides[1:]:
        fitting.append(fitting[-1] * stride**2)
    if list(channels) != fitting:
        raise ValueError(
            f"{given} does not fit model.strides={list(strides)}: a block of stride 2 has 2 * out = 4 * in, one of "
            f"stride 1 has out = in; {fitting} fits."
        )
    smallest = -(-entering // 2) * strides[0] ** 2
    if channels[0] < smallest:
        raise ValueError(
            f"{given}: the image has {entering} channels when it enters the first stage, which needs at least "
            f"{smallest} to lose none."
        )
