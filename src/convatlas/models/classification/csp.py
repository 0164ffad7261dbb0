"""CSPNet: nets whose stages send a part of their channels around the stage, and the nets that they come from.

Wang, Liao, Wu, Chen, Hsieh, Yeh, "CSPNet: A New Backbone that can Enhance Learning Capability of CNN" (CVPR Workshops
2020), section 3, figures 2 to 4. Every width, depth and activation of CSPResNet-50, CSPResNeXt-50 and CSPDarknet-53 and
of the nets beside them follows the authors' published darknet files (csresnet50.cfg, resnet50.cfg and so on), which
differ from the paper in one thing: they do not split the channels, but make both parts from all of them by 1x1
convolutions. CSPDenseNet was not published; it follows the paper's equations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_image_size, require_positive
from convatlas.models.classification.densenet_cifar import DenseBlock
from convatlas.models.layers.conv_norm import ACTIVATIONS, conv_norm, initialise_convolutions
from convatlas.models.layers.shortcuts import ZeroPadShortcut

__all__ = [
    "Bottleneck",
    "ChannelSplit",
    "CrossStagePartial",
    "DarknetBlock",
    "StagedNet",
    "TwoConvolutions",
    "cross_stage_partial",
    "csp_darknet53",
    "csp_densenet",
    "csp_resnet50",
    "csp_resnext50",
    "darknet53",
    "darknet_resnet50",
    "darknet_resnext50",
]

FUSIONS = ("partial", "first", "last", "none")
STEMS = ("large", "small")


# ---- the cross-stage partial connection -----------------------------------------------------------------------------


class ChannelSplit(nn.Module):
    """The paper's split: `(B, C, H, W)` becomes the first `bypass` channels and the others."""

    def __init__(self, bypass: int, base: int) -> None:
        super().__init__()
        self.sizes = [bypass, base]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what goes around the blocks, then what goes through them."""
        bypass, base = torch.split(x, self.sizes, dim=1)
        return bypass, base


class TwoConvolutions(nn.Module):
    """The released nets' split: two 1x1 convolutions on all channels; one convolution and a split would be the same.

    `(B, in, H, W)` becomes `(B, bypass, H, W)` and `(B, base, H, W)`.
    """

    def __init__(self, in_channels: int, bypass: int, base: int, activation: str | None) -> None:
        super().__init__()
        self.bypass = conv_norm(in_channels, bypass, 1, activation=activation)
        self.base = conv_norm(in_channels, base, 1, activation=activation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what goes around the blocks, then what goes through them."""
        return self.bypass(x), self.base(x)


class CrossStagePartial(nn.Module):
    """One stage: x_U = w_U * [w_T * blocks(x''), x'] for the parts x' and x'' of its input (equations 3 and 4).

    Args:
        split: gives x' and x''.
        blocks: what x'' goes through, or None: then x' alone is left.
        transition: w_T, behind the blocks.
        fusion: w_U, behind the concatenation.
    """

    def __init__(self, split: nn.Module, blocks: nn.Module | None, transition: nn.Module, fusion: nn.Module) -> None:
        super().__init__()
        self.split = split
        self.blocks = blocks
        self.transition = transition
        self.fusion = fusion

    def forward(self, x: Tensor) -> Tensor:
        """Send x'' through the blocks and lay it before x', as the released nets do."""
        bypass, base = self.split(x)
        if self.blocks is None:
            return self.fusion(bypass)
        return self.fusion(torch.cat([self.transition(self.blocks(base)), bypass], 1))


