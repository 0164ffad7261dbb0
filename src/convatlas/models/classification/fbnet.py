"""FBNet-A, B and C: nets that a differentiable search found.

Wu et al., "FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture Search" (CVPR 2019),
table 1 and figures 2 and 4. Each of 22 layers is one of nine candidates; the tables below are the search's choices.
As in the nets that the authors released, a block with expansion 1 has no first 1x1 convolution, and every convolution
has a bias though batch norm follows. `BlockNet` takes any such choice; `convatlas.search` finds others.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from convatlas.models.checks import require_choice, require_probability, require_strides
from convatlas.models.layers.conv_norm import ConvNormAct
from convatlas.models.layers.shuffle import ChannelShuffle


class BlockKind(NamedTuple):
    """One candidate of table 2, `skip` aside."""

    kernel: int
    expansion: int
    groups: int = 1


BLOCKS = {
    "k3_e1": BlockKind(3, 1),
    "k3_e1_g2": BlockKind(3, 1, groups=2),
    "k3_e3": BlockKind(3, 3),
    "k3_e6": BlockKind(3, 6),
    "k5_e1": BlockKind(5, 1),
    "k5_e1_g2": BlockKind(5, 1, groups=2),
    "k5_e3": BlockKind(5, 3),
    "k5_e6": BlockKind(5, 6),
}

SKIP = "skip"
"""The ninth candidate: the layer is left out, where neither stride nor channels change."""

STEM_CHANNELS = 16
STAGE_CHANNELS = (16, 24, 32, 64, 112, 184, 352)
STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)
"""Table 1: output channels of the seven searched stages, and strides of the stem and of their first layers."""

FOUND = {
    "a": (
        ("skip",),
        ("k3_e3", "k3_e1", "skip", "skip"),
        ("k5_e6", "k3_e3", "k5_e1", "k3_e3"),
        ("k5_e6", "k5_e3", "k5_e1_g2", "k5_e6"),
        ("k3_e6", "k5_e1_g2", "k5_e3", "k3_e1_g2"),
        ("k5_e6", "k5_e6", "k5_e3", "k5_e6"),
        ("k5_e6",),
    ),
    "b": (
        ("k3_e1",),
        ("k3_e6", "k5_e1", "k3_e1", "k3_e1"),
        ("k5_e6", "k5_e3", "k3_e6", "k5_e6"),
        ("k5_e6", "k5_e6", "skip", "k5_e3"),
        ("k5_e6", "k3_e1", "k5_e1", "k5_e3"),
        ("k5_e6", "k5_e1", "k5_e6", "k5_e6"),
        ("k3_e6",),
    ),
    "c": (
        ("k3_e1",),
        ("k3_e6", "skip", "k3_e1", "k3_e1"),
        ("k5_e6", "k5_e3", "k5_e6", "k3_e6"),
        ("k5_e6", "k5_e3", "k5_e6", "k5_e6"),
        ("k5_e6", "k5_e6", "k5_e6", "k5_e3"),
        ("k5_e6", "k5_e6", "k5_e6", "k5_e6"),
        ("k3_e6",),
    ),
}
"""Figure 4: the candidate of each layer, stage by stage."""

HEAD_CHANNELS = {"a": 1504, "b": 1984, "c": 1984}


class FBNetBlock(nn.Module):
    """Figure 3: 1x1 convolution to `expansion` times the channels, depthwise convolution, 1x1 without activation.

    `(B, in, H, W) -> (B, out, H/stride, W/stride)`; the input is added where both shapes are equal. With groups the
    1x1 convolutions are grouped and a channel shuffle follows the first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kind: BlockKind,
        *,
        stride: int = 1,
        always_expand: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        middle = in_channels * kind.expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential()
        if kind.expansion > 1 or always_expand:
            self.layers.append(ConvNormAct(in_channels, middle, groups=kind.groups, bias=bias))
        if kind.groups > 1:
            self.layers.append(ChannelShuffle(kind.groups))
        self.layers.append(ConvNormAct(middle, middle, kind.kernel, stride=stride, groups=middle, bias=bias))
        self.layers.append(ConvNormAct(middle, out_channels, groups=kind.groups, bias=bias, activation=None))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class BlockNet(nn.Module):
    """A 3x3 convolution, stages of chosen blocks, a 1x1 convolution, global pooling, one linear layer.

    Args:
        blocks: for every stage the candidate of each of its layers, a name of `BLOCKS` or `skip`.
        stage_channels: output channels of each stage.
        strides: of the first convolution and of the first layer of each stage.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[Sequence[str]],
        stem_channels: int,
        stage_channels: Sequence[int],
        head_channels: int,
        strides: Sequence[int],
        always_expand: bool = False,
        conv_bias: bool = False,
        dropout: float = 0.0,
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        require_probability("dropout", dropout)
        if not len(blocks) == len(stage_channels) == len(strides) - 1:
            raise ValueError(
                f"model.blocks has {len(blocks)} stages, model.stage_channels {len(stage_channels)}, and model.strides "
                f"{len(strides)} numbers; there must be as many stages as channels, and one stride more for the stem."
            )
        require_strides(strides, len(blocks) + 1)
        channels = stem_channels
        self.stem = ConvNormAct(in_channels, channels, 3, stride=strides[0], bias=conv_bias)
        self.stages = nn.Sequential()
        for number, (names, out_channels) in enumerate(zip(blocks, stage_channels, strict=True), start=1):
            stage = nn.Sequential()
            for index, name in enumerate(names):
                stride = strides[number] if index == 0 else 1
                if name == SKIP and (stride > 1 or channels != out_channels):
                    raise ValueError(
                        f"model.blocks: stage {number} skips layer {index + 1}, which goes from {channels} to "
                        f"{out_channels} channels with stride {stride}; only a layer that keeps both can be skipped."
                    )
                if name == SKIP:
                    continue
                require_choice("blocks", name, [*BLOCKS, SKIP])
                kind = BLOCKS[name]
                stage.append(
                    FBNetBlock(channels, out_channels, kind, stride=stride, always_expand=always_expand, bias=conv_bias)
                )
                channels = out_channels
            self.stages.append(stage)
        self.head = ConvNormAct(channels, head_channels, bias=conv_bias)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head_channels, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """`(B, C, H, W) -> (B, head channels, H', W')`; FBNet has 1984 * width (1504 in variant a) and H' = H/32."""
        return self.head(self.stages(self.stem(images)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.forward_features(images).mean((2, 3))))


