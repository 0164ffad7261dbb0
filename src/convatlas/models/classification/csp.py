"""CSPNet: nets whose stages send a part of their channels around the stage.

Wang, Liao, Wu, Chen, Hsieh, Yeh, "CSPNet: A New Backbone that can Enhance Learning Capability of CNN" (CVPR Workshops
2020), section 3, figures 2 to 4. Every width, depth and activation of CSPResNet-50, CSPResNeXt-50 and CSPDarknet-53
follows the authors' published darknet files (csresnet50.cfg and so on), which differ from the paper in one thing: they
do not split the channels, but make both parts from all of them by 1x1 convolutions. CSPDenseNet was not published; it
follows the paper's equations. The nets that they come from are in `darknet.py` (older configurations name them here).
"""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

from torch import nn

from convatlas.models.checks import require_all_positive, require_choice, require_positive
from convatlas.models.classification.darknet import (
    STEMS,
    Bottleneck,
    DarknetBlock,
    StagedNet,
    StemOptions,
    check_stages,
    darknet53,
    darknet_resnet50,
    darknet_resnext50,
    pooled_stem,
)
from convatlas.models.classification.densenet_cifar import DenseBlock
from convatlas.models.layers.conv_norm import conv_norm
from convatlas.models.layers.cross_stage_partial import CrossStagePartial, TwoConvolutions, cross_stage_partial

__all__ = [
    "csp_darknet53",
    "csp_densenet",
    "csp_resnet50",
    "csp_resnext50",
    "darknet53",
    "darknet_resnet50",
    "darknet_resnext50",
]


def csp_resnet50(
    *,
    blocks: Sequence[int] = (3, 3, 5, 2),
    channels: Sequence[int] = (128, 256, 512, 1024),
    **options: Unpack[StemOptions],
) -> StagedNet:
    """Build CSPResNet-50 (csresnet50.cfg): `(B, C, H, W) -> (B, num_classes)`, images of any size.

    Args:
        blocks: blocks of each stage. A stage but the first begins with a strided convolution, which stands for one of
            ResNet-50's blocks.
        channels: width of both paths and of the output of each stage; a block is half as wide inside.
    """
    inners = [width // 2 for width in channels]
    return _csp_bottlenecks(blocks, channels, divisor=2, inners=inners, outs=channels, groups=1, **options)


def csp_resnext50(
    *,
    blocks: Sequence[int] = (3, 3, 5, 2),
    channels: Sequence[int] = (128, 256, 512, 1024),
    groups: int = 32,
    **options: Unpack[StemOptions],
) -> StagedNet:
    """Build CSPResNeXt-50 (csresnext50.cfg): `(B, C, H, W) -> (B, num_classes)`, images of any size.

    Args:
        blocks: blocks of each stage, as in `csp_resnet50`.
        channels: width of both paths of each stage and of its blocks inside; a stage puts out twice as many.
        groups: of every 3x3 convolution, also of the strided ones between the stages.
    """
    require_positive("groups", groups)
    outs = [2 * width for width in channels]
    return _csp_bottlenecks(blocks, channels, divisor=groups, inners=channels, outs=outs, groups=groups, **options)


def _csp_bottlenecks(
    blocks: Sequence[int],
    channels: Sequence[int],
    *,
    divisor: int,
    inners: Sequence[int],
    outs: Sequence[int],
    groups: int,
    stem: str = "large",
    stem_channels: int = 64,
    activation: str = "leaky",
    num_classes: int = 1000,
    in_channels: int = 3,
) -> StagedNet:
    check_stages(blocks, channels, divisor, activation)
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
        channels: channels that each stage puts out. Both paths have half of them, and the blocks inside as well; in the
            first stage the paths have all and the blocks half.
        activation: `leaky`, or `mish` (csdarknet53-omega.cfg; the backbone of YOLOv4).
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
        gamma: share of a stage's input that goes around its dense block.
        fusion: `partial` (the proposed net), `first`, `last`, or `none`: the DenseNet that it comes from, whose last
            stage has no transition.
        compression: share of the channels, counted as in the DenseNet without a bypass, that a stage puts out.
        stem: `large` (7x7 and pooling, stride 4) or `small` (3x3, stride 2).
    """
    if not layers or min(layers) < 1:
        raise ValueError(f"model.layers={list(layers)} must name at least 1 layer for every stage.")
    require_all_positive(growth_rate=growth_rate, stem_channels=stem_channels)
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
    if kind == "small":
        return nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False), 2
    convolution = nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)), 4


def _dense_block(count: int, growth_rate: int, channels: int) -> tuple[nn.Module, int]:
    block = DenseBlock(count, channels, growth_rate, bottleneck=True, dropout=0.0, memory_saving=False)
    return block, channels + count * growth_rate


def _dense_transition(in_channels: int, out_channels: int) -> nn.Module:
    """Build BN, ReLU, 1x1 convolution; the pooling belongs to the next stage, where a detector needs the map."""
    return nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False))