def cross_stage_partial(
    in_channels: int,
    out_channels: int,
    *,
    make_blocks: Callable[[int], tuple[nn.Module, int]],
    make_transition: Callable[[int, int], nn.Module],
    gamma: float,
    fusion: str,
) -> nn.Module:
    """Make any stage cross-stage partial, in one of the orders of figure 3; `(B, in, H, W) -> (B, out, H, W)`.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out. Where both transitions are there, the first makes as many channels as the
            concatenation needs to have `out_channels` already; the paper does not say how many.
        make_blocks: builds the blocks for a number of channels; returns them and the number that they put out.
        make_transition: builds a transition from one number of channels to another.
        gamma: share of the channels that goes around the blocks; with 1 there are no blocks.
        fusion: `partial`: transition, concatenation, transition, the paper's (b); `first`: concatenation, transition
            (c); `last`: transition, concatenation (d); `none`: blocks on all channels, and a transition (a).

    Raises:
        ValueError: no such fusion, `gamma` is not in [0, 1], or so much goes around that no channel is left.
    """
    require_choice("fusion", fusion, FUSIONS)
    if not 0 <= gamma <= 1:
        raise ValueError(f"model.gamma={gamma} is a share; choose from 0 (all through the blocks) to 1 (none).")
    if fusion == "none":
        blocks, width = make_blocks(in_channels)
        return nn.Sequential(blocks, make_transition(width, out_channels))
    bypass = round(gamma * in_channels)
    base = in_channels - bypass
    split = ChannelSplit(bypass, base)
    if base == 0 and fusion != "last":
        return CrossStagePartial(split, None, nn.Identity(), make_transition(bypass, out_channels))
    if fusion != "first" and (base == 0 or bypass >= out_channels):
        raise ValueError(
            f"model.gamma={gamma} sends {bypass} of {in_channels} channels around a stage that puts out "
            f"{out_channels}: none is left for its blocks. Make it less, or take model.fusion=first."
        )
    blocks, width = make_blocks(base)
    if fusion == "first":
        return CrossStagePartial(split, blocks, nn.Identity(), make_transition(width + bypass, out_channels))
    transition = make_transition(width, out_channels - bypass)
    after = make_transition(out_channels, out_channels) if fusion == "partial" else nn.Identity()
    return CrossStagePartial(split, blocks, transition, after)


# ---- blocks ---------------------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """1x1, 3x3 and a linear 1x1 convolution beside a shortcut without weights, and the activation behind the sum.

    `(B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride))`. Where the shape changes, darknet adds the channels that
    both sides have, of every `stride`-th pixel; neither ResNet-50 nor ResNeXt-50 of the authors has a projection.
    """

    def __init__(
        self, in_channels: int, inner: int, out_channels: int, *, stride: int = 1, groups: int = 1, activation: str
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_norm(in_channels, inner, 1, activation=activation),
            conv_norm(inner, inner, 3, stride=stride, groups=groups, activation=activation),
            conv_norm(inner, out_channels, 1, activation=None),
        )
        self.shortcut = ZeroPadShortcut(in_channels, out_channels, stride)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Add and activate."""
        return self.activation(self.residual(x) + self.shortcut(x))