class FBNet(BlockNet):
    """FBNet: a 3x3 convolution, 22 found layers in seven stages, a 1x1 convolution, global pooling, one linear layer.

    Args:
        strides: strides of the stem and of the first layers of the seven stages.
        always_expand: keep the first 1x1 convolution of blocks with expansion 1, as in figure 3 of the paper; the
            released nets leave it out.
    """

    def __init__(
        self,
        variant: str = "c",
        width: float = 1.0,
        *,
        strides: Sequence[int] = STRIDES,
        always_expand: bool = False,
        conv_bias: bool = True,
        dropout: float = 0.2,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        require_choice("variant", variant, FOUND)
        if width <= 0:
            raise ValueError(f"model.width={width} must be above 0.")
        require_strides(strides, len(STRIDES))
        for names, stage_stride in zip(FOUND[variant], strides[1:], strict=True):
            if names[0] == SKIP and stage_stride > 1:
                raise ValueError(
                    f"model.strides={list(strides)}: variant {variant} skips a layer that has stride 2 there; "
                    "a skipped layer keeps the resolution, so set that stride to 1."
                )
        stem, *stages, head = (
            max(int(channels * width / 8 + 0.5), 1) * 8
            for channels in (STEM_CHANNELS, *STAGE_CHANNELS, HEAD_CHANNELS[variant])
        )
        super().__init__(
            blocks=FOUND[variant],
            stem_channels=stem,
            stage_channels=stages,
            head_channels=head,
            strides=strides,
            always_expand=always_expand,
            conv_bias=conv_bias,
            dropout=dropout,
            num_classes=num_classes,
            in_channels=in_channels,
        )
