"""MobileNetV3, Large and Small: searched rows, squeeze-and-excitation, h-swish.

Howard et al., "Searching for MobileNetV3" (ICCV 2019), tables 1 and 2. The blocks are timm's.
"""

from collections.abc import Sequence
from functools import partial
from typing import TypedDict, Unpack

from torch import nn

from convatlas.models.checks import require_positive, require_probability, require_strides

STEM_CHANNELS = 16
LARGE_STAGES = (
    ("ds_r1_k3_s{stride}_e1_c16_nre",),
    ("ir_r1_k3_s{stride}_e4_c24_nre", "ir_r1_k3_s1_e3_c24_nre"),
    ("ir_r3_k5_s{stride}_e3_c40_se0.25_nre",),
    ("ir_r1_k3_s{stride}_e6_c80", "ir_r1_k3_s1_e2.5_c80", "ir_r2_k3_s1_e2.3_c80"),
    ("ir_r2_k3_s{stride}_e6_c112_se0.25",),
    ("ir_r3_k5_s{stride}_e6_c160_se0.25",),
    ("cn_r1_k1_s1_c960",),
)
"""Table 1 in timm's notation: kernel, expansion, channels; `se`: squeeze as a fraction of the expanded channels, and
`nre` ReLU where the others have h-swish."""
LARGE_STRIDES = (1, 2, 2, 2, 1, 2)

SMALL_STAGES = (
    ("ds_r1_k3_s{stride}_e1_c16_se0.25_nre",),
    ("ir_r1_k3_s{stride}_e4.5_c24_nre", "ir_r1_k3_s1_e3.67_c24_nre"),
    ("ir_r1_k5_s{stride}_e4_c40_se0.25", "ir_r2_k5_s1_e6_c40_se0.25"),
    ("ir_r2_k5_s{stride}_e3_c48_se0.25",),
    ("ir_r3_k5_s{stride}_e6_c96_se0.25",),
    ("cn_r1_k1_s1_c576",),
)
"""Table 2, likewise."""
SMALL_STRIDES = (2, 2, 2, 1, 2)


class MobileNetV3Options(TypedDict, total=False):
    """The arguments whose defaults Large and Small share; see `mobilenet_v3_large`."""

    dropout: float
    bn_momentum: float
    num_classes: int
    in_channels: int


def mobilenet_v3_large(
    width: float = 1.0,
    *,
    strides: Sequence[int] = LARGE_STRIDES,
    head_channels: int = 1280,
    **options: Unpack[MobileNetV3Options],
) -> nn.Module:
    """Build MobileNetV3-Large; `forward_features` gives `(B, 960 * width, H/32, W/32)`.

    Args:
        width: factor of all channels but the head's, rounded to multiples of 8; below 0.75 the stem keeps its 16.
        strides: strides of the first blocks of the six stages, of five in Small; the stem always has 2.
        head_channels: units of the linear layer between pooling and classifier.
        options: `dropout`, the probability of setting one of them to zero (0.2); `bn_momentum`, the weight of a new
            batch in the running statistics (0.01, the paper's 0.99); `num_classes` (1000); `in_channels` (3).
    """
    return _build(LARGE_STAGES, width, strides, head_channels, **options)


def mobilenet_v3_small(
    width: float = 1.0,
    *,
    strides: Sequence[int] = SMALL_STRIDES,
    head_channels: int = 1024,
    **options: Unpack[MobileNetV3Options],
) -> nn.Module:
    """Build MobileNetV3-Small; `forward_features` gives `(B, 576 * width, H/32, W/32)`. See `mobilenet_v3_large`."""
    return _build(SMALL_STAGES, width, strides, head_channels, **options)


def _build(
    stages: Sequence[Sequence[str]],
    width: float,
    strides: Sequence[int],
    head_channels: int,
    *,
    dropout: float = 0.2,
    bn_momentum: float = 0.01,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> nn.Module:
    from timm.models._efficientnet_blocks import SqueezeExcite
    from timm.models._efficientnet_builder import decode_arch_def, round_channels
    from timm.models.mobilenetv3 import MobileNetV3

    if width <= 0:
        raise ValueError(f"model.width={width} must be above 0; the paper has 0.35, 0.5, 0.75, 1.0 and 1.25.")
    require_positive("head_channels", head_channels)
    require_probability("dropout", dropout)
    searched = len(stages) - 1  # the last one is a 1x1 convolution
    require_strides(strides, searched)
    rows = [[row.format(stride=stride) for row in stage] for stage, stride in zip(stages, (*strides, 1), strict=True)]
    net: nn.Module = MobileNetV3(
        decode_arch_def(rows),
        num_classes=num_classes,
        in_chans=in_channels,
        stem_size=STEM_CHANNELS,
        fix_stem=width < 0.75,
        num_features=head_channels,
        round_chs_fn=partial(round_channels, multiplier=width),
        act_layer=nn.Hardswish,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=bn_momentum),
        se_layer=partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels),
        drop_rate=dropout,
    )
    return net