class DarknetBlock(nn.Module):
    """Darknet-53's block: 1x1 and 3x3 convolutions, both activated, and a sum that is not; the shape stays."""

    def __init__(self, channels: int, inner: int, activation: str) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_norm(channels, inner, 1, activation=activation), conv_norm(inner, channels, 3, activation=activation)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the input to what was computed from it."""
        return x + self.residual(x)


# ---- the net --------------------------------------------------------------------------------------------------------


class StagedNet(nn.Module):
    """A stem, stages, the mean over all places and a linear layer: `(B, C, H, W) -> (B, num_classes)`.

    Attributes:
        stage_channels: channels of each stage's map.
        stage_strides: pixels of the image per pixel of each stage's map.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        *,
        first_stride: int,
        num_classes: int,
        smallest_image: int = 1,
    ) -> None:
        super().__init__()
        self.smallest_image = smallest_image
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.classifier: nn.Module = nn.Linear(channels[-1], num_classes)
        self.stage_channels = tuple(channels)
        self.stage_strides = tuple(first_stride * 2**number for number in range(len(channels)))
        initialise_convolutions(self)

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Return the map of every stage, `(B, stage_channels[i], H / stage_strides[i], W / stage_strides[i])`.

        Raises:
            ValueError: the images are so small that nothing would be left of them.
        """
        require_image_size(images, self.smallest_image, "this net")
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, channels, H', W')`, the last stage's map."""
        return self.forward_pyramid(images)[-1]

    def forward(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, num_classes)` logits."""
        return self.classifier(self.forward_features(images).mean((2, 3)))


def check_stages(blocks: Sequence[int], channels: Sequence[int], divisor: int, activation: str) -> None:
    """Raise a ValueError unless there are blocks and channels for every stage, the latter multiples of `divisor`."""
    require_choice("activation", activation, ACTIVATIONS)
    if not blocks or len(blocks) != len(channels):
        raise ValueError(
            f"model.blocks={list(blocks)} names {len(blocks)} stages and model.channels={list(channels)} "
            f"{len(channels)}; give one number of each for every stage."
        )
    if min(blocks) < 1:
        raise ValueError(f"model.blocks={list(blocks)} must be at least 1 in every stage.")
    if any(width < divisor or width % divisor for width in channels):
        raise ValueError(f"model.channels={list(channels)} must be multiples of {divisor} here.")


def pooled_stem(kind: str, in_channels: int, out_channels: int, activation: str) -> tuple[nn.Module, int]:
    """Build the stem of the ResNets and return it with its stride.

    `large`: 7x7 with stride 2, and maximum pooling 2x2; `small`: 3x3 with stride 2, for images of about 32 pixels.
    """
    require_choice("stem", kind, STEMS)
    require_positive("stem_channels", out_channels)
    if kind == "small":
        return conv_norm(in_channels, out_channels, 3, stride=2, activation=activation), 2
    convolution = conv_norm(in_channels, out_channels, 7, stride=2, activation=activation)
    return nn.Sequential(convolution, nn.MaxPool2d(2, ceil_mode=True)), 4  # darknet's maps of odd size round up


# ---- CSPResNet-50 and CSPResNeXt-50 ---------------------------------------------------------------------------------


def csp_resnet50(
    *,
    blocks: Sequence[int] = (3, 3, 5, 2),
    channels: Sequence[int] = (128, 256, 512, 1024),
    stem: str = "large",
    stem_channels: int = 64,
    activation: str = "leaky",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    """Build CSPResNet-50 (csresnet50.cfg): `(B, C, H, W) -> (B, num_classes)`, images of any size.

    Args:
        blocks: blocks of each stage. A stage but the first begins with a strided convolution, which stands for one of
            ResNet-50's blocks.
        channels: width of both paths and of the output of each stage; a block is half as wide inside.
        stem: `large` (7x7 and pooling, stride 4) or `small` (3x3, stride 2).
        stem_channels: filters of the stem, at most `channels[0]`.
        activation: `leaky` as the paper's nets, or `mish` as the best released ones (csresnet50-omega.cfg).
        num_classes: classes.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown stem or activation, or numbers that make no net.
    """
    check_stages(blocks, channels, 2, activation)
    return _csp_bottlenecks(
        blocks,
        channels,
        inners=[width // 2 for width in channels],
        outs=channels,
        groups=1,
        stem=stem,
        stem_channels=stem_channels,
        activation=activation,
        num_classes=num_classes,
        in_channels=in_channels,
    )


def csp_resnext50(
    *,
    blocks: Sequence[int] = (3, 3, 5, 2),
    channels: Sequence[int] = (128, 256, 512, 1024),
    groups: int = 32,
    stem: str = "large",
    stem_channels: int = 64,
    activation: str = "leaky",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    """Build CSPResNeXt-50 (csresnext50.cfg): `(B, C, H, W) -> (B, num_classes)`, images of any size.

    Args:
        blocks: blocks of each stage, as in `csp_resnet50`.
        channels: width of both paths of each stage and of its blocks inside; a stage puts out twice as many.
        groups: of every 3x3 convolution, also of the strided ones between the stages.
        stem: `large` (7x7 and pooling, stride 4) or `small` (3x3, stride 2).
        stem_channels: filters of the stem, at most `channels[0]`.
        activation: `leaky`, or `mish` (csresnext50-omega.cfg).
        num_classes: classes.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown stem or activation, or numbers that make no net.
    """
    require_positive("groups", groups)
    check_stages(blocks, channels, groups, activation)
    return _csp_bottlenecks(
        blocks,
        channels,
        inners=channels,
        outs=[2 * width for width in channels],
        groups=groups,
        stem=stem,
        stem_channels=stem_channels,
        activation=activation,
        num_classes=num_classes,
        in_channels=in_channels,
    )


def _csp_bottlenecks(
    blocks: Sequence[int],
    channels: Sequence[int],
    *,
    inners: Sequence[int],
    outs: Sequence[int],
    groups: int,
    stem: str,
    stem_channels: int,
    activation: str,
    num_classes: int,
    in_channels: int,
) -> StagedNet:
    first, stride = pooled_stem(stem, in_channels, stem_channels, activation)
    if stem_channels > channels[0]:
        raise ValueError(
            f"model.stem_channels={stem_channels} is more than the first stage's {channels[0]} channels; make it less."
        )
    stages = []
    for number, (count, width, inner, out) in enumerate(zip(blocks, channels, inners, outs, strict=True)):
        is_first, is_last = number == 0, number == len(blocks) - 1
        before = stem_channels if is_first else outs[number - 1]
        # As released: the first stage's blocks begin with the stem's channels; middle stages split without activation.
        base = before if is_first else width
        split = TwoConvolutions(before, width, base, activation if is_first or is_last else None)
        residuals = [
            Bottleneck(base if n == 0 else width, inner, width, groups=groups, activation=activation)
            for n in range(count)
        ]
        stage: nn.Module = CrossStagePartial(
            split,
            nn.Sequential(*residuals),
            transition=conv_norm(width, width, 1, activation=activation),
            fusion=conv_norm(2 * width, out, 1, activation=activation),
        )
        if not is_first:
            halving = conv_norm(before, before, 3, stride=2, groups=groups, activation=activation)
            stage = nn.Sequential(halving, stage)
        stages.append(stage)
    return StagedNet(first, stages, outs, first_stride=stride, num_classes=num_classes)


def darknet_resnet50(
    *,
    blocks: Sequence[int] = (3, 4, 6, 3),
    channels: Sequence[int] = (256, 512, 1024, 2048),
    stem: str = "large",
    stem_channels: int = 64,
    activation: str = "leaky",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    """Build the ResNet-50 that CSPResNet-50 is compared with (resnet50.cfg): leaky ReLU, shortcuts without weights.

    Args:
        blocks: blocks of each stage.
        channels: channels that each stage puts out; its blocks have a quarter inside.
        stem: `large` (7x7 and pooling, stride 4) or `small` (3x3, stride 2).
        stem_channels: filters of the stem, at most `channels[0]`.
        activation: `leaky` or `mish`.
        num_classes: classes.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown stem or activation, or numbers that make no net.
    """
    check_stages(blocks, channels, 4, activation)
    return _bottlenecks(
        blocks,
        channels,
        narrowing=4,
        groups=1,
        stem=stem,
        stem_channels=stem_channels,
        activation=activation,
        num_classes=num_classes,
        in_channels=in_channels,
    )


def darknet_resnext50(
    *,
    blocks: Sequence[int] = (3, 4, 6, 3),
    channels: Sequence[int] = (256, 512, 1024, 2048),
    groups: int = 32,
    stem: str = "large",
    stem_channels: int = 64,
    activation: str = "leaky",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    """Build the ResNeXt-50 that CSPResNeXt-50 is compared with (resnext50.cfg).

    Args:
        blocks: blocks of each stage.
        channels: channels that each stage puts out; its blocks have half of them inside.
        groups: of the 3x3 convolutions.
        stem: `large` (7x7 and pooling, stride 4) or `small` (3x3, stride 2).
        stem_channels: filters of the stem, at most `channels[0]`.
        activation: `leaky` or `mish`.
        num_classes: classes.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown stem or activation, or numbers that make no net.
    """
    require_positive("groups", groups)
    check_stages(blocks, channels, 2 * groups, activation)
    return _bottlenecks(
        blocks,
        channels,
        narrowing=2,
        groups=groups,
        stem=stem,
        stem_channels=stem_channels,
        activation=activation,
        num_classes=num_classes,
        in_channels=in_channels,
    )


def _bottlenecks(
    blocks: Sequence[int],
    channels: Sequence[int],
    *,
    narrowing: int,
    groups: int,
    stem: str,
    stem_channels: int,
    activation: str,
    num_classes: int,
    in_channels: int,
) -> StagedNet:
    first, stride = pooled_stem(stem, in_channels, stem_channels, activation)
    widths = [stem_channels, *channels]
    if widths != sorted(widths):
        raise ValueError(
            f"model.channels={list(channels)} must not be less than model.stem_channels={stem_channels} nor fall from "
            "stage to stage: shortcuts without weights can only add channels."
        )
    stages = [
        nn.Sequential(
            *(
                Bottleneck(
                    before if n == 0 else width,
                    width // narrowing,
                    width,
                    stride=2 if n == 0 and number > 0 else 1,
                    groups=groups,
                    activation=activation,
                )
                for n in range(count)
            )
        )
        for number, (count, before, width) in enumerate(zip(blocks, widths[:-1], channels, strict=True))
    ]
    return StagedNet(first, stages, channels, first_stride=stride, num_classes=num_classes)


# ---- CSPDarknet-53 --------------------------------------------------------------------------------------------------


def csp_darknet53(
    *,
    blocks: Sequence[int] = (1, 2, 8, 8, 4),
    channels: Sequence[int] = (64, 128, 256, 512, 1024),
    stem_channels: int = 32,
    activation: str = "leaky",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    """Build CSPDarknet-53 (csdarknet53.cfg): `(B, C, H, W) -> (B, num_classes)`, images of any size.

    Args:
        blocks: blocks of each stage.
        channels: channels that each stage puts out. Both paths have half of them, and the blocks inside as well; in the
            first stage the paths have all and the blocks half.
        stem_channels: filters of the first convolution, which has stride 1.
        activation: `leaky`, or `mish` (csdarknet53-omega.cfg; the backbone of YOLOv4).
        num_classes: classes.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown activation, or numbers that make no net.
    """
    check_stages(blocks, channels, 2, activation)
    require_positive("stem_channels", stem_channels)
    stages = []
    for number, (count, before, out) in enumerate(zip(blocks, [stem_channels, *channels], channels, strict=False)):
        width = out if number == 0 else out // 2
        residuals = [DarknetBlock(width, out // 2, activation) for _ in range(count)]
        crossing = CrossStagePartial(
            TwoConvolutions(out, width, width, activation),
            nn.Sequential(*residuals),
            transition=conv_norm(width, width, 1, activation=activation),
            fusion=conv_norm(2 * width, out, 1, activation=activation),
        )
        stages.append(nn.Sequential(conv_norm(before, out, 3, stride=2, activation=activation), crossing))
    first = conv_norm(in_channels, stem_channels, 3, activation=activation)
    return StagedNet(first, stages, channels, first_stride=2, num_classes=num_classes)


def darknet53(
    *,
    blocks: Sequence[int] = (1, 2, 8, 8, 4),
    channels: Sequence[int] = (64, 128, 256, 512, 1024),
    stem_channels: int = 32,
    activation: str = "leaky",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    """Build Darknet-53 (darknet53.cfg; Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018, table 1).

    Args:
        blocks: blocks of each stage.
        channels: channels that each stage puts out; its blocks have half of them inside.
        stem_channels: filters of the first convolution, which has stride 1.
        activation: `leaky` or `mish`.
        num_classes: classes.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown activation, or numbers that make no net.
    """
    check_stages(blocks, channels, 2, activation)
    require_positive("stem_channels", stem_channels)
    stages = [
        nn.Sequential(
            conv_norm(before, out, 3, stride=2, activation=activation),
            *(DarknetBlock(out, out // 2, activation) for _ in range(count)),
        )
        for count, before, out in zip(blocks, [stem_channels, *channels[:-1]], channels, strict=True)
    ]
    first = conv_norm(in_channels, stem_channels, 3, activation=activation)
    return StagedNet(first, stages, channels, first_stride=2, num_classes=num_classes)


# ---- CSPDenseNet ----------------------------------------------------------------------------------------------------


def csp_densenet(
    *,
    layers: Sequence[int] = (6, 12, 24, 16),
    growth_rate: int = 32,
    gamma: float = 0.5,
    fusion: str = "partial",
    compression: float = 0.5,
    stem: str = "large",
    stem_channels: int = 64,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    """Build a DenseNet-BC with partial dense blocks and partial transitions (section 3.1, figures 2b and 3).

    `(B, C, H, W) -> (B, num_classes)`, images from 29x29 pixels with the large stem.

    Args:
        layers: dense layers of each stage: (6, 12, 24, 16) is DenseNet-121, (6, 12, 48, 32) DenseNet-201.
        growth_rate: maps that every layer adds.
        gamma: share of a stage's input that goes around its dense block.
        fusion: `partial` (the proposed net), `first`, `last`, or `none`: the DenseNet that it comes from, whose last
            stage has no transition.
        compression: share of the channels, counted as in the DenseNet without a bypass, that a stage puts out.
        stem: `large` (7x7 and pooling, stride 4) or `small` (3x3, stride 2).
        stem_channels: filters of the stem.
        num_classes: classes.
        in_channels: channels of the images.

    Raises:
        ValueError: an unknown stem or fusion, `gamma` or `compression` out of range, or numbers that make no net; in a
            call, images that are too small.
    """
    if not layers or min(layers) < 1:
        raise ValueError(f"model.layers={list(layers)} must name at least 1 layer for every stage.")
    require_positive("growth_rate", growth_rate)
    require_positive("stem_channels", stem_channels)
    require_choice("stem", stem, STEMS)
    if not 0 < compression <= 1:
        raise ValueError(f"model.compression={compression} must be above 0 and at most 1, which keeps every channel.")

    first, stride = _dense_stem(stem, in_channels, stem_channels)
    stages: list[nn.Module] = []
    outs: list[int] = []
    for number, count in enumerate(layers):
        before = outs[-1] if outs else stem_channels
        grown = before + count * growth_rate
        is_last = number == len(layers) - 1
        parts: list[nn.Module] = [nn.AvgPool2d(2)] if number > 0 else []
        if fusion == "none" and is_last:
            outs.append(grown)
            parts.append(_dense_block(count, growth_rate, before)[0])
        else:
            outs.append(max(1, int(compression * grown)))
            stage = cross_stage_partial(
                before,
                outs[-1],
                make_blocks=partial(_dense_block, count, growth_rate),
                make_transition=_dense_transition,
                gamma=gamma,
                fusion=fusion,
            )
            parts.append(stage)
        if is_last:
            parts += [nn.BatchNorm2d(outs[-1]), nn.ReLU()]
        stages.append(nn.Sequential(*parts))
    smallest_image = stride * (2 ** (len(layers) - 1) - 1) + 1  # the stem rounds up, pooling between stages down
    return StagedNet(first, stages, outs, first_stride=stride, num_classes=num_classes, smallest_image=smallest_image)


def _dense_stem(kind: str, in_channels: int, out_channels: int) -> tuple[nn.Module, int]:
    """Build DenseNet's own stem and return it with its stride."""
    if kind == "small":
        return nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False), 2
    convolution = nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)), 4


def _dense_block(count: int, growth_rate: int, channels: int) -> tuple[nn.Module, int]:
    """Build a dense block with bottlenecks and return it with the channels that it puts out."""
    block = DenseBlock(count, channels, growth_rate, bottleneck=True, dropout=0.0, memory_saving=False)
    return block, channels + count * growth_rate


def _dense_transition(in_channels: int, out_channels: int) -> nn.Module:
    """Build BN, ReLU, 1x1 convolution; the pooling belongs to the next stage, where a detector needs the map."""
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False))
